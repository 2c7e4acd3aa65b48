"""A result that was measured on other weights than those in checkpoints/ is named wherever it is shown."""

import json

import pytest

from quantlib.errors import CheckpointError, StudyError
from quantlib.study import origin, readme, results, session
from quantlib.subject import checkpoints


@pytest.fixture
def two_results(small_course, monkeypatch):
    """01_things of the weights "new", 02_things of the weights "old"; checkpoints/ holds the new ones."""
    monkeypatch.setattr(checkpoints, "ROOT", small_course / "checkpoints")
    (small_course / "checkpoints").mkdir()
    accuracy = {"test_accuracy": 95.0, "test_low": 94.5, "test_high": 95.4, "test_n": 10000}
    entry = {"file": "net_cifar10.safetensors", "bytes": 47_176_868, "sha256": "new", "metrics": accuracy}
    (small_course / "checkpoints" / "index.json").write_text(json.dumps({"net_cifar10": entry}))
    for number, digest in (("01", "new"), ("02", "old")):
        made = {"checkpoints": {"net": digest}}
        results.record(f"{number}_things", [results.row("fp32", "accuracy", 95.0)], made, "full")
        results.headline(f"figure_{number}", 95.0, 94.5, 95.4, 10000, "percent", f"{number}_things", "full")
    claims = small_course / "results" / "claims_02.csv"
    claims.write_text("id,text,verdict,evidence\nsecond,The second thing holds.,holds,measured\n")
    return small_course


def test_what_was_measured_on_other_weights_is_found(two_results):
    assert origin.outdated() == {"02_things": ("net",)}
    assert origin.changed_since("03_nothing") == ()
    (two_results / "checkpoints" / "index.json").unlink()
    assert set(origin.outdated()) == {"01_things", "02_things"}


def test_a_file_that_is_no_network_is_known_by_itself(two_results):
    kept = two_results / "checkpoints" / "small.qldc"
    kept.write_bytes(b"one")
    run = session.start("01")
    assert run.file("small.qldc") == kept
    results.record("01_things", [results.row("fp32", "accuracy", 95.0)], run.provenance(), "full")
    assert origin.changed_since("01_things") == ()
    kept.write_bytes(b"other")
    assert origin.changed_since("01_things") == ("small.qldc",)
    with pytest.raises(CheckpointError, match="checkpoints/large.qldc is not recorded yet"):
        run.file("large.qldc")


def test_a_damaged_origin_is_named(two_results):
    (two_results / "results" / "02_things.json").write_text("{")
    with pytest.raises(StudyError, match="results/02_things.json is damaged"):
        origin.outdated()


def test_a_notebook_says_so(two_results, capsys):
    assert len(session.start("01").recorded("things")) == 1
    assert "earlier weights" not in capsys.readouterr().out
    assert len(session.start("02").recorded("things")) == 1
    assert "02_things was recorded on earlier weights of net." in capsys.readouterr().out


def test_the_readme_says_so(two_results):
    text = "".join(f"<!-- generated: {name} -->\n<!-- end -->\n" for name in readme.BLOCKS)
    filled = readme.fill(text, session.course()).splitlines()
    marked = [line for line in filled if readme.EARLIER in line]
    assert len(marked) == 2 and "figure_02" in marked[0] and "The second thing" in marked[1]
    assert "- `net_cifar10.safetensors`, 47.18 MB: 95.00 [94.50, 95.40] on 10,000 test images" in filled
    assert any(line.startswith("What notebooks 02 recorded") for line in filled)
