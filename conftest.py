"""Generic pytest set-up: fixed threads, and no data or network setting leaking in from the outside."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture(autouse=True, scope="session")
def two_threads():
    """Two threads everywhere: results differ in the last bit between thread counts.

    OMP_NUM_THREADS=1 is respected: on a busy machine, threads that wait for one another cost far more.
    """
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    yield
