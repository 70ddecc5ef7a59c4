"""The logger's interface, its files, and where it puts them."""

import builtins
import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from guided_diffusion import logger
from guided_diffusion.errors import InputError
from tests.support.helpers import ROOT, clean_environment, launch_prefix


@pytest.fixture(autouse=True)
def fresh():
    """No logger, and none of the variables that steer one."""
    kept = {k: v for k, v in clean_environment().items() if not k.startswith("OPENAI_")}
    with (
        mock.patch.dict(os.environ, kept, clear=True),
        mock.patch.object(logger.Logger, "CURRENT", None),
        mock.patch.object(logger.Logger, "DEFAULT", None),
    ):
        yield


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_default_formats_and_the_first_line(tmp_path, capsys):
    logger.configure(dir=str(tmp_path / "new" / "place"))
    logger.logkv("a", 1)
    logger.dumpkvs()
    place = tmp_path / "new" / "place"
    assert names(place) == ["log.txt", "progress.csv"]
    log = (place / "log.txt").read_text()
    rule = "-" * len("| a | 1        |")
    assert log.splitlines() == [f"Logging to {place}", rule, "| a | 1        |", rule]
    assert capsys.readouterr().out == log
    assert (place / "progress.csv").read_text() == "a\n1\n"
    assert logger.get_dir() == str(place)


def test_text_table(tmp_path):
    logger.configure(dir=tmp_path, format_strs=["log"])
    logger.logkvs({"beta": 1e-5, "Alpha": 123456.0, "gamma": "words " * 6, "n" * 31: True, "x": [1, 2]})
    logger.logkv("tensor", torch.tensor(2.5))
    logger.logkv("several", torch.tensor([1, 2]))
    logger.dumpkvs()
    expected = [
        ("Alpha", "1.23e+05"),
        ("beta", "1e-05   "),
        ("gamma", "words words words words wor..."),
        ("n" * 27 + "...", "1       "),
        ("several", "tensor([1, 2])"),
        ("tensor", "2.5     "),
        ("x", "[1, 2]"),
    ]
    rule = "-" * 67
    table = [rule, *(f"| {name:30} | {value:30} |" for name, value in expected), rule]
    assert (tmp_path / "log.txt").read_text().splitlines()[1:] == table


def test_names_that_agree_in_27_letters_both_appear(tmp_path):
    logger.configure(dir=tmp_path, format_strs=["log"])
    logger.logkvs({"n" * 30 + "1": 1, "n" * 30 + "2": 2})
    logger.dumpkvs()
    assert (tmp_path / "log.txt").read_text().count("n" * 27 + "...") == 2


def test_csv_header_grows(tmp_path):
    logger.configure(dir=tmp_path, format_strs=["csv"])
    rows = [{"b": 1, "a": 0.5}, {"a": np.float32(0.1), "c": None}, {"d": torch.tensor(3), "B": "x"}, {"a": 7}]
    for row in rows:
        logger.logkvs(row)
        logger.dumpkvs()
    lines = ["a,b,c,B,d", "0.5,1,,,", "0.1,,,,", ",,,x,3", "7,,,,"]
    assert (tmp_path / "progress.csv").read_text().splitlines() == lines
    assert names(tmp_path) == ["progress.csv"]


def test_csv_quotes_what_needs_it(tmp_path):
    writer = logger.make_output_format("csv", tmp_path)
    writer.writekvs({"a": "one, two", "b": 1})
    writer.writekvs({"c": 2})
    writer.close()
    assert (tmp_path / "progress.csv").read_text().splitlines() == ["a,b,c", '"one, two",1,', ",,2"]


def test_json_lines(tmp_path):
    logger.configure(dir=tmp_path, format_strs=["json"])
    given = {"b": np.float32(0.5), "a": torch.tensor(2.0), "words": "x", "path": Path("p"), "n": 3}
    logger.logkvs(given)
    returned = logger.dumpkvs()
    line = json.loads((tmp_path / "progress.json").read_text())
    assert line == {"b": 0.5, "a": 2.0, "words": "x", "path": "p", "n": 3}
    assert returned == given and returned["a"] is given["a"]  # writing changes nothing


