"""How nbval judges the notebooks: what no two machines print alike is not compared."""

import os

NOT_COMPARED = ("stderr", "text/html", "image/svg+xml")


def pytest_collectstart(collector):
    """Runs when nbval opens a notebook; its figures are drawn inline, as a reader sees them."""
    if getattr(collector, "skip_compare", None) is not None:
        collector.skip_compare += NOT_COMPARED
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
