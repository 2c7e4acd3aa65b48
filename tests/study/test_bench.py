"""`make bench`: a row for every rival, a sentence for every missing one, and the machine beside the table."""

import json

import pandas as pd
import pytest

from quantlib.study import bench, rivals
from quantlib.subject.benchmark import Timing


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr("quantlib.study.race.AT_LEAST", 0.0)
    monkeypatch.setattr("quantlib.study.race.PAUSE", 0.0)


def test_every_rival_has_its_rows_and_the_machine_is_kept(monkeypatch, capsys, tmp_path):
    def not_here(contest):
        raise ImportError("No module named 'fancy'")

    monkeypatch.setitem(rivals.RIVALS, "fancy", not_here)
    into = tmp_path / "bench.csv"
    command = [
        "--batch",
        "1",
        "2",
        "--repeats",
        "1",
        "--rivals",
        "fp32",
        "mixed",
        "fancy",
        "--into",
        str(into),
    ]
    assert bench.main(command) == 0
    printed = capsys.readouterr().out
    assert "missing: fancy: No module named 'fancy'" in printed and printed.count("images/s") == 4
    table = pd.read_csv(into)
    measured = table[table["metric"] != "missing"].groupby("metric")["method"].count().to_dict()
    assert measured == {
        "build_seconds": 2, "first_call_seconds": 4, "images_per_second": 4, "latency_ms": 4, "speedup": 4,
    }  # fmt: skip
    builds = table[table["metric"] == "build_seconds"].set_index("method")["note"]
    assert builds["mixed"] == "calibration not counted" and pd.isna(builds["fp32"])
    assert (table[table["metric"] == "speedup"].query("method == 'fp32'")["value"] == 1).all()
    origin = json.loads(into.with_suffix(".json").read_text())
    assert origin["machine"]["threads"] >= 1 and "isa" in origin["machine"] and "torch" in origin["versions"]


def test_who_fails_in_its_first_call_is_missing_and_a_size_given_twice_is_one(monkeypatch, capsys, tmp_path):
    def compiled(contest):
        def run(x):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore")

        return run

    monkeypatch.setitem(rivals.RIVALS, "compiled", compiled)
    into = tmp_path / "bench.csv"
    command = ["--batch", "1", "1", "--repeats", "1", "--rivals", "fp32", "compiled", "--into", str(into)]
    assert bench.main(command) == 0
    assert "missing: compiled: InvalidCxxCompiler: No working C++" in capsys.readouterr().out
    table = pd.read_csv(into)
    assert set(table[table["metric"] != "missing"]["method"]) == {"fp32"}
    assert len(table[table["metric"] == "speedup"]) == 1


def test_speeds_by_hand():
    timings = {"a": Timing(0.4, 0.2, 0.8, (0.2, 0.4, 0.8)), "b": Timing(0.1, 0.1, 0.2, (0.1, 0.1, 0.2))}
    found = {(row["method"], row["metric"]): row for row in bench.speeds(timings, 4)}
    rate, delay, times = (found["b", name] for name in ("images_per_second", "latency_ms", "speedup"))
    assert [round(rate[key], 9) for key in ("value", "low", "high", "n")] == [40, 20, 40, 3]
    assert [round(delay[key], 9) for key in ("value", "low", "high")] == [100, 100, 200]
    assert [round(times[key], 9) for key in ("value", "low", "high")] == [4, 2, 4]


def test_the_lead_is_between_the_fastest_of_each_family():
    def of(*runs):
        return Timing(sorted(runs)[1], 0, 0, runs)

    timings = {
        "fp32": of(4.0, 4.0, 8.0), "fp32_folded": of(2.0, 3.0, 4.0), "mixed": of(0.1, 0.1, 0.1),
        "integer": of(1.0, 1.0, 1.0), "integer_openvino": of(0.5, 1.0, 0.5), "onnxruntime": of(1.0, 2.0, 1.0),
    }  # fmt: skip
    found = {row["method"]: row for row in bench.leads(timings, 8)}
    assert set(found) == {"torch_fp32", "onnxruntime"}  # nobody of the other families takes part
    assert found["torch_fp32"]["note"] == "integer_openvino over fp32_folded"
    assert [found["torch_fp32"][key] for key in ("value", "low", "high", "batch")] == [4.0, 3.0, 8.0, 8]
    assert bench.leads({"fp32": of(1.0, 1.0, 1.0)}, 8) == []


def test_what_is_impossible_is_one_sentence(capsys):
    assert bench.main(["--batch", "0"]) == 1
    assert "give 1 to 1000" in capsys.readouterr().err
    assert bench.main(["--rivals", "openvinno"]) == 1
    assert "did you mean 'openvino'" in capsys.readouterr().err


def test_a_race_without_runners_is_one_sentence(monkeypatch, capsys):
    def not_here(contest):
        raise ImportError("No module named 'fancy'")

    monkeypatch.setitem(rivals.RIVALS, "fancy", not_here)
    assert bench.main(["--rivals", "fancy", "--batch", "1"]) != 0
    assert "nothing to race; missing: fancy" in capsys.readouterr().err
