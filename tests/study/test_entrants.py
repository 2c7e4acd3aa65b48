"""Entrants of the scoreboard: files as large as they say, the same predictions, sentences for the missing."""

import pytest
import torch

from quantlib.errors import ConfigError
from quantlib.study.entrants import ENTRANTS, Answering, Shelf, line_up
from quantlib.study.figures import nb19
from quantlib.subject import data
from quantlib.subject.checkpoints import shipped_file


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    images = data.load("calibration").take(16)
    return Shelf(lambda name, load: load(name), shipped_file, images, tmp_path_factory.mktemp("shelf"))


def test_every_family_has_a_look():
    assert {family for family, _ in ENTRANTS.values()} == set(nb19.FAMILY)


def test_a_small_network_in_float_and_in_integers(shelf):
    found, missing = line_up(shelf, ["resnet20", "resnet20_w8a8", "resnet20_w4a8", "deep50"])
    assert found["resnet20"].bytes == 4 * 272_474
    assert 0.27e6 < found["resnet20_w8a8"].bytes < 0.33e6
    assert found["resnet20_w4a8"].bytes < 0.7 * found["resnet20_w8a8"].bytes
    x, labels = next(data.batches(data.load("test").take(64), 64))
    with torch.no_grad():
        says = {name: entry.network(x).argmax(1) for name, entry in found.items()}
    assert (says["resnet20"] == labels).float().mean() > 0.8
    assert (says["resnet20"] == says["resnet20_w8a8"]).float().mean() > 0.9
    assert "deep50" in missing or found["deep50"].bytes < 2e6


def test_what_is_not_there_is_named_and_stops_nothing(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr("quantlib.subject.checkpoints.ROOT", tmp_path)
    found, missing = line_up(shelf, ["deep80", "w4a4_rescued", "squeezenet"])
    assert not found and set(missing) == {"deep80", "w4a4_rescued", "squeezenet"}
    assert "resnet50_deep80.qldc is not recorded yet" in missing["deep80"]
    with pytest.raises(ConfigError, match="resnet20"):
        line_up(shelf, ["resnet21"])


def test_a_runtime_answers_as_a_module():
    assert Answering(lambda x: x.numpy() * 2)(torch.ones(2, 3)).sum() == 12
