"""`CheckpointFolder`: what counts as a checkpoint, what is passed over, what is deleted. `StopSignals` of one rank."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from guided_diffusion import logger
from guided_diffusion.distributed.stop_signals import StopSignals, leave
from guided_diffusion.errors import InputError, Stopped
from guided_diffusion.runs import run_directory
from guided_diffusion.runs.checkpoint_folder import CheckpointFolder
from guided_diffusion.system import processes
from tests.support.helpers import clean_environment, tree


def save(folder: CheckpointFolder, number: int, steps_done: int | None = None) -> None:
    weights = {"w": torch.full((50,), float(number))}
    objects = {f"{kind}{number:06d}.pt": weights for kind in ("model", "ema_0.9_", "opt")}
    folder.save(number, objects, {"steps_done": number + 1 if steps_done is None else steps_done, "flags": {}})


@pytest.fixture(autouse=True)
def warnings(tmp_path_factory, monkeypatch) -> Iterator[list[str]]:
    """What is warned about; other lines of the log go into a folder of their own."""
    told: list[str] = []
    monkeypatch.setattr(logger, "warning", told.append)
    with logger.scoped_configure(dir=tmp_path_factory.mktemp("log"), format_strs=["log"]):
        yield told


@pytest.fixture
def folder(tmp_path) -> CheckpointFolder:
    made = CheckpointFolder(tmp_path)
    for number in (0, 10, 20):
        save(made, number)
    return made


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a bit of the model": lambda path: flip(path / "model000020.pt", 300),
    "a bit of the state": lambda path: flip(path / "state000020.json", 60),
    "a shorter average": lambda path: (path / "ema_0.9_000020.pt").write_bytes(b"PK"),
    "no optimizer": lambda path: (path / "opt000020.pt").unlink(),
    "an empty state": lambda path: (path / "state000020.json").write_bytes(b""),
    "a state of another kind": lambda path: (path / "state000020.json").write_text("[1]"),
    "no state": lambda path: (path / "state000020.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_intact_one(folder, tmp_path, warnings, damage):
    assert folder.newest_intact().number == 20
    DAMAGES[damage](tmp_path)
    found = folder.newest_intact()
    assert found.number == 10 and found.state["steps_done"] == 11
    assert torch.load(found.model, weights_only=True)["w"][0] == 10
    (warning,) = warnings
    assert "000020." in warning and "resuming from checkpoint 000010" in warning


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_set_aside_whole(folder, tmp_path, damage):
    DAMAGES[damage](tmp_path)
    before = sorted(path.read_bytes() for path in tmp_path.iterdir())
    folder.newest_intact()
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == before
    if damage != "no state":
        assert not [name for name in tree(tmp_path) if "000020" in name and not name.endswith(".damaged")]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("name", ["state000020.json", "model000020.pt", "opt000010.pt", "listing"])
def test_what_cannot_be_read_is_not_damaged(folder, tmp_path, monkeypatch, code, name):
    """Neither the newest checkpoint nor an older one that would be the next to try."""
    if name == "opt000010.pt":
        DAMAGES["a bit of the model"](tmp_path)
    before = tree(tmp_path)
    real_open, real_list = open, os.listdir

    def fail_opening(path, *args, **kwargs):
        if str(path).endswith(name):
            raise OSError(code, os.strerror(code))
        return real_open(path, *args, **kwargs)

    def fail_listing(path):
        if name == "listing":
            raise OSError(code, os.strerror(code))
        return real_list(path)

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", fail_opening)
        patched.setattr(os, "listdir", fail_listing)
        with pytest.raises(InputError, match=f"cannot be read: {os.strerror(code)}"):
            folder.newest_intact()
    assert tree(tmp_path) == before
    assert folder.newest_intact().number == (10 if name == "opt000010.pt" else 20)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(5, "x")])
def test_pruning_that_is_interrupted_is_done_later(folder, tmp_path, monkeypatch, warnings, failure):
    """By a kill or by an error, which is a warning."""
    real, count = Path.unlink, 0

    def unlink(path, **options):
        nonlocal count
        count += 1
        if count == 2:
            raise failure
        real(path, **options)

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(Path, "unlink", unlink)
        folder.prune(1)
    assert folder.newest_intact().number == 20
    assert warnings == (["checkpoint 000000 cannot be deleted, tried again later: [Errno 5] x"] * (failure.args != ()))
    assert folder.numbers() == [20], "none whose files are not all there counts as a checkpoint"
    folder.prune(1)
    assert {Path(name).stem[-6:] for name in tree(tmp_path)} == {"000020"}


def test_pruning_spares_the_best(folder, tmp_path):
    folder.prune(1, besides=(0,))
    assert folder.numbers() == [20, 0] and folder.is_whole(0) and not folder.is_whole(10)
    assert {Path(name).stem[-6:] for name in tree(tmp_path)} == {"000000", "000020"}


@pytest.mark.slow
def test_every_bit_counts(folder, tmp_path):
    """Wherever a byte of any file changes, the checkpoint no longer counts."""
    kept = shutil.copytree(tmp_path, tmp_path.with_name("kept"))
    for name in ("model000020.pt", "opt000020.pt", "ema_0.9_000020.pt", "state000020.json"):
        for position in range(0, (kept / name).stat().st_size, 61):
            if (kept / name).read_bytes()[position : position + 1].isspace():
                continue  # between JSON's values it means nothing
            shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
            flip(tmp_path / name, position)
            assert folder.newest_intact().number == 10, (name, position)


def test_a_passed_over_checkpoint_does_not_count_for_keep(folder, tmp_path):
    DAMAGES["a bit of the model"](tmp_path)
    assert folder.newest_intact().number == 10
    save(folder, 12)
    folder.prune(2)
    assert folder.numbers() == [12, 10]


def test_what_a_killed_process_left_is_swept(folder, tmp_path):
    left = tmp_path / f".model000030.pt.{processes.machine_digest()}-{2**22 + 1}-0123abcd.tmp"
    foreign = tmp_path / ".notes.tmp"
    left.touch(), foreign.touch()
    run_directory.claim(tmp_path, pytest.fail)
    run_directory.release()
    assert not left.exists() and foreign.exists()


def test_pruning_leaves_other_files(folder, tmp_path):
    others = ("config.json", "model000010.safetensors", "progress.csv", "model.pt")
    for name in others:
        (tmp_path / name).touch()
    folder.prune(0)
    assert folder.numbers() == [20, 10, 0]
    folder.prune(1)
    names = {f"{kind}000020" for kind in ("model", "ema_0.9_", "opt", "state")}
    assert {Path(name).stem for name in tree(tmp_path)} == names | {Path(name).stem for name in others}


def test_a_number_is_used_again(folder):
    """The checkpoint that had it before is there under the number before it, and intact."""
    save(folder, 25, steps_done=25)
    save(folder, 25, steps_done=26)
    assert folder.numbers() == [25, 24, 20, 10, 0]
    assert folder.newest_intact().state["steps_done"] == 26
    Path(folder.newest_intact().model).unlink()
    older = folder.newest_intact()
    assert (older.number, older.state["steps_done"]) == (24, 25)


def test_a_number_is_used_again_beside_a_damaged_one(folder, tmp_path):
    """What was whole stays a checkpoint until the new one is."""
    save(folder, 24, steps_done=25)
    save(folder, 25, steps_done=25)
    flip(tmp_path / "model000024.pt", 300)
    folder._make_way(25)  # and killed then
    found = folder.newest_intact()
    assert (found.number, found.state["steps_done"]) == (24, 25)
    assert torch.load(found.model, weights_only=True)["w"][0] == 25
    assert (tmp_path / "model000024.pt.damaged").exists()


def test_a_disk_that_is_full(folder, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="model000030.pt: cannot be written: .*No space left"):
        save(folder, 30)
    assert folder.newest_intact().number == 20


def test_signals_are_caught_in_the_block_alone():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    with StopSignals() as signals:
        assert signals.asked() is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (signals.asked(), signals.asked()) == (signal.SIGUSR1, None)
        leave(signal.SIGUSR1, "x")
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # as timeout(1) sends it: at once, so it is the same request
        assert signals.asked() == signal.SIGTERM
        with pytest.raises(Stopped) as stopped:
            leave(signals.asked(), "model000003.pt")
        assert stopped.value.code == 143 and "model000003.pt" in stopped.value.line
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.slow
def test_a_second_signal_ends_at_once():
    program = (
        "import os, signal, time\n"
        "from guided_diffusion.distributed.stop_signals import StopSignals\n"
        "with StopSignals():\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(1.2); os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], env=clean_environment(), timeout=60)
    assert ended.returncode == -signal.SIGTERM
