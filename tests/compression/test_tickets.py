"""Tickets: who starts from what, which runs wait for which, and runs that are killed and go on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from quantlib.compression import ticket_runs
from quantlib.compression.pruning import masks_of, prunable
from quantlib.compression.ticket_runs import evaluation_of, finished, main, run_plan, run_trial
from quantlib.compression.tickets import ARMS, TicketPlan, Trial, initial, load_plan, start_of, trained
from quantlib.errors import ConfigError
from quantlib.subject.evaluation import Evaluation, compare, compare_seeds
from quantlib.subject.recipe import Recipe
from quantlib.subject.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")  # as in the runs side by side: last bits depend on it
RECIPE = Recipe(
    name="tiny", model="resnet20", stages=((2, 8),), batch_size=32, learning_rate=0.05, cutout=0, crop=1
)
PLAN = TicketPlan(RECIPE, deciding=(0.5, 0.25), rewind=0.25, source="slice", images=(64, 32, 50), side=8)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in prunable(model).items()}


def equal(a, b, where=None) -> bool:
    return all(torch.equal(a[k][where[k]] if where else a[k], b[k][where[k]] if where else b[k]) for k in a)


@pytest.fixture(scope="module")
def root(one_thread, tmp_path_factory) -> Path:
    """The whole plan, run once in this process."""
    folder = tmp_path_factory.mktemp("tickets")
    results = list(run_plan(PLAN, folder))
    assert [(r["arm"], r["left"]) for r in results] == [(t.arm, t.left) for t in PLAN.trials()]
    return folder


def test_the_plan_counts_its_runs_and_orders_them() -> None:
    plan = load_plan("resnet20_ticket")
    trials = plan.trials()
    assert len(trials) == len(set(trials)) == 3 + 3 * 3 * 5 + 5
    for place, trial in enumerate(trials):
        assert plan.needs(trial) <= set(trials[:place]), trial
    assert plan.before(Trial("reinitialized", 0.1, 2)) == Trial("ticket", 0.2, 2)
    assert plan.before(Trial("retrained", 0.05, 1)) == Trial("retrained", 0.1, 1)
    assert plan.before(Trial("rewound", 0.2, 1)) == Trial("dense", 1.0, 1) == Trial("dense", 1, 1)
    assert plan.before(Trial("ticket", 0.5, 0)) == Trial("dense", 1.0, 0)


def test_each_arm_starts_from_what_it_says(root: Path) -> None:
    first, other = weights(initial("resnet20", 0)), weights(initial("resnet20", 1000))
    dense = trained(PLAN, Trial("dense", 1.0, 0), root)
    early = trained(PLAN, Trial("dense", 1.0, 0), root, "rewind.pt")
    starts = {arm: start_of(PLAN, Trial(arm, 0.5, 0), root) for arm in ARMS}
    wanted = {"ticket": first, "rewound": weights(early), "retrained": weights(dense),
              "reinitialized": other, "random_mask": first}  # fmt: skip
    for arm, (model, masks) in starts.items():
        assert equal(weights(model), wanted[arm]), arm
        assert sum(int(m.sum()) for m in masks.values()) == round(
            0.5 * sum(m.numel() for m in masks.values())
        )
    own, shuffled = starts["ticket"][1], starts["random_mask"][1]
    assert equal(own, starts["reinitialized"][1]) and equal(own, starts["retrained"][1])
    assert not equal(own, shuffled)
    assert all(int(own[name].sum()) == int(shuffled[name].sum()) for name in own)
    largest = torch.cat([w.abs().flatten() for w in weights(dense).values()]).topk(int(sum(
        m.sum() for m in own.values()))).values.min()  # fmt: skip
    assert all(bool((weights(dense)[name][own[name]].abs() >= largest).all()) for name in own)


def test_the_dense_run_is_remembered_after_a_share_of_its_steps(root: Path, tmp_path: Path) -> None:
    images = [ticket_runs.images(PLAN, split) for split in ("train", "validation")]
    again = Trainer(RECIPE, *images, tmp_path, model=initial("resnet20", 0), compile_model=False)
    again.network.train()
    again.train_step()  # a quarter of four
    early = trained(PLAN, Trial("dense", 1.0, 0), root, "rewind.pt")
    assert equal(weights(again.model), weights(early))


def test_second_cuts_lie_within_the_first(root: Path) -> None:
    for arm in ("ticket", "rewound", "retrained"):
        half, quarter = (masks_of(trained(PLAN, Trial(arm, left, 0), root)) for left in (0.5, 0.25))
        assert not any((quarter[name] & ~half[name]).any() for name in half)
    sparsities = {(r["arm"], r["left"]): r["sparsity"] for r in finished(PLAN, root)}
    assert all(s == pytest.approx(1 - left, abs=1e-3) for (_, left), s in sparsities.items())


def test_a_killed_run_goes_on_and_ends_the_same(root: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("dense-1-0",):
        (tmp_path / name).symlink_to(root / name)
    trial, step = Trial("rewound", 0.5, 0), Trainer.train_step

    def killed(trainer: Trainer) -> torch.Tensor:
        trainer.stop = trainer.step == 2
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run_trial(PLAN, trial, tmp_path)
    monkeypatch.setattr(Trainer, "train_step", step)
    assert not (tmp_path / trial.name / "result.json").exists()
    again = run_trial(PLAN, trial, tmp_path)
    whole = json.loads((root / trial.name / "result.json").read_text())
    assert again["predictions"] == whole["predictions"] and len(again["predictions"]) == 50
    assert equal(weights(trained(PLAN, trial, root)), weights(trained(PLAN, trial, tmp_path)))
    assert evaluation_of(PLAN, again).n == 50


@pytest.mark.slow
def test_two_processes_give_what_one_gives(root: Path, tmp_path: Path) -> None:
    plan = TicketPlan(RECIPE, (0.5,), arms=("ticket", "retrained"), rewind=0.25, source="slice",
                images=(64, 32, 50), side=8)  # fmt: skip
    results = {(r["arm"], r["left"]): r["predictions"] for r in run_plan(plan, tmp_path, workers=2)}
    alone = {(r["arm"], r["left"]): r["predictions"] for r in finished(PLAN, root)}
    assert len(results) == 3 and all(alone[key] == value for key, value in results.items())
    assert len(list(run_plan(plan, tmp_path, workers=2))) == 3


def test_another_plan_has_another_folder_and_mistakes_have_their_sentence(tmp_path: Path) -> None:
    assert load_plan("resnet20_ticket").folder() != load_plan("resnet20_ticket", seeds=[0]).folder()
    with pytest.raises(ConfigError, match="borrow the masks"):
        TicketPlan(RECIPE, (0.5,), arms=("random_mask",))
    with pytest.raises(ConfigError, match="shares left"):
        TicketPlan(RECIPE, (1.5,))
    with pytest.raises(ConfigError, match="luck"):
        load_plan("resnet20_ticket", luck=7)
    path = tmp_path / "mine.toml"
    path.write_text('model = "resnet20"\nstages = [[1, 32]]\n[tickets]\nseeds = [0]\n')
    with pytest.raises(ConfigError, match="lacks deciding"):
        load_plan(str(path))
    assert main(["--recipe", "resnet20"]) == 1


def test_seeds_are_compared_image_by_image() -> None:
    labels, rng = np.arange(200) % 10, np.random.default_rng(0)
    sides = [[np.where(rng.random(200) < right, labels, 10) for _ in range(3)] for right in (0.9, 0.7)]
    a, b = ([Evaluation.of(each, labels) for each in side] for side in sides)
    found = compare_seeds(a, b)
    drops = [compare(x, y).drop for x, y in zip(a, b, strict=True)]
    assert found.drop == pytest.approx(np.mean(drops)) and list(found.drops) == pytest.approx(drops)
    scores = np.mean([(x == labels) * 1.0 - (y == labels) for x, y in zip(*sides, strict=True)], axis=0)
    error = np.sqrt(1e4 * scores.var(ddof=1) / 200 + np.var(drops, ddof=1) / 3)
    assert [found.low, found.high] == pytest.approx(
        [found.drop - 1.96 * error, found.drop + 1.96 * error], abs=1e-3
    )
    one, pair = compare_seeds(a[:1], b[:1]), compare(a[0], b[0])
    assert one.low == pytest.approx(pair.low, abs=0.8) and one.high == pytest.approx(pair.high, abs=0.8)
    with pytest.raises(ConfigError, match="same seeds"):
        compare_seeds(a, b[:2])


@pytest.mark.parametrize(("arm", "first"), [("rewound", 1), ("ticket", 0)])
def test_a_rewound_run_skips_the_steps_that_its_weights_have_had(root, tmp_path, monkeypatch, arm, first):
    (tmp_path / "dense-1-0").symlink_to(root / "dense-1-0")
    taken, step = [], Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda run: (taken.append(run.step), step(run))[1])
    run_trial(PLAN, Trial(arm, 0.5, 0), tmp_path)
    assert taken == list(range(first, 4))  # a quarter of four steps was the dense run's
