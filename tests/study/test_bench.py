"""`make bench` prints a ratio for each network, and refuses a batch that the images do not fill."""

import pytest

from quantlib.study.bench import main


def test_bench_names_the_machine_and_every_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batch", "1", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    assert "threads" in printed
    assert [line.count("images/s") for line in printed.splitlines()[-3:]] == [1, 1, 1]
    assert "1.00 times [1.00, 1.00]" in printed


def test_an_impossible_batch_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batch", "0"]) == 1
    assert "the shipped images allow 1 to 1000" in capsys.readouterr().err
