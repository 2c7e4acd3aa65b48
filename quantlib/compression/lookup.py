"""Layers that keep four-bit indices and look their weights up at every call: what that costs, to be measured.

An integer kernel multiplies its weights as they lie in memory. An index must first be turned into its value:
one look-up a weight, where a vector instruction multiplies dozens of weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from quantlib.compression.sharing import Shared
from quantlib.errors import ConfigError
from quantlib.quantization.packed import pack

VALUES = 16
"""Shared values that four bits tell apart."""


class LookUpLinear:
    """A linear layer of up to 16 shared values: half a byte a weight in its format, computed in two ways.

    `decoding` writes the weights out as float32, by a table of all 256 pairs, and multiplies as usual.
    `summing` adds up the inputs that share a value and multiplies each sum once: 16 multiplications for an
    output, however many inputs. shared.index: (out, in), `in` even. Raises ConfigError when there are more
    values. Introduced in notebook 13.
    """

    def __init__(self, shared: Shared) -> None:
        self.shape = shared.index.shape
        if len(shared.codebook) > VALUES or len(self.shape) != 2 or self.shape[1] % 2:
            raise ConfigError(
                f"Four bits hold {VALUES} values of a matrix with an even number of columns, not "
                f"{len(shared.codebook)} of shape {tuple(self.shape)}."
            )
        self.codebook = F.pad(shared.codebook, (0, VALUES - len(shared.codebook)))
        self.packed = pack(shared.index, 4).to(torch.int32)  # torch looks up by int32 at least
        low, high = torch.arange(256) % VALUES, torch.arange(256) // VALUES
        self.pairs = self.codebook[torch.stack([low, high], 1)]
        self.index = shared.index

    @property
    def bytes(self) -> int:
        """Bytes that the indices need: half a byte each."""
        return self.packed.numel()

    def decoding(self, x: Tensor) -> Tensor:
        """x (n, in) times the weights: look up, write out, multiply."""
        return F.linear(x, self.pairs.index_select(0, self.packed).view(self.shape))

    def summing(self, x: Tensor) -> Tensor:
        """The same by sums of the inputs over each shared value: sum_k c_k * (sum of the x_i of value k)."""
        out, inputs = self.shape
        spread = x[:, None].expand(len(x), out, inputs)
        sums = torch.zeros(len(x), out, VALUES, dtype=x.dtype)
        sums.scatter_add_(2, self.index.expand_as(spread), spread)
        return sums @ self.codebook.to(x.dtype)
