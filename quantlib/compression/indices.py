"""Where the weights that are left stand: by the zeros before each, not by its address.

Deep Compression gives each distance a fixed number of bits. A distance that does not fit is bridged by a
*filler*: a zero that is stored as if it were a weight.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantlib.errors import CheckpointError, ConfigError

Integers = NDArray[np.int64]
"""Places or gaps, int64."""


def relative(positions: ArrayLike, bits: int) -> tuple[Integers, NDArray[np.bool_]]:
    """The zeros before each stored entry, 0 .. 2**bits - 1, and which entries are fillers.

    positions: ascending places of the weights that are left, from 0. A filler is put at every 2**bits-th
    place of a longer gap. The paper writes the step to an entry, which is one more than the zeros before it.
    Raises ConfigError when the positions do not rise or bits is not in 1..16.
    Source: Han et al. 2016, figure 2. Introduced in notebook 14.

    >>> gaps, filler = relative([1, 4, 15], bits=3)
    >>> (gaps + 1).tolist(), filler.tolist()  # the paper's figure: steps 1 (counted from 0), 3, 8, 3
    ([2, 3, 8, 3], [False, False, True, False])
    """
    if not 1 <= bits <= 16:
        raise ConfigError(f"bits is {bits}; distances have 1 to 16 bits.")
    symbols = runs(positions, 2**bits)
    filler = symbols == 2**bits
    return np.where(filler, 2**bits - 1, symbols), filler


def absolute(gaps: ArrayLike) -> Integers:
    """The places of the stored entries, fillers included: cumsum(gaps + 1) - 1. Introduced in notebook 14."""
    return np.cumsum(np.asarray(gaps, np.int64) + 1) - 1


def runs(positions: ArrayLike, span: int) -> Integers:
    """The zeros before each weight, 0 .. span - 1, where a longer run is broken by the symbol `span`.

    The symbol `span` means "`span` zeros, and no weight yet", so that nothing need be stored as a weight
    which is none. Raises ConfigError when the positions do not rise. Introduced in notebook 14.

    >>> runs([1, 4, 15], span=8).tolist()
    [1, 2, 8, 2]
    """
    places = np.asarray(positions, np.int64)
    zeros = np.diff(places, prepend=-1) - 1
    if len(zeros) and zeros.min() < 0:
        raise ConfigError("Positions must be from 0 up, each larger than the one before.")
    skips = zeros // span
    symbols = np.full(len(zeros) + int(skips.sum()), span, np.int64)
    symbols[np.cumsum(skips + 1) - 1] = zeros - skips * span
    return symbols


def positions_of(symbols: ArrayLike, span: int, size: int) -> Integers:
    """What `runs` was given; `size` is the number of places.

    Raises CheckpointError when a weight would lie outside. Introduced in notebook 14.
    """
    symbols = np.asarray(symbols, np.int64)
    is_weight = symbols != span
    places = (np.cumsum(symbols + is_weight) - 1)[is_weight]
    if len(places) and not 0 <= places[-1] < size:
        raise CheckpointError("A weight would lie outside its layer; the file is damaged.")
    return places
