"""Share, train, write: the file has the size that was asked for, a second call goes on, the list says so."""

import copy

import torch

from quantlib.compression.archive import decompress
from quantlib.compression.codebook import weights_of
from quantlib.compression.compressed import compressed_files
from quantlib.study import tune_shared
from quantlib.subject import data
from quantlib.subject.models import build

RECIPE = """
model = "resnet20"
start = "resnet20"
batch_size = 16
learning_rate = 0.001
stages = [[1, 16]]

[free]
epochs = 2
learning_rate = 0.01
every = 1
"""


def test_what_cannot_be_is_refused(tmp_path, monkeypatch, capsys):
    recipe, command = tmp_path / "tiny.toml", ["--folder", str(tmp_path), "--megabytes", "1"]
    for change, told in (
        (("every = 1", "every = 0"), "whole numbers of 1 or more"),
        (("epochs = 2", 'epochs = "2"'), "whole numbers of 1 or more"),
        (("epochs = 2", ""), "lacks epochs, how many"),
        (("[free]", 'optimizer = "muon"\n[free]'), 'shared values need "sgd"'),
        (("", ""), "without torchrun"),
    ):
        recipe.write_text(RECIPE.replace(*change))
        if change == ("", ""):
            monkeypatch.setenv("WORLD_SIZE", "2")
        assert tune_shared.main(["--recipe", str(recipe), *command]) == 1
        assert told in capsys.readouterr().err


def interrupted(*given):
    raise KeyboardInterrupt


def test_shared_tuned_resumed_and_listed(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    original, images = build("resnet20").eval(), data.load("calibration").take(32)
    monkeypatch.setattr(tune_shared.checkpoints, "load_checkpoint", lambda name: copy.deepcopy(original))
    facts = {"model": "resnet20", "sha256": "abc"}
    monkeypatch.setattr(tune_shared.checkpoints, "checkpoint_info", lambda name: facts)
    monkeypatch.setattr(tune_shared.data, "load", lambda split, source, root=None: images)
    recipe, into = tmp_path / "tiny.toml", tmp_path / "checkpoints"
    recipe.write_text(RECIPE)
    command = ["--recipe", str(recipe), "--folder", str(tmp_path / "state"), "--into", str(into)]
    command += ["--threads", "1", "--images", "16", "--validation", "16", "--start", "resnet20"]
    command += ["--megabytes", "0.07", "--clusters", "8", "--free", "1"]
    assert compressed_files(into) == {}
    with monkeypatch.context() as stopped:  # in its free epochs, before there is any shared.pt
        stopped.setattr(tune_shared, "freely", interrupted)
        assert tune_shared.main(command) == 130
        for other, told in (("clusters", "8"), ("megabytes", "0.07"), ("limit", "None")):
            assert tune_shared.main([*command, f"--{other}", "4"]) == 1
            assert f"{other} {told}" in capsys.readouterr().err
        recipe.write_text(RECIPE.replace("batch_size = 16", "batch_size = 8"))
        assert tune_shared.main(command) == 1 and "recipe_batch_size 16" in capsys.readouterr().err
        recipe.write_text(RECIPE)
    assert tune_shared.main(command) == 0
    first = (into / "resnet20_0.07mb.qldc").read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(tune_shared, "freely", None)  # must not be needed again
    assert tune_shared.main(command) == 0
    assert "from step 2; state" in capsys.readouterr().out
    for other, told in (("--clusters", "clusters 8"), ("--free", "free_epochs 1"), ("--limit", "limit None")):
        assert tune_shared.main([*command, other, "4"]) == 1
        assert told in capsys.readouterr().err
    entry = compressed_files(into)["resnet20_0.07mb"]
    assert entry["epochs"] == 1 and entry["teacher"] == "resnet20"  # the trained network of the same kind
    assert entry["free_epochs"] == 1 and entry["free_learning_rate"] == 0.01 and entry["recipe"] == "tiny"
    assert entry["bytes"] == len(first) and 70_000 < len(first) < 80_000
    assert (into / entry["file"]).read_bytes() == first
    network = decompress(into / entry["file"])
    distinct = {name: len(weight.unique()) for name, weight in weights_of(network).items()}
    assert max(distinct.values()) <= 9
    freed = torch.load(tmp_path / "state/free/state.pt", weights_only=False)["average"]
    behind = freed["layer1.0.conv1.parametrizations.weight.original"]
    kept = torch.load(tmp_path / "state/shared.pt", weights_only=True)
    assert torch.equal(kept["state"]["layer1.0.conv1.weight"], behind)  # the last average, and it has moved
    assert len(behind.unique()) > 1000 and not torch.equal(behind, original.layer1[0].conv1.weight)
    codebook, index = kept["shares"]["layer1.0.conv1"]
    assert torch.corrcoef(torch.stack([codebook[index.long()].flatten(), behind.flatten()]))[0, 1] > 0.8
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all(norm.running_mean.count_nonzero() == 0 for norm in norms)
