"""The trainer: resumed equals uninterrupted, divergence stops, two processes learn together."""

import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from quantlib.errors import ConfigError, TrainingError
from quantlib.subject import data
from quantlib.subject import trainer as trainer_module
from quantlib.subject.hooks import Hooks
from quantlib.subject.models import build
from quantlib.subject.recipe import Recipe, load_recipe, trained_by
from quantlib.subject.state import Average, save_state
from quantlib.subject.trainer import Trainer
from quantlib.subject.training import main

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = Recipe(
    name="tiny", model="resnet20", stages=((1, 16), (1, 32)), batch_size=32, learning_rate=0.05, cutout=0
)


def trainer(folder: Path, recipe: Recipe = TINY, compile_model: bool = False, **options) -> Trainer:
    images = data.load("calibration").take(96)
    return Trainer(recipe, images, images.take(32), folder, compile_model=compile_model, **options)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([t.flatten().double() for t in model.state_dict().values()])


@pytest.mark.parametrize(("optimizer", "compiling"), [("sgd", False), ("sgd", True), ("muon", False)])
def test_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch, optimizer: str, compiling: bool
) -> None:
    recipe = replace(TINY, optimizer=optimizer)
    # A compiler that changes nothing: what is compared is what its first call leaves behind.
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: torch.nn.Sequential(model))
    trainer = partial(globals()["trainer"], compile_model=compiling)
    whole = trainer(tmp_path / "whole", recipe)
    whole.run()
    for step in (1, 2):
        first = trainer(tmp_path / "parts", recipe)
        first.request_stop()
        with pytest.raises(KeyboardInterrupt):
            first.run()
        assert first.step == step
    second = trainer(tmp_path / "parts", recipe)
    assert second.step == 2
    second.run()
    logs = [pd.read_csv(tmp_path / part / "log.csv").drop(columns="seconds") for part in ("whole", "parts")]
    pd.testing.assert_frame_equal(*logs)  # the mean loss is of all steps of an epoch
    assert torch.equal(weights(whole.model), weights(second.model))
    assert torch.equal(weights(whole.average.model), weights(second.average.model))
    assert (tmp_path / "parts/best.pt").exists()


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    run = trainer(tmp_path, replace(TINY, stages=((12, 16),), warmup=0.1))
    run.run()
    losses = [float(line.split(",")[4]) for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.15


def test_a_start_that_training_only_harms_is_kept(tmp_path: Path) -> None:
    recipe = replace(TINY, start="resnet20", learning_rate=0.5, stages=((1, 32),))
    start = trainer(tmp_path, recipe)
    start.judge(0, 0.0)  # killed before its first state
    run = trainer(tmp_path, recipe)
    run.run()
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert run.best > 80 and torch.equal(best["fc.weight"], start.model.fc.weight)
    assert not torch.equal(best["fc.weight"], run.average.model.fc.weight)
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()]
    assert [row[1] for row in rows] == ["epoch", "0", "1"] and float(rows[1][5]) == run.best


def test_the_start_is_judged_once_and_can_be_published_as_it_is(tmp_path: Path) -> None:
    recipe = replace(TINY, start="resnet20", stages=((1, 32),))
    start = trainer(tmp_path, recipe)
    start.request_stop()
    with pytest.raises(KeyboardInterrupt):
        start.run()
    assert (tmp_path / "state.pt").exists() and start.best > 80
    start.step = 0
    save_state(start)  # as it is when the first epoch has not begun
    trainer(tmp_path, recipe).run()
    rows = [line.split(",")[1] for line in (tmp_path / "log.csv").read_text().splitlines()]
    assert rows == ["epoch", "0", "1"]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    good = trainer(tmp_path)
    good.request_stop()
    with pytest.raises(KeyboardInterrupt):
        good.run()
    bad = trainer(tmp_path)
    with torch.no_grad():
        bad.model.fc.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"not finite at step 2.*learning_rate.*state\.pt"):
        bad.run()
    assert trainer(tmp_path).step == 1


class Ruins(Hooks):
    """Makes a gradient NaN in the last step of the first epoch: the loss was finite, the weights are not."""

    def before_step(self, trainer: Trainer) -> None:
        if trainer.step == trainer.steps_per_epoch - 1:
            trainer.model.conv1.weight.grad.fill_(float("nan"))


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    run = trainer(tmp_path, hooks=Ruins())
    with pytest.raises(TrainingError, match="or the weights after it: lower learning_rate.*by --folder$"):
        run.run()
    assert not (tmp_path / "state.pt").exists() and not (tmp_path / "best.pt").exists()