def test_tensorboard(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with logger.scoped_configure(dir=tmp_path, format_strs=["tensorboard"]):
        for value in (1.5, 2.5):
            logger.logkvs({"loss": value, "words": "left out"})
            logger.dumpkvs()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tb")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.5), (2, 2.5)]


@pytest.mark.slow
def test_importing_the_logger_loads_no_tensorboard():
    code = "import sys, guided_diffusion.logger; print('tensorboard' in sys.modules, 'mpi4py' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_a_resumed_run_continues_its_files(tmp_path):
    for step in range(2):
        with logger.scoped_configure(dir=tmp_path, format_strs=["log", "csv", "json"]):
            logger.logkvs({"step": step} | ({"new": 5} if step else {}))
            logger.dumpkvs()
    assert (tmp_path / "progress.csv").read_text() == "step,new\n0,\n1,5\n"
    assert len((tmp_path / "progress.json").read_text().splitlines()) == 2
    assert (tmp_path / "log.txt").read_text().count("Logging to") == 2


def test_means_are_over_calls_and_forgotten_by_a_dump(tmp_path):
    logger.configure(dir=tmp_path, format_strs=["csv"])
    for value in (1.0, 2.0, 6.0):
        logger.logkv_mean("mean", value)
        logger.logkv("last", value)
    assert logger.getkvs() == {"mean": 3.0, "last": 6.0}
    assert logger.dumpkvs() == {"mean": 3.0, "last": 6.0}
    assert logger.getkvs() == {}
    logger.logkv_mean("mean", 10.0)
    assert logger.dumpkvs() == {"mean": 10.0}
    assert logger.record_tabular is logger.logkv and logger.dump_tabular is logger.dumpkvs


def test_an_empty_dump_only_warns(tmp_path):
    logger.configure(dir=tmp_path, format_strs=["log"])
    with pytest.warns(UserWarning, match="no table written"):
        assert logger.dumpkvs() == {}


def test_levels(tmp_path):
    logger.configure(dir=tmp_path, format_strs=["log"])
    logger.debug("hidden")
    logger.info("shown", 1, None)
    logger.set_level(logger.WARN)
    logger.info("hidden")
    logger.warn("warned")
    logger.error("erred")
    logger.log("loud", level=logger.ERROR)
    logger.set_level(logger.DISABLED)
    logger.error("hidden")
    assert (tmp_path / "log.txt").read_text().splitlines()[1:] == ["shown 1 None", "warned", "erred", "loud"]


def test_a_warning_of_ours_is_called_one(tmp_path):
    """Upstream's `warn` writes its words as they are."""
    logger.configure(dir=tmp_path, format_strs=["log"])
    logger.warning("--labels: both fit")
    assert (tmp_path / "log.txt").read_text().splitlines()[1:] == ["warning: --labels: both fit"]


def test_timing(tmp_path):
    logger.configure(dir=tmp_path, format_strs=[])

    @logger.profile("work")
    def work(x):
        """Doubles."""
        return 2 * x

    assert work(4) == 8 and work.__doc__ == "Doubles."
    once = logger.getkvs()["wait_work"]
    with pytest.raises(KeyError), logger.profile_kv("work"):
        raise KeyError
    assert 0 <= once < logger.getkvs()["wait_work"] < 5


def test_scopes_and_reset(tmp_path):
    logger.configure(dir=tmp_path / "outer", format_strs=["log"])
    outer = logger.get_current()
    with logger.scoped_configure(dir=tmp_path / "inner", format_strs=["log"]):
        logger.log("inside")
        assert logger.get_dir() == str(tmp_path / "inner")
    assert logger.get_current() is outer
    logger.Logger.DEFAULT = outer
    logger.configure(dir=tmp_path / "other", format_strs=["log"])
    logger.reset()
    assert logger.get_current() is outer
    logger.reset()
    assert (tmp_path / "outer" / "log.txt").read_text().splitlines()[1:] == ["Reset logger"]
    assert "inside" in (tmp_path / "inner" / "log.txt").read_text()


class Communicator:
    """Rank 0 of two; the other's values are given."""

    def __init__(self, rank, other):
        self.rank, self.other = rank, other

    def gather(self, mine):
        return [mine, self.other] if self.rank == 0 else None


def test_averaging_over_ranks(tmp_path):
    other = {"loss": (4.0, 3), "theirs": (1.0, 1), "words": ("x", 1)}
    logger.configure(dir=tmp_path, format_strs=["csv"], comm=Communicator(0, other))
    logger.logkv_mean("loss", 1.0)
    logger.logkv_mean("loss", 3.0)
    logger.logkv("words", "y")
    with pytest.warns(UserWarning, match="cannot average words"):
        assert logger.dumpkvs() == {"loss": (2 * 2.0 + 3 * 4.0) / 5, "theirs": 1.0}
    logger.set_comm(Communicator(1, None))
    logger.logkv("loss", 1.0)
    assert logger.dumpkvs() == {"dummy": 1}


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"OPENAI_LOG_FORMAT": "csv"}, ["progress.csv"]),
        ({"OPENAI_LOG_FORMAT": "log,,json"}, ["log.txt", "progress.json"]),
        ({"OPENAI_LOG_FORMAT": ""}, []),
        ({"PMI_RANK": "3"}, ["log-rank003.txt"]),
        ({"OMPI_COMM_WORLD_RANK": "12", "OPENAI_LOG_FORMAT_MPI": "json"}, ["progress-rank012.json"]),
        ({"RANK": "2", "WORLD_SIZE": "4", "OPENAI_LOG_FORMAT": "csv"}, ["log-rank002.txt"]),
        ({"RANK": "0", "WORLD_SIZE": "4", "OPENAI_LOG_FORMAT": "csv"}, ["progress.csv"]),
    ],
)
def test_the_environment_decides(tmp_path, variables, expected):
    os.environ.update(variables, OPENAI_LOGDIR=str(tmp_path / "there"))
    logger.configure()
    assert names(tmp_path / "there") == expected


