"""Each ingredient computes what it stands for: the same integers another way, or the cost that it names."""

import time

import pytest
import torch

from quantlib.quantization.integer import to_integer
from quantlib.quantization.integer_layers import IntegerLayer
from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, prepare
from quantlib.study import ingredients, primitives
from tests.quantization.networks import Spellings, Tiny, randomize

EXACT = {**ingredients.ZERO_POINT, **ingredients.WINDOWS}


@pytest.fixture(scope="module", params=[Tiny, Spellings])
def reference(request):
    torch.manual_seed(0)
    config = QConfig(activation=Scheme(observer="minmax"))
    return to_integer(calibrate(prepare(randomize(request.param()), config), [torch.randn(8, 3, 16, 16)]))


@pytest.mark.parametrize("name", EXACT)
def test_the_same_sums_another_way(reference, name):
    x = torch.randn(3, 3, 16, 16)
    changed = ingredients.with_accumulate(reference, EXACT[name])
    wanted, got = reference.integers(x), changed.integers(x)
    assert all(torch.equal(q, got[layer]) for layer, q in wanted.items())
    assert any(
        module.input_grid.zero_point for module in reference.modules() if isinstance(module, IntegerLayer)
    )


def test_the_table_is_used_and_its_weights_are_near(reference):
    layer = next(module for module in reference.modules() if isinstance(module, IntegerLayer))
    q = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    wanted, got = layer.accumulate(q), ingredients.looked_up(layer, q)
    assert 0 < (wanted - got).abs().max() <= 8 * 255 * layer.weight[0].numel()
    codes, table = ingredients._CODES[layer]
    assert len(table) == 16 and (table[codes].int() - layer.rows(q)[1].flatten().int()).abs().max() <= 8


def test_another_rounding_for_the_whole_network(reference):
    x = torch.randn(2, 3, 16, 16)
    changed = ingredients.with_rounding(reference, "gemmlowp")
    differs = [int((q != changed.integers(x)[name]).sum()) for name, q in reference.integers(x).items()]
    assert sum(differs) > 0 and reference.rounding == "float"


def test_the_cache_of_primitives_is_set_from_outside():
    found = primitives.with_and_without_cache(turns=1, network=False)
    assert set(found) == {"cached", "made_anew"} and all(len(each["layer"]) == 1 for each in found.values())
    assert found["made_anew"]["layer"][0] > found["cached"]["layer"][0]


def test_rows_of_an_ingredient(monkeypatch):
    monkeypatch.setattr(ingredients, "AT_LEAST", 0.0)
    monkeypatch.setattr(ingredients, "PAUSE", 0.0)
    calls = {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.002)}
    rows = ingredients.ingredient_rows("sleep", "layer", calls, repeats=3, batch=2)
    found = {(row["method"], row["metric"]): row for row in rows}
    assert set(found) == {("slow", "milliseconds"), ("fast", "milliseconds"), ("fast", "speedup")}
    assert found["slow", "milliseconds"]["value"] >= 20 and found["fast", "speedup"]["value"] > 1
    assert {row["place"] for row in rows} == {"layer"} and {row["batch"] for row in rows} == {2}