def test_an_interrupted_run_goes_on_when_it_is_called_again_also_in_a_thread(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.request_stop()
    with pytest.raises(KeyboardInterrupt):
        run.run()
    thread = threading.Thread(target=run.run)
    thread.start()
    thread.join()
    assert run.step == run.total_steps


@pytest.mark.parametrize("torn", ["", "step,epo", "step,epoch\n", "step,epoch\n4,1", "step,epoch\n4,1\n\n"])
def test_a_torn_log_does_not_end_the_run(tmp_path: Path, torn: str) -> None:
    run = trainer(tmp_path)
    run.request_stop()
    with pytest.raises(KeyboardInterrupt):
        run.run()
    (tmp_path / "log.csv").write_text(torn)
    trainer(tmp_path).run()
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0].startswith("step,epoch") and rows[-1].split(",")[1] == str(TINY.epochs)


def test_a_weight_that_two_layers_share_is_averaged_once() -> None:
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    second.weight = first.weight
    model = torch.nn.Sequential(first, second)
    average = Average(model, 0.5)
    with torch.no_grad():
        before = first.weight.clone()
        first.weight.add_(1.0)
    average.update(model)
    torch.testing.assert_close(average.model[0].weight, before + (1 - 2 / 11))


def test_a_state_of_another_recipe_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.request_stop()
    with pytest.raises(KeyboardInterrupt):
        run.run()
    with pytest.raises(TrainingError, match="another recipe"):
        trainer(tmp_path, replace(TINY, seed=1))
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:1000])
    with pytest.raises(TrainingError, match="cannot be read"):
        trainer(tmp_path)


def test_the_command_keeps_its_state_where_make_clean_does_not_look(tmp_path: Path, monkeypatch) -> None:
    images = data.load("calibration").take(64)
    monkeypatch.setattr(data, "load", lambda split, source, root: images)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text('model = "resnet20"\nbatch_size = 32\nstages = [[1, 16]]\n')
    command = ["--recipe", "tiny.toml", "--device", "cpu", "--threads", "1", "--no-compile", "--no-publish"]
    assert main(command) == 0
    kept = {path.name for path in (tmp_path / "cache/quantlib/training/tiny").iterdir()}
    assert kept == {"state.pt", "best.pt", "log.csv"} and not (tmp_path / "build").exists()


def test_cycles_by_hand() -> None:
    recipe = Recipe(name="x", model="resnet20", stages=((10, 32),), warmup=0.2)
    assert [recipe.rate_factor(e) for e in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    two = replace(recipe, stages=((8, 16), (7, 32)), cycles=((10, 1.0), (5, 0.3)))
    assert [two.rate_factor(e) for e in (6, 10, 10.5, 11, 13)] == pytest.approx([0.5, 0, 0.15, 0.3, 0.15])


def test_a_stage_may_cut_out_another_square(tmp_path: Path) -> None:
    recipe = replace(TINY, stages=((1, 16), (1, 32), (1, 32, 12)))
    assert [recipe.stage(epoch) for epoch in (0, 1, 2, 3)] == [(16, 0), (32, 0), (32, 12), (32, 12)]
    run = trainer(tmp_path, recipe)
    images = [run.batch(epoch * run.steps_per_epoch)[0] for epoch in (1, 2)]
    black = [(x == 0).all(1).float().mean().item() for x in images]
    assert black[0] < 0.01 and 0.05 < black[1] <= 144 / 1024


def test_a_finished_run_goes_on_when_its_recipe_gets_another_cycle(tmp_path: Path) -> None:
    longer = replace(TINY, stages=((1, 16), (2, 32)), cycles=((2, 1.0), (1, 0.5)))
    trainer(tmp_path / "parts").run()
    second = trainer(tmp_path / "parts", longer)
    assert second.step == 2 * second.steps_per_epoch
    second.run()
    whole = trainer(tmp_path / "whole", longer)
    whole.run()
    assert torch.equal(weights(whole.model), weights(second.model))
    assert torch.equal(weights(whole.average.model), weights(second.average.model))
    columns = [[line.split(",")[:6] for line in (tmp_path / run / "log.csv").read_text().splitlines()]
               for run in ("whole", "parts")]  # fmt: skip
    assert columns[0] == columns[1] and len(columns[0]) == 4


@pytest.mark.parametrize("other", [
    replace(TINY, seed=1, stages=((1, 16), (2, 32)), cycles=((2, 1.0), (1, 0.5))),
    replace(TINY, stages=((2, 16), (1, 32)), cycles=((2, 1.0), (1, 0.5))),
    replace(TINY, stages=((1, 16), (2, 32)), cycles=((2, 0.9), (1, 0.5))),
    replace(TINY, stages=((1, 16), (2, 32))),
    replace(TINY, stages=((1, 16), (1, 32, 8), (1, 32)), cycles=((2, 1.0), (1, 0.5))),
])  # fmt: skip
def test_what_differs_from_the_start_extends_nothing(other: Recipe) -> None:
    assert not other.extends(TINY) and TINY.extends(TINY)


def test_recipes_are_read_and_unknown_ones_refused(tmp_path: Path) -> None:
    assert load_recipe("resnet50").model == "resnet50"
    with pytest.raises(ConfigError, match="choose one of resnet20, .*resnet50, "):
        load_recipe("resnet99")
    path = tmp_path / "mine.toml"
    path.write_text('model = "resnet20"\nstages = [[1, 32]]\nmomentun = 0.9\n')
    with pytest.raises(ConfigError, match="momentun"):
        load_recipe(str(path))
    path.write_text('model = "resnet20"\nstages = [[3, 32]]\ncycles = [[2, 1.0], [2, 0.3]]\n')
    with pytest.raises(ConfigError, match="as many epochs in all as the stages, 3"):
        load_recipe(str(path))


@pytest.mark.parametrize(("line", "said"), [
    ("stages = 3", "stages are lists of epochs and pixels"),
    ("stages = [[1]]", "stages are lists of epochs and pixels"),
    ("stages = []", "stages are lists of epochs and pixels"),
    ("stages = [[1, 32]]\ncycles = [[1]]", "cycles lists of epochs and a share"),
    ('stages = [[1, 32]]\nlearning_rate = "0.1"', "learning_rate is '0.1'; it must be a number"),
    ("stages = [[1, 32]]\nbatch_size = 12.5", "batch_size is 12.5; it must be a whole number"),
])  # fmt: skip
def test_a_setting_of_the_wrong_kind_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'model = "resnet20"\n{line}\n')
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_recipe(str(path))


