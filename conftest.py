"""Generic pytest set-up: fixed threads, and no setting of the caller's that changes what is run, or where."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("MPLBACKEND", "agg")
    for name in ("PROFILE", "DEVICE", "THREADS", "CHECKPOINTS", "RESULTS", "ROOT"):
        # Else nbval would run the notebooks at full size, into results/.
        os.environ.pop(f"QUANTLIB_{name}", None)


@pytest.fixture(autouse=True, scope="session")
def two_threads():
    """Two threads everywhere: results differ in the last bit between thread counts.

    OMP_NUM_THREADS=1 is respected: on a busy machine, threads that wait for one another cost far more.
    """
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    yield
