"""A factorized checkpoint comes back as it was, and what is none is refused."""

import json

import pytest
import torch

from quantlib.compression.factorized import Plan, factorize
from quantlib.compression.lowrank_file import load_factorized, plain
from quantlib.errors import CheckpointError
from quantlib.subject.checkpoints import save_checkpoint
from quantlib.subject.models import build

PLANS = {"layer1.0.conv1": Plan("channel", 8), "layer2.0.conv1": Plan("tucker2", (16, 8))}


def test_a_factorized_checkpoint_comes_back(tmp_path):
    model = factorize(build("resnet20").eval(), PLANS)
    save_checkpoint(model, "small", {"model": "resnet20", "plans": plain(PLANS)}, tmp_path)
    loaded, x = load_factorized("small", tmp_path), torch.randn(2, 3, 32, 32)
    assert not loaded.training
    torch.testing.assert_close(loaded(x), model.half().float()(x), rtol=1e-4, atol=1e-5)


def test_refusals(tmp_path):
    save_checkpoint(build("resnet20"), "whole", {"model": "resnet20"}, tmp_path)
    with pytest.raises(CheckpointError, match="whole is not factorized"):
        load_factorized("whole", tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    index["whole"]["plans"] = plain(PLANS)
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_factorized("whole", tmp_path)
