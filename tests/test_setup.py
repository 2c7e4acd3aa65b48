"""pyproject.toml, constraints.txt, environment.yml, the Makefile and what is installed tell one story."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
CONDA_TO_PYPI = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


def bounds(*extras: str) -> dict[str, SpecifierSet]:
    """Canonical name -> bounds of the library's own dependencies and of `extras`."""
    lines = PROJECT["project"]["dependencies"] + [line for extra in extras for line in EXTRAS[extra]]
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}


def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    found = {}
    for line in lines:
        name, _, version = line.partition("==")
        assert version, f"constraints.txt: '{line}' is not an exact pin"
        assert canonicalize_name(name) not in found, f"constraints.txt pins {name} twice"
        found[canonicalize_name(name)] = Version(version)
    return found


def test_extras_are_there():
    assert set(EXTRAS) == {"study", "test", "site", "rivals", "cluster", "coding"}


@pytest.mark.parametrize(("name", "specifier"), sorted(bounds(*EXTRAS).items()), ids=lambda value: str(value))
def test_every_dependency_is_pinned_within_its_bounds(name, specifier):
    assert name in pins(), f"constraints.txt does not pin {name}"
    assert pins()[name] in specifier


def test_the_cpu_build_of_torch_satisfies_its_pin():
    assert Version(f"{pins()['torch']}+cpu") in SpecifierSet(f"=={pins()['torch']}")


def test_no_pin_forces_cuda_on_a_cpu_machine():
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))]


def test_environment_has_the_same_names_and_bounds():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "quantlib"
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    listed = {}
    for line in environment["dependencies"]:
        if isinstance(line, dict):
            assert line == {"pip": ["-e .[coding]"]}  # conda-forge has no constriction
            continue
        requirement = Requirement(line)
        name = CONDA_TO_PYPI.get(requirement.name, requirement.name)
        assert name not in listed, f"environment.yml lists {name} twice"
        listed[name] = requirement.specifier
    python = listed.pop("python")
    assert listed.pop("pip") == SpecifierSet()
    assert python == SpecifierSet(PROJECT["project"]["requires-python"])
    assert listed == bounds("study", "test")


@pytest.mark.parametrize(
    ("name", "specifier"), sorted(bounds("study", "test").items()), ids=lambda value: str(value)
)
def test_what_is_installed_is_within_the_bounds(name, specifier):
    assert Version(metadata.version(name)) in specifier


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="only make's own .venv has the exact pins")
def test_our_own_environment_has_the_exact_pins():
    installed: dict[str, Version] = {}
    for found in metadata.distributions():
        if "_vendor" not in str(found.locate_file("")):  # setuptools brings copies of its own
            installed.setdefault(canonicalize_name(found.name), Version(found.version))
    differ = {
        name: str(installed[name])
        for name, pin in pins().items()
        if name in installed and Version(installed[name].public) != pin
    }
    assert not differ


def test_python_floor_agrees_everywhere():
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"
    assert PROJECT["tool"]["mypy"]["python_version"] == "3.11"
    assert "(3, 11)" in (ROOT / "Makefile").read_text()


def test_version_agrees_everywhere():
    version = PROJECT["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    code = (ROOT / "quantlib" / "__init__.py").read_text()
    assert re.findall(r'__version__ = "(.+)"', code) == [version]


def test_package_data_exists_and_is_all_listed():
    listed = PROJECT["tool"]["setuptools"]["package-data"]
    kept = set()
    for package, patterns in listed.items():
        folder = ROOT / package.replace(".", "/")
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"package data {package}: {pattern} matches nothing"
            kept |= set(folder.glob(pattern))
    files = {path for path in (ROOT / "quantlib").rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix not in (".py", ".pyc")} == kept


# The Makefile

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # MAKEFLAGS and MAKELEVEL would come from an outer `make test`.
    outer = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env=outer | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def targets() -> list[str]:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    return phony[1].split()


@needs_make
def test_help_lists_every_target_and_is_the_default():
    shown = make("help").stdout
    listed = re.findall(r"^  ([a-z]+) +\S", shown, re.M)
    assert listed == targets()
    assert make().stdout == shown
    promised = "study test train notebook refresh figures site bench data lint clean"
    assert set(promised.split()) <= set(listed)


@needs_make
@pytest.mark.parametrize("target", [t for t in targets() if t not in ("help", "clean", "distclean")])
def test_every_target_sets_up_first(target):
    plan = make("--dry-run", target, "NB=03", "VENV=build/no-such-venv", TORCH_INDEX="").stdout
    assert "-c constraints.txt" in plan
    assert "-e '.[study,test,coding]'" in plan
    assert plan.index("-m venv") < plan.index("pip install")


@needs_make
@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["study"], "quantlib.study.runner --profile quick"),
        (["study", "PROFILE=full", "ONLY=03"], "quantlib.study.runner --profile full --only 03"),
        (["study", "FROM=05", "ARGS=-p BITS=4"], "--from 05 -p BITS=4"),
        (["train"], "quantlib.subject.training"),
        (["figures"], "quantlib.study.figures"),
        (["refresh", "NB=03"], "quantlib.study.notebooks refresh 03"),
        (["data"], "quantlib.subject.fetch"),
        (["setup", "TORCH_INDEX=https://there/cpu"], "--extra-index-url https://there/cpu"),
    ],
)
def test_targets_run_what_they_say(arguments, command):
    assert command in " ".join(make("--dry-run", *arguments, "VENV=build/no-such-venv").stdout.split())


