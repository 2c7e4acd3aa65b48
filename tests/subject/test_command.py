"""How commands end, and that training goes on where no compiler works."""

import errno
import os

import pytest
import torch
from torch import nn

from quantlib.errors import ConfigError
from quantlib.subject.campaign import campaign_arguments
from quantlib.subject.command import check_start, run_command
from quantlib.subject.compiled import compiled
from quantlib.subject.training import main


def raises(error):
    def work():
        raise error

    return work


def test_the_exit_status_says_how_it_ended(capsys) -> None:
    assert run_command(lambda: 7) == 0
    assert run_command(raises(ConfigError("bits is 9."))) == 1
    assert capsys.readouterr().err == "error: bits is 9.\n"
    assert run_command(raises(PermissionError(13, "Permission denied", "/x"))) == 1
    assert "Permission denied: '/x'; make room there, or name a folder" in capsys.readouterr().err
    assert run_command(raises(KeyboardInterrupt()), kept="every run is saved") == 130
    assert "every run is saved, and the same command goes on" in capsys.readouterr().out


def test_without_a_compiler_the_plain_model_is_used(monkeypatch, capsys) -> None:
    model, cpu = nn.Conv2d(3, 1, 1), torch.device("cpu")
    assert compiled(model, cpu, enabled=False) is model and not capsys.readouterr().out
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: raises_when_called)
    assert compiled(model, cpu, enabled=True) is model
    assert "torch.compile does not work here (OSError)" in capsys.readouterr().out
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: nn.Sequential(model))
    assert isinstance(compiled(model, cpu, enabled=True), nn.Sequential)


def raises_when_called(x):
    raise OSError("no C++ compiler")


def test_a_start_made_with_other_options_is_refused(tmp_path):
    check_start(tmp_path, {"share": 0.4}, {"share": 0.4})
    with pytest.raises(ConfigError, match="was made with share 0.4; give --folder"):
        check_start(tmp_path, {"share": 0.4}, {"share": 0.3})


@pytest.mark.parametrize(("name", "said"), [
    ("abacus", "There is no device 'abacus'; use cpu or cuda."), ("cuda", "There is no CUDA device"),
    ("mps", "There is no device 'mps'; use cpu or cuda."),
])  # fmt: skip
def test_a_device_that_is_not_there_is_refused_before_any_work(name, said, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        campaign_arguments(["--device", name], None, "resnet20_ticket", "tickets")
    assert said in capsys.readouterr().err
    assert campaign_arguments([], None, "resnet20_ticket", "tickets").device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    there = campaign_arguments([], None, "resnet20_ticket", "tickets")
    assert there.device == "cuda" and there.workers == 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert campaign_arguments(["--device", "cuda:1"], None, "x", "tickets").device == "cuda:1"
    with pytest.raises(SystemExit):
        campaign_arguments(["--device", "cuda:2"], None, "x", "tickets")
    assert "the last one here is cuda:1" in capsys.readouterr().err


def test_a_full_disk_gets_advice_and_another_error_none(capsys) -> None:
    for number, advised in ((errno.ENOSPC, True), (errno.EISDIR, False)):

        def work(number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        assert run_command(work) == 1
        assert ("make room there" in capsys.readouterr().err) == advised


def test_no_threads_are_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--threads", "0"])
    assert "--threads: 0 is not at least 1" in capsys.readouterr().err
