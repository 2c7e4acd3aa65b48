import json

import numpy as np
import pytest
import torch

from quantlib.errors import ConfigError
from quantlib.quantization.affine import fake_quantize
from quantlib.quantization.graph import fuse
from quantlib.quantization.low_bits import activation_scheme, low_bit_qconfig, weight_scheme
from quantlib.quantization.qconfig import QConfig
from quantlib.quantization.sensitivity import layer_sensitivity
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.study import ptq, rescue
from quantlib.study.mixed_precision import allocation, divergences, label_free_costs, ranks, spend
from quantlib.study.rescue import Rescue
from quantlib.study.rescue_methods import METHODS, TARGETS, columns_of, rescue_setting
from quantlib.subject import data
from quantlib.subject.data import batches
from quantlib.subject.evaluation import evaluate
from tests.quantization.networks import Tiny, randomize

JOB = Rescue("slice", images_calibration=12, images_test=20, images_validation=10, ratios=5, batch_size=6)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A small network in the place of the checkpoint, a cache of its own, nothing kept from other tests."""
    torch.manual_seed(0)
    graph = fuse(randomize(Tiny()))
    monkeypatch.setattr(ptq, "trained_graph", lambda network: graph)
    monkeypatch.setattr(ptq, "_SETTLED", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = (rescue._network, ptq.calibrated, rescue.counted)
    for each in kept:
        each.cache_clear()
    yield graph
    for each in kept:
        each.cache_clear()


def test_nearest_is_the_three_verbs(tiny):
    chosen = rescue_setting(bits_weight=3, bits_activation=4)
    shown = data.load("calibration").take(12, seed=0)
    plain = calibrate(prepare(tiny, low_bit_qconfig(tiny.graph, 3, 4, ratios=5)), batches(shown))
    wanted = evaluate(convert(plain, "mixed"), data.load("test").take(20, seed=0))
    found = JOB(chosen)
    assert np.array_equal(JOB.evaluation(found).predictions, wanted.predictions)
    assert JOB.evaluation(found, "validation").n == 10 and found["minutes"] == 0 and found["units"] == []


@pytest.mark.parametrize(
    "method",
    ["equalization", "bias_correction", "balanced", "balanced_bias", "adaround", "equalized_all",
     "all_corrected", "balanced_all"],
)
def test_every_kind_of_method_runs_and_says_what_it_did(tiny, method):
    found = JOB(rescue_setting(rescue=method, bits_weight=3, iterations=2))
    learned = METHODS[method].recipe is not None
    assert (len(found["units"]) > 0) == learned and (found["minutes"] > 0) == (method != "equalization")
    json.dumps(found)
    for _, before, after, _, _ in found["units"]:
        assert after <= before


def test_learned_units_are_found_again(tiny, tmp_path):
    chosen = rescue_setting(rescue="qdrop_all", iterations=2)
    first, again = JOB(chosen), JOB(chosen)
    assert first["units"] == again["units"] and first["test"] == again["test"]  # seconds and all
    kept = list((tmp_path / "quantlib" / "rescue").glob("*/*"))
    assert kept == [JOB.folder / JOB.digest(chosen)]
    others = [JOB.digest({**chosen, **column}) for column in ({"iterations": 3}, {"draw": 1})]
    assert len({JOB.digest(chosen), *others}) == 3
    JOB.forget()
    assert not kept[0].exists()
    JOB.forget()  # nothing is there


def test_units_of_other_images_weights_or_code_are_others(tiny, monkeypatch):
    found = [JOB.folder, Rescue("slice", 11, 20, ratios=5, batch_size=6).folder]
    with torch.no_grad():
        tiny.conv1.weight.add_(1)
    rescue._network.cache_clear()
    found.append(JOB.folder)
    monkeypatch.setattr(rescue, "code_digest", lambda rooms: "other")
    assert len({*found, JOB.folder}) == 4


def test_targets_and_columns(tiny):
    assert {name for name in TARGETS} >= {"w4a4", "w2a2", "conv 4, fc 2"}
    columns = TARGETS["conv 4, fc 2"][0]
    prepared = JOB.prepared(rescue_setting(**columns))
    assert {name: each.bits for name, each in prepared.weights.items()} == {
        "conv1": 4, "conv2": 4, "shortcut": 4, "conv3": 4, "fc": 2,
    }  # fmt: skip
    assert not prepared.activations
    assert rescue_setting(rescue="brecq", iterations=7)["iterations"] == 7
    assert rescue_setting(iterations=7)["iterations"] == 0
    assert columns_of(rescue_setting(allocation="{}"))["allocation"] == "allocated"
    with pytest.raises(ConfigError, match="no method named 'breqc'; did you mean 'brecq'"):
        rescue_setting(rescue="breqc")
    with pytest.raises(ConfigError, match="no column"):
        rescue_setting(bits=4)


def test_mixed_precision_from_costs_to_a_network(tiny):
    images = data.load("calibration").take(8, seed=0)
    found = label_free_costs(tiny, images, [8, 2], "weight")
    blind = divergences(found)
    assert set(blind) == {"conv1", "conv2", "shortcut", "conv3", "fc"}
    assert all(0 <= choices[8] <= choices[2] + 1e-3 for choices in blind.values())
    assert any(choices[2] > 1e-4 for choices in blind.values())
    conv1 = prepare(tiny, QConfig(None, None, by_name={"conv1": QConfig(weight_scheme(2, 10), None)}))
    with torch.no_grad():
        x = torch.cat([x for x, _ in batches(images)])
        p, q = tiny(x).log_softmax(1), convert(conv1)(x).log_softmax(1)
    divergence = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    assert blind["conv1"][2] == pytest.approx(float(divergence), rel=1e-3)
    shuffled = data.Images(images.pixels, images.labels.flip(0), images.split, images.source)
    assert divergences(label_free_costs(tiny, shuffled, [8, 2], "weight")) == blind  # no label is looked at
    harm = np.argsort(np.argsort([blind[name][2] for name in blind]))
    noise = np.argsort(np.argsort([-found[name][2].output_sqnr_db for name in blind]))
    assert ranks(found, 2)["output_sqnr"] == pytest.approx(np.corrcoef(harm, noise)[0, 1])
    amount = rescue.counted("tiny")
    given = spend(blind, amount.weights, average=5)
    size = sum(amount.weights[name] * bits for name, bits in given.items())
    assert size <= 5 * sum(amount.weights.values()) and set(given.values()) == {2, 8}
    activation = dict.fromkeys(amount.activations, 4)
    chosen = rescue_setting(allocation=allocation(given, activation), ends="same")
    assert {name: each.bits for name, each in JOB.prepared(chosen).weights.items()} == given


def test_an_activation_costs_what_its_layers_read_and_not_its_shortcut(tiny):
    images = data.load("calibration").take(8, seed=0)
    seen = calibrate(prepare(tiny, QConfig(None, activation_scheme(8))), batches(images))
    found = label_free_costs(tiny, images, [2], "activation", seen)
    x, conv3 = torch.cat([x for x, _ in batches(images)]), tiny.get_submodule("conv3")
    grid = seen.activations["add"].with_bits(2).qparams()  # conv3 reads the sum, and so does the next sum

    def anew(layer, args, output):
        return type(layer).forward(layer, fake_quantize(args[0], grid))

    with torch.no_grad():
        p = tiny(x).softmax(1)
        handle = conv3.register_forward_hook(anew)
        q = tiny(x).log_softmax(1)
        handle.remove()
    wanted = float(torch.nn.functional.kl_div(q, p, reduction="batchmean"))
    assert found["add"][2].loss_rise == pytest.approx(wanted, rel=0.01)
    low = prepare(tiny, QConfig(None, activation_scheme(2)))
    for name in low.activations:
        low.set_observer(name, seen.activations[name].with_bits(2))
    own = data.Images(images.pixels, p, images.split, images.source)
    everywhere = {row.layer: row.loss_rise for row in layer_sensitivity(low, own, "activation").layers}
    assert everywhere["conv1"] == pytest.approx(found["conv1"][2].loss_rise, rel=0.01)  # read by layers alone
    assert abs(everywhere["add"] / wanted - 1) > 0.05


def test_a_method_says_on_which_grid_its_weights_lie(tiny):
    found = {
        name: JOB.prepared(rescue_setting(rescue=name, bits_weight=3)).weights["conv2"]
        for name in ("nearest", "nearest_narrow", "nearest_minmax", "balanced_narrow")
    }
    assert {name: each.quant_min for name, each in found.items()} == {
        "nearest": -4, "nearest_narrow": -3, "nearest_minmax": -3, "balanced_narrow": -3,
    }  # fmt: skip
    widest = tiny.get_submodule("conv2").weight.abs().amax((1, 2, 3))
    assert torch.allclose(found["nearest_minmax"].qparams().scale, widest / 3)
    assert (found["nearest_narrow"].qparams().scale < widest / 3).any()
    seen = {
        name: type(JOB.prepared(rescue_setting(observer=name)).activations["conv1"]).__name__
        for name in ("minmax", "aciq")
    }
    assert seen == {"minmax": "MinMaxObserver", "aciq": "AciqObserver"}
