"""What a drawn figure says above it."""

import matplotlib.pyplot as plt


def title(figure):
    """The finding, wherever the drawing put it; the figure is closed."""
    plt.close(figure)
    return figure.get_suptitle() or figure.axes[0].get_title(loc="left") or figure.axes[0].get_title()
