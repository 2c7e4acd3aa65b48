"""Looking up and multiplying, both ways, against torch's linear layer."""

import pytest
import torch
from torch.nn import functional as F

from quantlib.compression.lookup import LookUpLinear
from quantlib.compression.sharing import Shared, share
from quantlib.errors import ConfigError


@pytest.mark.parametrize("clusters", [2, 9, 16])
def test_both_ways_are_a_linear_layer(clusters):
    torch.manual_seed(clusters)
    shared = share(torch.randn(12, 10), clusters)
    layer, x = LookUpLinear(shared), torch.randn(5, 10)
    expected = F.linear(x, shared.weight)
    assert layer.bytes == 60
    assert torch.equal(layer.decoding(x), expected)
    assert torch.allclose(layer.summing(x), expected, atol=1e-5)
    exact = F.linear(x.double(), shared.weight.double())
    assert torch.allclose(layer.summing(x.double()), exact, atol=1e-12)


def test_what_four_bits_do_not_hold_is_refused():
    many = Shared(torch.arange(17.0), torch.zeros(8, 10, dtype=torch.int64))
    odd = Shared(torch.zeros(4), torch.zeros(8, 9, dtype=torch.int64))
    deep = Shared(torch.zeros(4), torch.zeros(2, 2, 2, dtype=torch.int64))
    for shared in (many, odd, deep):
        with pytest.raises(ConfigError, match="Four bits hold 16 values"):
            LookUpLinear(shared)