@contextmanager
def no_more_bytes() -> Iterator[None]:
    """Every write to a file fails, as on a full disk; opening does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def nothing_opens(*names: str) -> Iterator[None]:
    """Files of these names cannot be opened: the server that has them went away."""

    def refuse(path, *args, **kwargs):
        if Path(str(path)).name in names:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return really_open(path, *args, **kwargs)

    really_open = builtins.open
    with mock.patch.object(builtins, "open", refuse):
        yield


FILES = ["log.txt", "progress.csv", "progress.json"]


def write_round(number: int, **more) -> None:
    logger.log(f"round {number}")
    logger.logkvs({"n": number, **more})
    logger.dumpkvs()


def test_a_full_disk_costs_lines_and_one_warning_a_file(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    logger.configure(dir=tmp_path, format_strs=["log", "csv", "json", "tensorboard"])
    write_round(0)
    with no_more_bytes():
        for number in (1, 2, 3):
            write_round(number, **{f"new{number}": 1})
    write_round(4)
    write_round(5, other=6)
    (events,) = (tmp_path / "tb").iterdir()
    paths = [*(tmp_path / name for name in FILES), events]
    expected = [rf"warning: {path}: .*File too large; the run continues, with gaps in this file" for path in paths]
    assert len(caplog.messages) == 4 and all(map(re.fullmatch, expected, caplog.messages))
    assert re.findall("round .", (tmp_path / "log.txt").read_text()) == ["round 0", "round 4", "round 5"]
    assert (tmp_path / "progress.csv").read_text() == "n,other\n0,\n4,\n5,6\n"
    assert [json.loads(line)["n"] for line in (tmp_path / "progress.json").read_text().splitlines()] == [0, 4, 5]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert [(e.step, e.value) for e in EventAccumulator(str(tmp_path / "tb")).Reload().Scalars("n")] == [
        (1, 0), (5, 4), (6, 5),
    ]  # fmt: skip
    assert names(tmp_path) == [*FILES, "tb"]  # no temporary file


@pytest.mark.parametrize("begun", [False, True])
def test_files_that_cannot_be_opened_are_opened_later(tmp_path, caplog, begun):
    if begun:
        with logger.scoped_configure(dir=tmp_path, format_strs=["log", "csv", "json"]):
            write_round(0, old=1)
    with nothing_opens(*FILES):
        logger.configure(dir=tmp_path, format_strs=["log", "csv", "json"])
        write_round(1)
    write_round(2)
    assert [line.split(";")[0] for line in sorted(caplog.messages)] == [
        f"warning: {tmp_path / name}: Stale file handle" for name in FILES
    ]
    assert (tmp_path / "progress.csv").read_text() == ("n,old\n0,1\n2,\n" if begun else "n\n2\n")
    assert re.findall("round .", (tmp_path / "log.txt").read_text()) == ["round 0"] * begun + ["round 2"]


def test_a_table_that_cannot_be_replaced_goes_on_without_the_new_columns(tmp_path, caplog, monkeypatch):
    logger.configure(dir=tmp_path, format_strs=["csv"])
    write_round(0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", mock.Mock(side_effect=OSError(errno.EROFS, "Read-only file system")))
        write_round(1, new=1)
        write_round(2, new=2)
    write_round(3, new=3)
    assert (tmp_path / "progress.csv").read_text() == "n,new\n0,\n1,\n2,\n3,3\n"
    (told,) = caplog.messages
    assert "progress.csv: Read-only file system; the run continues" in told


def test_quartiles_stand_in_the_line_of_their_value(tmp_path):
    values = {"loss": 1.5, "loss_q0": 0.25, "loss_q3": 2.0, "other_q1": 1, "step": 3}
    logger.HumanOutputFormat(tmp_path / "log.txt").writekvs(values)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[1:-1]] == ["loss", "other_q1", "step"]
    assert lines[1].split("|")[2].split() == ["1.5", "q0", "0.25", "q1", "-", "q2", "-", "q3", "2"]
    assert len({len(line) for line in lines}) == 1


def test_a_line_that_fits_half_is_left_out(tmp_path, caplog):
    writer = logger.HumanOutputFormat(tmp_path / "log.txt")
    writer.writeseq(["first"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        writer.writeseq(["second", "x" * 100])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.writeseq(["third"])
    assert (tmp_path / "log.txt").read_text() == "first\nthird\n" and len(caplog.messages) == 1


@pytest.mark.slow
def test_the_warning_is_a_line_on_stderr_and_in_the_log(tmp_path):
    (tmp_path / "out" / "progress.csv").mkdir(parents=True)
    (tmp_path / "out" / "progress.json").symlink_to("/dev/full")
    program = tmp_path / "program.py"
    program.write_text(
        "from guided_diffusion import dist_util, logger\n"
        "from guided_diffusion.runs import failure_log\n"
        "def main():\n"
        "    failure_log.keep_warnings()\n"
        "    logger.configure(dir='out', format_strs=['log', 'csv', 'json'])\n"
        "    for n in range(3):\n"
        "        logger.logkv('n', n)\n"
        "        logger.dumpkvs()\n"
        "dist_util.run_main(main)\n"
    )
    done = subprocess.run(
        [sys.executable, program], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = [
        f"warning: {tmp_path}/out/progress.{kind}: {why}; the run continues, with gaps in this file"
        for kind, why in (("csv", "Is a directory"), ("json", "No space left on device"))
    ]
    assert done.stderr.splitlines() == lines
    log = (tmp_path / "out" / "log.txt").read_text()
    assert lines[1] in log and log.count("| n |") == 3


def test_bytes_that_are_no_text_cost_nothing(tmp_path, caplog):
    (tmp_path / "progress.csv").write_bytes(b"n,name\n0,\xff\xe9\n")
    logger.configure(dir=tmp_path, format_strs=["log", "csv", "json"])
    write_round(1, name="\udcff", more=2)
    assert (tmp_path / "progress.csv").read_text() == "n,name,more\n0,\\xff\\xe9,\n1,\\udcff,2\n"
    assert "\\udcff" in (tmp_path / "log.txt").read_text() and not caplog.messages
    assert json.loads((tmp_path / "progress.json").read_text())["name"] == "\udcff"


def test_the_default_directory_cannot_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    with pytest.raises(InputError, match=r"log directory .*/runs/.*: cannot be made: Not a directory"):
        logger.configure()


def test_suffixes_and_expanded_home(tmp_path):
    os.environ |= {"HOME": str(tmp_path), "PMI_RANK": "1"}
    logger.configure(dir="~/logs", format_strs=["log", "csv"], log_suffix="-x")
    assert names(tmp_path / "logs") == ["log-x-rank001.txt", "progress-x-rank001.csv"]


def test_unusable_arguments(tmp_path):
    with pytest.raises(ValueError, match="log format: .* found 'xml'") as caught:
        logger.make_output_format("xml", tmp_path)
    assert isinstance(caught.value, InputError)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"log directory .*/file/below: cannot be made: Not a directory"):
        logger.configure(dir=tmp_path / "file" / "below")
    with pytest.raises(TypeError, match="expected a file name or an open text file"):
        logger.HumanOutputFormat(3)


def test_default_directories_are_new_and_below_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["scripts/image_sample.py"])
    monkeypatch.setattr("time.strftime", lambda form: "2026-11-23-12-30-05")
    found = []
    for _ in range(3):
        logger.configure(format_strs=["stdout"])
        found.append(logger.get_dir())
    stem = f"{tmp_path}/runs/image_sample-2026-11-23-12-30-05"
    assert found == [stem, f"{stem}-2", f"{stem}-3"]
    assert capsys.readouterr().out.splitlines()[0] == f"Logging to {stem}"


@pytest.mark.parametrize(
    "argument, name", [("-c", "python"), ("", "python"), ("/x/tool/__main__.py", "tool"), ("a.b.py", "a.b")]
)
def test_programs_without_a_name(tmp_path, monkeypatch, argument, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [argument])
    logger.log("configured at first use")
    assert logger.Logger.DEFAULT is logger.Logger.CURRENT
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(rf"{name}-\d{{4}}(-\d\d){{5}}", folder.name)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["mpiexec", "torchrun"])
def test_all_ranks_share_one_new_directory(tmp_path, launcher):
    program = tmp_path / "program.py"
    program.write_text(
        "import time\nfrom guided_diffusion import dist_util, logger\n"
        "def main():\n"
        "    dist_util.setup_dist()\n"
        "    time.sleep(1.1 * dist_util.get_rank())\n"
        "    for _ in range(2):\n"
        "        logger.configure()\n"
        "        logger.logkv('rank', dist_util.get_rank())\n"
        "        logger.dumpkvs()\n"
        "dist_util.run_main(main)\n"
    )
    done = subprocess.run(
        [*launch_prefix(launcher), str(program)],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert names(folder) == ["log-rank001.txt", "log.txt", "progress.csv"]
        assert done.stdout.count(f"Logging to {folder}\n") == 1