def test_a_recipe_of_another_command_is_not_trained_as_a_plain_network(capsys) -> None:
    assert main(["--recipe", "resnet50_lowrank", "--device", "cpu"]) == 1
    assert "is trained by `python -m quantlib.study.tune_lowrank --recipe" in capsys.readouterr().err
    assert trained_by("resnet50") == "" and trained_by("resnet20") == "quantlib.subject.training"


SCRIPT = """
import sys, torch, torch.distributed as dist
from dataclasses import replace
from pathlib import Path
from tests.subject.test_training import TINY
from quantlib.subject import data
from quantlib.subject.trainer import Trainer
torch.set_num_threads(1)
dist.init_process_group("gloo")
images = data.load("calibration").take(96)
recipe = replace(TINY, start="resnet20")
run = Trainer(recipe, images, images.take(32), Path(sys.argv[1]), compile_model=False)
run.run()
total = torch.tensor([float(sum(p.double().sum() for p in run.model.parameters()))], dtype=torch.float64)
both = [torch.zeros_like(total) for _ in range(2)]
dist.all_gather(both, total)
assert both[0] == both[1], both
# A file each: lines that two processes print at once can run into one another.
Path(sys.argv[1] + f"-{run.rank}").write_text(f"batch {len(run.batch(0)[1])}")
"""


def test_two_processes_hold_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, str(tmp_path / "script.py"), str(tmp_path / "run")], cwd=root, text=True,
                          env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
                          capture_output=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"run-{rank}").read_text() for rank in (0, 1)] == ["batch 16", "batch 16"]
    rows = (tmp_path / "run/log.csv").read_text().splitlines()  # a header, the start, two epochs
    assert len(rows) == 4


class KeepHalf(Hooks):
    """Every second weight of the classifier stays zero; counts its calls to prove that it is resumed."""

    def __init__(self) -> None:
        self.calls = 0

    def before_step(self, trainer: Trainer) -> None:
        trainer.model.fc.weight.grad[:, ::2] = 0

    def after_step(self, trainer: Trainer) -> None:
        self.calls += 1
        with torch.no_grad():
            trainer.model.fc.weight[:, ::2] = 0

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


def test_hooks_change_weights_after_each_step_and_are_resumed(tmp_path: Path) -> None:
    run = trainer(tmp_path, hooks=KeepHalf())
    run.network.train()
    run.train_step()
    assert not run.model.fc.weight[:, ::2].any() and run.model.fc.weight[:, 1::2].all()
    run.request_stop()
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.hooks.calls == run.step == 2
    second = trainer(tmp_path, hooks=KeepHalf())
    assert second.hooks.calls == 2
    second.run()
    assert second.hooks.calls == second.step == 6
    # The average still holds a trace of the random start, and nothing else.
    assert second.average.model.fc.weight[:, ::2].abs().max() < run.model.fc.weight.abs().max()


def test_a_loss_of_the_hooks_replaces_cross_entropy(tmp_path: Path) -> None:
    class Constant(Hooks):
        def loss(self, trainer, logits, images, labels):
            assert images.shape == (32, 3, 16, 16) and labels.shape == (32,)
            return logits.sum() * 0 + 7

    run = trainer(tmp_path, hooks=Constant())
    run.network.train()
    assert run.train_step() == 7


