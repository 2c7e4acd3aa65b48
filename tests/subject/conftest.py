import pytest

from tests.subject import cifar_stub


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The tiny CIFAR-10 counts as the published one; nothing outside tmp_path is looked at or written."""
    cifar_stub.use_tiny_md5s(monkeypatch)
    for name in ("QUANTLIB_DATA", "QUANTLIB_DATA_URL", "QUANTLIB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
