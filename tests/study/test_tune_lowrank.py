"""Factorize and tune: the budget holds, a second call goes on from what the first one kept."""

import torch

from quantlib.compression import repair
from quantlib.compression.costs import convolution_macs
from quantlib.compression.lowrank_file import from_plain
from quantlib.compression.ranks import convolutions
from quantlib.compression.windows import input_sizes
from quantlib.study import tune_lowrank
from quantlib.subject import data
from quantlib.subject.models import build

RECIPE = """
model = "resnet20"
start = "resnet20"
batch_size = 16
learning_rate = 0.001
stages = [[1, 16]]
"""


def all_macs(model):
    """Multiply-adds of the layers that can be factorized, factors counted with their layer."""
    whole, image = build("resnet20").eval(), torch.zeros(1, 3, 32, 32)
    sizes = input_sizes(whole, image, list(convolutions(whole)))
    return sum(convolution_macs(model.get_submodule(name), size) for name, size in sizes.items())


def test_factorized_under_the_budget_tuned_resumed_and_published(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    original, images = build("resnet20").eval(), data.load("calibration").take(32)
    published = []
    monkeypatch.setattr(tune_lowrank, "load_checkpoint", lambda name: original)
    monkeypatch.setattr(tune_lowrank.data, "load", lambda split, source, root=None: images)
    monkeypatch.setattr(tune_lowrank, "publish", lambda *given, **more: published.append((*given, more)))
    recipe, folder = tmp_path / "tiny.toml", tmp_path / "state"
    recipe.write_text(RECIPE)
    command = ["--recipe", str(recipe), "--folder", str(folder), "--threads", "1", "--no-compile"]
    command += ["--images", "16", "--repair", "2", "--share", "0.6"]
    assert tune_lowrank.main([*command, "--no-publish"]) == 0 and not published
    assert "fc: relative error" in capsys.readouterr().out
    monkeypatch.setattr(tune_lowrank, "factorize_under", None)  # must not be needed again
    monkeypatch.setattr(repair, "teach_blocks", None)
    assert tune_lowrank.main(command) == 0
    assert "from step 2; state" in capsys.readouterr().out
    assert tune_lowrank.main([*command[:-1], "0.5"]) == 1
    assert "was made with share 0.6" in capsys.readouterr().err
    assert tune_lowrank.main([*command, "--repair", "3"]) == 1
    assert "repair 2; give --folder" in capsys.readouterr().err
    _, _, about = published[0]
    assert about["notebook"] == "17"
    tuned = about["network"]
    tuned.load_state_dict(torch.load(folder / "best.pt", weights_only=True))
    assert 0.4 < all_macs(tuned) / all_macs(original) <= 0.6
    assert "--share 0.6 --images 16 --repair 2" in about["about"]["origin"]
    for name, plan in from_plain(about["about"]["plans"]).items():
        assert len(tuned.get_submodule(name)) == (3 if plan.method == "tucker2" else 2)


def test_an_unknown_recipe_is_one_sentence(capsys):
    assert tune_lowrank.main(["--recipe", "nothing"]) == 1
    assert "there is no recipe 'nothing'" in capsys.readouterr().err