def test_training_starts_from_a_given_model_or_from_a_checkpoint(tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(5)
    given = build("resnet20")
    before = given.fc.weight.clone()
    assert torch.equal(trainer(tmp_path / "given", model=given).model.fc.weight, before)
    asked = []
    monkeypatch.setattr(trainer_module, "load_checkpoint", lambda name: asked.append(name) or given)
    assert trainer(tmp_path / "start", replace(TINY, start="resnet20")).model is given
    assert asked == ["resnet20"]


def test_an_epoch_that_is_done_again_is_logged_once(tmp_path: Path) -> None:
    first = trainer(tmp_path)
    first.run()
    whole = (tmp_path / "log.csv").read_text()
    first.log.append({**dict.fromkeys(whole.splitlines()[0].split(","), 0), "step": first.step + 3})
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    trainer(tmp_path)  # a kill came between log and state
    assert (tmp_path / "log.csv").read_text() == whole


def test_a_recipe_that_lacks_something_says_what(tmp_path: Path) -> None:
    (tmp_path / "bare.toml").write_text("seed = 1")
    with pytest.raises(ConfigError, match="bare.toml lacks model and stages"):
        load_recipe(str(tmp_path / "bare.toml"))


class PowerCut(Hooks):
    """The machine stops in the middle of the second step: nothing asks the run to stop."""

    def after_step(self, trainer: Trainer) -> None:
        if trainer.step == 1:
            raise RuntimeError("power cut")


@pytest.mark.parametrize(("save_seconds", "kept"), [(0.0, 1), (1e9, 0)])
def test_a_run_that_dies_within_an_epoch_goes_on_from_its_last_save(
    tmp_path: Path, monkeypatch, save_seconds: float, kept: int
) -> None:
    monkeypatch.setattr(trainer_module, "CHECK_EVERY", 1)
    first = trainer(tmp_path / "parts", hooks=PowerCut(), save_seconds=save_seconds)
    with pytest.raises(RuntimeError, match="power cut"):
        first.run()
    second, whole = trainer(tmp_path / "parts"), trainer(tmp_path / "whole")
    assert second.step == kept
    second.run()
    whole.run()
    assert torch.equal(weights(whole.model), weights(second.model))
    assert torch.equal(weights(whole.average.model), weights(second.average.model))


@pytest.mark.parametrize("last", [1, 3, 5, 6])  # three steps an epoch: 3 and 6 are the last of one
def test_wherever_a_run_is_stopped_it_ends_with_the_same_best_and_log(
    tmp_path: Path, monkeypatch, last: int
) -> None:
    whole, step = trainer(tmp_path / "whole"), Trainer.train_step
    whole.run()

    def stopped(run: Trainer) -> torch.Tensor:
        run.stop = run.step + 1 == last
        return step(run)

    monkeypatch.setattr(Trainer, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "parts").run()
    monkeypatch.setattr(Trainer, "train_step", step)
    again = trainer(tmp_path / "parts")
    assert again.step == last
    again.run()
    assert torch.equal(weights(whole.model), weights(again.model)) and again.best == whole.best
    best = [torch.load(tmp_path / run / "best.pt", weights_only=True) for run in ("whole", "parts")]
    assert all(torch.equal(tensor, best[1][name]) for name, tensor in best[0].items())
    # Not the loss: that of an interrupted epoch is the mean of the steps since.
    rows = [(tmp_path / run / "log.csv").read_text().splitlines() for run in ("whole", "parts")]
    whole_log, parts_log = (
        [[row.split(",")[place] for place in (0, 1, 2, 3, 5)] for row in log] for log in rows
    )
    assert whole_log == parts_log


def test_the_average_follows_its_recurrence() -> None:
    """Exactly: in the first steps the cap (1 + t) / (10 + t) holds, from the eighth on the decay."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average, wanted = Average(model, 0.5), Fraction(0)
    for t in range(1, 20):
        with torch.no_grad():
            model.weight.fill_(t)
        average.update(model)
        decay = min(Fraction(1, 2), Fraction(1 + t, 10 + t))
        wanted = decay * wanted + (1 - decay) * t
    assert average.model.weight.item() == pytest.approx(float(wanted), rel=1e-6)


def test_label_smoothing_by_hand() -> None:
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2])
    told = SimpleNamespace(recipe=replace(TINY, label_smoothing=0.1))
    logs = logits.log_softmax(1)
    wanted = -(0.9 * logs[[0, 1], labels] + 0.1 * logs.mean(1)).mean()
    torch.testing.assert_close(Hooks().loss(told, logits, logits, labels), wanted)
