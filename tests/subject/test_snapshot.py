"""A snapshot carries a run to another machine: weights, place, log; what does not fit is refused."""

from dataclasses import asdict, replace

import pytest
import torch

from quantlib.errors import TrainingError
from quantlib.subject import data, snapshot
from quantlib.subject.recipe import Recipe
from quantlib.subject.snapshot import load_snapshot, save_snapshot
from quantlib.subject.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = Recipe(name="tiny", model="resnet20", stages=((3, 16),), batch_size=16, learning_rate=0.05, cutout=0)


def trainer(folder, recipe=TINY):
    images = data.load("calibration").take(32)
    return Trainer(recipe, images, images.take(16), folder, compile_model=False)


@pytest.fixture
def stopped(tmp_path):
    """A run of six steps that was stopped after three, in its second epoch."""
    run = trainer(tmp_path / "here")
    run.network.train()
    run.judge(1, float(sum(run.train_step() for _ in range(2))))
    run.request_stop()
    with pytest.raises(KeyboardInterrupt):
        run.run()
    return run


def test_another_machine_goes_on_at_the_same_step(stopped, tmp_path):
    path = tmp_path / "snapshot.safetensors"
    facts = save_snapshot(tmp_path / "here", path)
    assert facts["step"] == stopped.step == 3 and facts["epochs"] == 1
    other = trainer(tmp_path / "there")
    load_snapshot(other, path)
    assert (other.step, other.seconds) == (3, stopped.seconds)
    for name, wanted in stopped.model.state_dict().items():
        got = other.model.state_dict()[name]
        assert torch.equal(got, wanted.half().float() if wanted.is_floating_point() else wanted), name
    other.run()
    assert other.step == 6
    assert len((tmp_path / "there/log.csv").read_text().splitlines()) == 4  # a header and three epochs


def test_a_run_with_steps_of_its_own_keeps_them(stopped, tmp_path):
    path = tmp_path / "snapshot.safetensors"
    save_snapshot(tmp_path / "here", path)
    stopped.train_step()
    before = stopped.model.fc.weight.clone()
    load_snapshot(stopped, path)
    assert stopped.step == 4 and torch.equal(before, stopped.model.fc.weight)


def test_what_does_not_fit_is_refused(stopped, tmp_path, monkeypatch):
    path = tmp_path / "snapshot.safetensors"
    save_snapshot(tmp_path / "here", path)
    with pytest.raises(TrainingError, match="another recipe"):
        load_snapshot(trainer(tmp_path / "a", replace(TINY, seed=1)), path)
    other = asdict(TINY) | {"a_setting_of_tomorrow": 1}
    monkeypatch.setattr(snapshot, "asdict", lambda recipe: other)
    save_snapshot(tmp_path / "here", path)
    with pytest.raises(TrainingError, match="another recipe"):
        load_snapshot(trainer(tmp_path / "c"), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="damaged"):
        load_snapshot(trainer(tmp_path / "b"), path)
    with pytest.raises(TrainingError, match="no unfinished run"):
        save_snapshot(tmp_path / "nowhere", path)


def test_the_command_says_where_the_file_is(stopped, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(snapshot, "ROOT", tmp_path)
    monkeypatch.setattr(snapshot, "load_recipe", lambda name: TINY)
    assert snapshot.main(["--recipe", "tiny", "--folder", str(tmp_path / "here")]) == 0
    said = capsys.readouterr().out
    assert "step 3, 1 epochs" in said and (tmp_path / "training/tiny.safetensors").exists()
    assert snapshot.main(["--recipe", "tiny", "--folder", str(tmp_path)]) == 1
    assert "no unfinished run" in capsys.readouterr().err
