"""Masked retraining: dropped weights stay zero, resumed equals uninterrupted, the best is sparse."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quantlib.compression import repair, retraining
from quantlib.compression.distillation import Taught
from quantlib.compression.pruning import magnitude_masks, masks_of, prunable, sparsity_of
from quantlib.compression.retraining import MaskedRetraining, Pruning, load_pruning_recipe, retrain
from quantlib.compression.student_plans import load_plan as load_students
from quantlib.compression.tickets import load_plan as load_tickets
from quantlib.errors import ConfigError, TrainingError
from quantlib.subject import checkpoints, data, training
from quantlib.subject import publish as publishing
from quantlib.subject.benchmark import machine
from quantlib.subject.models import build
from quantlib.subject.recipe import Recipe
from quantlib.subject.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = Recipe(
    name="tiny", model="resnet20", stages=((3, 12),), batch_size=32, learning_rate=0.05, cutout=0, warmup=0.2
)
GRADUAL = Pruning(final=0.8, until=0.6, every=2)
IMAGES = data.load("calibration").take(128)  # four steps an epoch
HELD = IMAGES.take(32)


def trainer(folder: Path, recipe: Recipe, hooks: MaskedRetraining) -> Trainer:
    made = Trainer(recipe, IMAGES, HELD, folder, hooks=hooks, compile_model=False)
    hooks.begin(made)
    made.network.train()
    return made


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([t.flatten().double() for t in model.state_dict().values()])


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_dropped_weights_never_move_and_no_momentum_gathers(tmp_path: Path, optimizer: str) -> None:
    masks = magnitude_masks(build("resnet20"), 0.7)
    hooks = MaskedRetraining(masks=masks)
    run = trainer(tmp_path, replace(TINY, optimizer=optimizer), hooks)
    for _ in range(3):
        run.train_step()
    for name, weight in prunable(run.model).items():
        assert not weight[~masks[name]].any() and bool((weight[masks[name]] != 0).all()), name
        for part, _ in run.optimizers.parts:
            for state in (part.state.get(weight, {}),):
                for value in state.values():
                    if torch.is_tensor(value) and value.shape == weight.shape:
                        assert not value[~masks[name]].any(), name
    for name, weight in prunable(run.average.model).items():
        assert not weight[~masks[name]].any(), name


def test_the_kept_weights_step_as_plain_sgd_on_masked_gradients(tmp_path: Path) -> None:
    recipe = replace(TINY, momentum=0.9, weight_decay=0.01, warmup=0.0)
    hooks = MaskedRetraining(masks=magnitude_masks(build("resnet20"), 0.5))
    run = trainer(tmp_path, recipe, hooks)
    run.autocast = False
    before = run.model.conv1.weight.detach().clone()
    x, y = run.batch(0)
    run.network(x)  # statistics do not matter for the gradient in train mode
    loss = hooks.loss(run, run.network(x).float(), x, y)
    (gradient,) = torch.autograd.grad(loss, [run.model.conv1.weight])
    run.train_step()
    mask = hooks.masks["conv1.weight"]
    direction = 1.9 * (gradient * mask + 0.01 * before)  # first Nesterov step: (1 + momentum) g
    torch.testing.assert_close(run.model.conv1.weight.detach(), before - 0.05 * direction * mask)


def test_gradual_pruning_follows_its_schedule_and_arrives(tmp_path: Path) -> None:
    hooks = MaskedRetraining(GRADUAL)
    run = trainer(tmp_path, TINY, hooks)
    seen, masks = [], dict(hooks.masks)
    for step in range(run.total_steps):
        run.train_step()
        seen.append(hooks.sparsity)
        assert sparsity_of(masks_of(run.model)) == pytest.approx(seen[-1], abs=1e-3)
        assert not any((hooks.masks[name] & ~masks[name]).any() for name in masks), step
        masks = dict(hooks.masks)
    wanted = [GRADUAL.schedule((step + 1) / 12) for step in range(12)]
    for step, (got, want) in enumerate(zip(seen, wanted, strict=True)):
        if (step + 1) % 2 == 0 or step >= 7:  # looked at every second step, and once it has arrived
            assert got == pytest.approx(want, abs=1e-4), step
    assert seen[-1] == pytest.approx(0.8, abs=1e-5)


def test_resumed_run_equals_an_uninterrupted_one_and_the_best_is_sparse(tmp_path: Path) -> None:
    whole = retrain(TINY, IMAGES, HELD, tmp_path / "whole", pruning=GRADUAL, compile_model=False)
    hooks = MaskedRetraining(GRADUAL)
    first = trainer(tmp_path / "parts", TINY, hooks)
    for _ in range(5):
        first.train_step()
    first.request_stop()
    with pytest.raises(KeyboardInterrupt):
        first.run()
    again = retrain(TINY, IMAGES, HELD, tmp_path / "parts", pruning=GRADUAL, compile_model=False)
    assert torch.equal(flat(whole), flat(again))
    assert sparsity_of(masks_of(again)) == pytest.approx(0.8, abs=1e-4)
    assert torch.equal(
        flat(retrain(TINY, IMAGES, HELD, tmp_path / "parts", compile_model=False)), flat(again)
    )


def test_recipes_are_complete_and_mistakes_are_named(tmp_path: Path) -> None:
    for name, final in (("resnet50_pruned90", 0.9), ("resnet50_pruned95", 0.95)):
        recipe, pruning = load_pruning_recipe(name)
        assert recipe.model == "resnet50" and pruning.final == final and recipe.start.startswith("resnet50")
        assert pruning.schedule(0.0) == final and pruning.repair and pruning.teacher == "resnet50"
    with pytest.raises(ConfigError, match=r"no \[pruning\] table; these have one: .*resnet50_pruned90"):
        load_pruning_recipe("resnet50")
    path = tmp_path / "mine.toml"
    path.write_text('model = "resnet20"\nstages = [[1, 32]]\n[pruning]\nfinal = 0.5\nspeed = 1\n')
    with pytest.raises(ConfigError, match="speed"):
        load_pruning_recipe(str(path))
    path.write_text('model = "resnet20"\nstages = [[1, 32]]\n[pruning]\nrepair = 3\n')
    with pytest.raises(ConfigError, match="lacks final"):
        load_pruning_recipe(str(path))
    with pytest.raises(ConfigError, match="pruning"):
        training.load_recipe("resnet50_pruned90")


def test_a_run_from_a_snapshot_finds_its_masks_again(tmp_path: Path) -> None:
    """A snapshot brings the weights, zeros and all, but nothing of the hooks."""
    hooks = MaskedRetraining(Pruning(final=0.8, kind="one_shot"))
    run = trainer(tmp_path, TINY, hooks)
    run.train_step()
    other = Trainer(TINY, IMAGES, HELD, tmp_path / "other", compile_model=False)
    other.model.load_state_dict(run.model.state_dict())
    other.step, other.hooks = 1, MaskedRetraining(Pruning(final=0.8, kind="one_shot"))
    other.hooks.begin(other)
    other.network.train()
    other.train_step()
    assert all(torch.equal(other.hooks.masks[name], mask) for name, mask in hooks.masks.items())
    assert sparsity_of(masks_of(other.model)) == pytest.approx(0.8, abs=1e-4)


def test_the_command_retrains_and_publishes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(data, "load", lambda split, source, root: IMAGES)
    folder = tmp_path / "checkpoints"
    for module in (checkpoints, publishing):
        monkeypatch.setattr(module, "ROOT", folder)
    monkeypatch.setattr(publishing, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    checkpoints.save_checkpoint(build("resnet20"), "resnet20_cifar10", {"model": "resnet20", "status": "new"})
    path = tmp_path / "tiny90.toml"
    path.write_text(
        'model = "resnet20"\nstart = "resnet20"\nbatch_size = 32\nstages = [[1, 12]]\n'
        '[pruning]\nfinal = 0.9\nuntil = 0.5\nevery = 1\nteacher = "resnet20"\n'
    )
    asked = []
    monkeypatch.setattr(retraining, "Taught", lambda net, **how: asked.append(how) or Taught(net, **how))
    command = ["--recipe", str(path), "--folder", str(tmp_path / "run"), "--device", "cpu",
               "--threads", "1", "--no-compile"]  # fmt: skip
    assert training.main(command, run=retraining.run) == 0 and asked == [{"weight": 0.5, "mix": 0.0}]
    entry = json.loads((folder / "index.json").read_text())["tiny90_cifar10"]
    assert entry["sparsity"] == pytest.approx(0.9, abs=1e-3) and entry["status"] == "new"
    assert entry["pruning"]["final"] == 0.9 and entry["metrics"]["test_n"] == 128
    assert (tmp_path / "results/11_training_log_tiny90.csv").read_text().startswith("step,epoch")
    left = round(0.1 * sum(w.numel() for w in prunable(build("resnet20")).values()))
    assert f"{left:,} of" in (folder / "tiny90_cifar10.md").read_text()
    assert f"hours on {machine()['cpu']}" in (folder / "tiny90_cifar10.md").read_text()
    loaded = checkpoints.load_checkpoint("tiny90", folder)
    assert sparsity_of(masks_of(loaded)) == pytest.approx(0.9, abs=1e-3)

    assert training.main([*command, "--notebook", "14"], run=retraining.run) == 0
    assert (tmp_path / "results/14_training_log_tiny90.csv").exists()

    # Trained on another computer, published on this one: card and log name the one that trained.
    state = torch.load(tmp_path / "run/state.pt", weights_only=False)
    elsewhere = {"cpu": "other CPU", "torch": "9.9", "python": "9.9.9"}
    state["made_on"] = {"device": "cuda: GPU of ours", "machine": elsewhere}
    torch.save(state, tmp_path / "run/state.pt")
    assert training.main(command, run=retraining.run) == 0
    card, log = folder / "tiny90_cifar10.md", tmp_path / "results/11_training_log_tiny90.json"
    assert "hours on GPU of ours" in card.read_text() and "torch 9.9, Python 9.9.9" in card.read_text()
    origin = json.loads(log.read_text())
    assert origin["device"] == "cuda: GPU of ours" and origin["versions"] == {"torch": "9.9"}


def test_blocks_learn_before_the_retraining_and_only_once(tmp_path: Path, monkeypatch) -> None:
    """The repaired network is what the training starts from, already as sparse as asked, and is kept."""
    monkeypatch.setattr(data, "load", lambda split, source, root: IMAGES)
    path, taught = tmp_path / "tiny80.toml", []
    path.write_text(
        'model = "resnet20"\nstart = "resnet20"\nbatch_size = 32\nstages = [[1, 12]]\n'
        '[pruning]\nfinal = 0.8\nkind = "one_shot"\nrepair = 2\nrepair_images = 64\n'
    )
    teach = repair.teach_blocks

    def counted(*arguments, **named):
        taught.append(len(arguments[2]))
        return teach(*arguments, **named)

    monkeypatch.setattr(repair, "teach_blocks", counted)
    command = ["--recipe", str(path), "--folder", str(tmp_path / "run"), "--device", "cpu",
               "--threads", "1", "--no-compile", "--no-publish"]  # fmt: skip
    seen: list[torch.Tensor] = []
    begin = MaskedRetraining.begin
    monkeypatch.setattr(
        MaskedRetraining, "begin", lambda self, t: (begin(self, t), seen.append(flat(t.model)))
    )
    assert training.main(command, run=retraining.run) == 0
    kept = torch.load(tmp_path / "run/start.pt", weights_only=True)
    start = build("resnet20")
    start.load_state_dict(kept["state"])
    assert torch.equal(seen[0], flat(start))
    assert sparsity_of(masks_of(start)) == pytest.approx(0.8, abs=1e-4)
    assert training.main(command, run=retraining.run) == 0 and taught == [64]

    path.write_text(path.read_text().replace("repair = 2", "repair = 3"))
    assert training.main(command, run=retraining.run) == 1 and taught == [64]


def test_repair_needs_a_cut_at_once() -> None:
    with pytest.raises(ConfigError, match="one_shot"):
        Pruning(final=0.5, repair=10)


def test_mixed_images_need_a_teacher() -> None:
    assert Pruning(final=0.5, mix=1.0, teacher="resnet20").mix == 1.0
    for wrong in ({"mix": 1.0}, {"mix": -0.5, "teacher": "resnet20"}):
        with pytest.raises(ConfigError, match="mix is 0, or above it with a teacher"):
            Pruning(final=0.5, **wrong)


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    """Or the run would go on with the old masks and be called by the new share."""
    half = Pruning(final=0.5, kind="one_shot")
    retrain(TINY, IMAGES, HELD, tmp_path, pruning=half, compile_model=False)
    with pytest.raises(TrainingError, match="was pruned by .*'final': 0.5.*not by .*'final': 0.9.*--folder"):
        retrain(TINY, IMAGES, HELD, tmp_path, pruning=replace(half, final=0.9), compile_model=False)


@pytest.mark.parametrize("load, text, said", [
    (load_pruning_recipe, '[pruning]\nfinal = "0.9"', r"\[pruning\] of mine.toml has a setting of the wr"),
    (load_pruning_recipe, "pruning = 3", r"no \[pruning\] table"),
    (load_tickets, "[tickets]\ndeciding = 0.5", r"\[tickets\] of mine.toml has a setting of the wrong kind"),
    (load_students, '[students]\nseeds = 3\narms = [{name = "a"}]', r"\[students\] of mine.toml has"),
    (training.load_recipe, "batch_size = 0", "batch_size is 0; it must be at least 1"),
])  # fmt: skip
def test_a_setting_of_the_wrong_kind_is_one_sentence(tmp_path: Path, load, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'model = "resnet20"\nstages = [[1, 32]]\n{text}\n')
    with pytest.raises(ConfigError, match=said):
        load(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(str(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="there is no recipe"):
        load(str(path))