def fake_python(folder: Path, body: str) -> str:
    path = folder / "python-fake"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@needs_make
def test_old_python_is_refused_in_one_sentence(tmp_path):
    old = fake_python(tmp_path, 'if [ "$1" = -V ]; then echo Python 3.9.1; else exit 1; fi')
    result = make("setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert result.returncode != 0
    sentence = f"quantlib needs Python 3.11 or newer, but {old} is Python 3.9.1; name another with"
    assert result.stdout == f"{sentence} PYTHON=python3.12.\n"


@needs_make
def test_missing_python_and_missing_venv_say_what_to_install(tmp_path):
    result = make("setup", "PYTHON=no-such-python", f"VENV={tmp_path / 'venv'}")
    assert result.returncode != 0
    assert "There is no 'no-such-python' here: install Python 3.11 or newer" in result.stdout
    bare = fake_python(tmp_path, 'case "$2" in *venv*) exit 1;; esac')
    result = make("setup", f"PYTHON={bare}", f"VENV={tmp_path / 'venv'}")
    assert result.returncode != 0
    assert "has no venv module" in result.stdout
    assert "python3-venv" in result.stdout


def fake_venv(folder: Path, failing: str) -> Path:
    """A finished .venv whose python only notes how it is called, and fails when told `failing`."""
    venv = folder / "venv"
    (venv / "bin").mkdir(parents=True)
    log = folder / "log"
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in *"{failing}"*) exit 1;; esac\n')
    python.chmod(0o755)
    (venv / ".installed").touch()
    return venv


@needs_make
@pytest.mark.parametrize(
    ("failing", "named"),
    [("ruff", "lint"), ("mypy", "types"), ("-m pytest", "unit and oracle tests"), ("no such thing", None)],
)
def test_make_test_runs_all_parts_and_fails_if_one_does(tmp_path, failing, named):
    clock = tmp_path / "kept" / "seconds"  # not build/test_seconds: that is the last real run's
    result = make("test", f"VENV={fake_venv(tmp_path, failing)}", f"CLOCK={clock}")
    assert clock.exists() == (named is None)
    calls = (tmp_path / "log").read_text().splitlines()
    assert calls[:3] == ["-m ruff check .", "-m mypy", "-m pytest"]
    if list((ROOT / "notebooks").glob("*.ipynb")):
        sanitize = "--nbval-sanitize-with notebooks/nbval_sanitize.cfg"
        nbval = f"--nbval-lax --nbval-current-env {sanitize} --nbval-cell-timeout 300 --maxfail 3"
        assert calls[3:] == [f"-m pytest {nbval} notebooks/"]
    assert (result.returncode == 0) == (named is None)
    assert (f"FAILED: {named}" if named else "All parts passed in ") in result.stdout


@needs_make
def test_second_setup_does_nothing_until_the_pins_change(tmp_path):
    venv = fake_venv(tmp_path, "nothing")
    assert make("setup", f"VENV={venv}").returncode == 0
    assert not (tmp_path / "log").exists()
    os.utime(venv / ".installed", (0, 0))  # older than constraints.txt
    assert make("setup", f"VENV={venv}").returncode == 0
    assert "pip install" in (tmp_path / "log").read_text()


@needs_make
def test_an_install_that_fails_leaves_no_stamp(tmp_path):
    venv = fake_venv(tmp_path, "pip install")
    (venv / ".installed").unlink()
    assert make("setup", f"VENV={venv}").returncode != 0
    assert not (venv / ".installed").exists()


@needs_make
@pytest.mark.parametrize("target", ["notebook", "refresh"])
def test_notebook_targets_ask_for_a_number(tmp_path, target):
    result = make(target, f"VENV={fake_venv(tmp_path, 'nothing')}")
    assert result.returncode != 0
    assert "Say which notebook, for example: make" in result.stdout


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("exec make test")
