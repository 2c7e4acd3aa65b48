"""course.toml: what it gives, and the sentence for each way in which it can be wrong."""

import pytest

from quantlib.errors import StudyError
from quantlib.study.manifest import course, find_root


def test_the_course_itself_is_consistent_and_complete():
    loaded = course(find_root())
    assert [nb.number for nb in loaded.notebooks] == [f"{number:02d}" for number in range(20)]
    assert len(loaded.claims) == 18
    assert set(loaded.profiles) == {"quick", "full"}
    assert all(nb.minutes["quick"] <= 1 for nb in loaded.notebooks)


def test_notebooks_are_found_by_number_file_or_stem(small_course):
    loaded = course()
    for name in ("1", "01", "01_alpha", "01_alpha.ipynb", "notebooks/01_alpha.ipynb"):
        assert loaded.notebook(name).stem == "01_alpha"
    first, second = loaded.notebooks
    assert loaded.neighbours(first) == (None, second) and loaded.neighbours(second) == (first, None)


def test_a_notebook_changes_settings_for_itself(small_course):
    path = small_course / "course.toml"
    own = "[notebooks.settings.quick]\nimages_test = 5\n"
    path.write_text(path.read_text().replace("[[claims]]", own + "[[claims]]", 1))
    loaded = course()
    assert loaded.profile("quick")["images_test"] == 16
    assert loaded.profile("quick", loaded.notebook("02"))["images_test"] == 5
    assert loaded.profile("full", loaded.notebook("02"))["images_test"] == 32


@pytest.mark.parametrize("old, new, words", [
    ('number = "02"', 'number = "01"', "in order, each number once"),
    ('file = "02_beta.ipynb"', 'file = "beta.ipynb"', "should read 02_name.ipynb"),
    ('writes = ["02_things"]', 'writes = ["01_things"]', "cannot write '01_things'"),
    ('notebook = "02"', 'notebook = "09"', "names '09'"),
    ('id = "second"', 'id = "first"', "a claim twice"),
    ('title = "Beta"', "", "lacks or misnames an entry: 'title'"),
    ("[profiles.quick]", "[profiles.quick", "cannot be read"),
    ("minutes_quick = 0.5", 'minutes_quick = "soon"', "lacks or misnames an entry: could not convert"),
    ("minutes_limit = 1", "", "the profile 'quick' lacks minutes_limit"),
])  # fmt: skip
def test_each_mistake_has_its_sentence(small_course, old, new, words):
    path = small_course / "course.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(StudyError, match=words):
        course()


def test_unknown_names_get_the_known_ones(small_course):
    with pytest.raises(StudyError, match="choose one of quick, full"):
        course().profile("fast")
    with pytest.raises(StudyError, match="did you mean 'second'"):
        course().claim("secnd")
    with pytest.raises(StudyError, match="is missing"):
        course(small_course / "notebooks")
