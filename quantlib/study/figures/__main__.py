"""`python -m quantlib.study.figures`: redraw every figure from results/ into figures/*.png."""

import sys

import matplotlib

from quantlib.errors import QuantlibError
from quantlib.study.figures.registry import redraw


def main() -> int:
    """Draw what is recorded, name what is not; 0 unless something could not be drawn."""
    matplotlib.use("Agg")
    try:
        drawn, missing = redraw()
    except QuantlibError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(drawn)} figures drawn into figures/: {', '.join(drawn) or 'none'}")
    if missing:
        print(f"{len(missing)} wait for a full run: {', '.join(missing)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
