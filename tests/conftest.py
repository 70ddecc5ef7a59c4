"""One thread a process, and what is made once for all tests of the programs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests.support.helpers` under plain `pytest`

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.support.helpers import ForkServer, Runner, make_checkpoint, make_images  # noqa: E402

torch.set_num_threads(1)  # tiny networks; on busy cores a second thread waits more than it works


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow tests first, so that no worker has one left when the others have ended."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def run(fork_server, tmp_path) -> Runner:
    """Runs programs with the test's own folder as working directory."""
    return Runner(fork_server, tmp_path)


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """24 colour images of 8x8 pixels in 4 classes."""
    return make_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Random tiny networks for 4 classes; each in a folder of its own, with config.json."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "classifier": make_checkpoint(folder / "classifier", "classifier"),
        "model": make_checkpoint(folder / "model", "model", learn_sigma=True),
        "conditional": make_checkpoint(folder / "conditional", "model", class_cond=True),
        "super_res": make_checkpoint(folder / "super_res", "super_res"),
    }
