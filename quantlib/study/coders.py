"""An entropy coder that nobody here wrote, beside our Huffman codes: asymmetric numeral systems."""

import numpy as np
from numpy.typing import ArrayLike

from quantlib.errors import StudyError
from quantlib.optional import optional


def ans_bytes(symbols: ArrayLike) -> int:
    """Bytes that constriction's ANS coder makes of symbols 0, 1, ... when it knows how often each occurs.

    The table of the shares is not counted. Raises StudyError where the library is not installed.
    Source: Duda 2009; Bamler 2022 (constriction). Introduced in notebook 14.
    """
    chosen = np.asarray(symbols, np.int32)
    counts = np.bincount(chosen)
    used = np.flatnonzero(counts)
    if len(used) < 2:
        return 0  # nothing to say
    stream = optional("constriction", "The comparison", "pip install -e '.[coding]'", StudyError).stream
    model = stream.model.Categorical((counts[used] / counts.sum()).astype(np.float64), perfect=False)
    coder = stream.stack.AnsCoder()
    coder.encode_reverse(np.searchsorted(used, chosen).astype(np.int32), model)
    return 4 * len(coder.get_compressed())
