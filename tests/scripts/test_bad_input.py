"""Malformed input: one clear line, a non-zero status on every rank, soon, and nothing overwritten.

The rows are in `bad_inputs.py`. Those of the scripts run alone, each in a process of its own; on two ranks all in one
process group; and some in groups of their own, as users start them.
"""

from __future__ import annotations

import json
import pickle
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from evaluations.image_sets import open_image_set
from experiments import cli
from experiments.spec import RECIPES as THE_RECIPES
from experiments.spec_files import load
from guided_diffusion.config import builders
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig
from guided_diffusion.errors import InputError
from guided_diffusion.io import checkpoint
from guided_diffusion.script_util import build_classifier, build_model
from tests.support.bad_files import Malicious, make_bad_files
from tests.support.bad_inputs import BASE, COMMANDS, ENVIRONMENT, IMAGE_SETS, MIDWAY, RECIPES, SCRIPTS, Case
from tests.support.helpers import CLASSIFIER, MODEL, ROOT, as_arguments, tree
from tests.support.helpers import SCRIPTS as FOLDER

SOON = 60  # seconds; a hang would last for ever, a busy machine needs some of them
PRECIOUS = ("samples_4x8x8x3.npz", "vb_terms.npz", "model000000.pt", "opt000000.pt", "config.json")


def pick(*names: str) -> list[Case]:
    found = [case for case in SCRIPTS if str(case) in names]
    assert len(found) == len(names), "a name is misspelt"
    return found


ON_RANKS_OF_THEIR_OWN = pick(
    "classifier_sample: wrong shape",
    "classifier_sample: no boolean",
    "classifier_sample: log_dir below a file",
    "super_res_sample: object array",
    "classifier_train: no optimizer to resume",
    "classifier_train: corrupt image",
    "classifier_train: diverging",
    "classifier_train: decompression bomb",
    "image_nll: corrupt image",
)

THROUGH_MPIEXEC = pick(
    "classifier_sample: missing checkpoint",
    "classifier_sample: malicious pickle",
    "classifier_sample: unknown flag",
    "super_res_sample: no arr_0",
    "classifier_train: corrupt image",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory, images, checkpoints) -> dict[str, str]:
    return make_bad_files(tmp_path_factory.mktemp("bad"), images, checkpoints)


def arguments(case: Case, files: dict[str, str]) -> dict[str, str]:
    return {name: str(value).format_map(files) for name, value in (BASE[case.script] | case.flags).items()}


def precious(case: Case) -> set[str]:
    """Results of other runs. Training refuses a folder with the checkpoints of another run."""
    return set(PRECIOUS[:2] if case.script.endswith("train") else PRECIOUS)


def prepare(case: Case, folder: Path) -> Path:
    """A folder of results that must survive."""
    (folder / "out").mkdir(parents=True)
    for name in precious(case):
        (folder / "out" / name).write_bytes(b"precious")
    return folder


def check_what_is_left(case: Case, folder: Path, files: dict[str, str]) -> None:
    found = {name: data for name, data in tree(folder / "out").items() if not name.startswith(("log", "progress"))}
    assert all(found[name] == b"precious" for name in precious(case))
    assert set(found) - precious(case) <= {"run.json", "status.json", "config.json"}, sorted(found)
    assert not (Path(files["nowhere"]).parent / "executed").exists(), "code in a file was run"


@pytest.fixture
def fails(run, files, tmp_path):
    """Runs a case in a folder that holds results already; returns how it ended."""

    def check(case: Case, launcher: str):
        prepare(case, tmp_path)
        environment = {name: value.format_map(files) for name, value in case.environment.items()}
        flags = arguments(case, files)
        if "OPENAI_LOGDIR" in environment:
            del flags["log_dir"]
        ended = run(case.script, flags, launcher=launcher, fails=True, timeout=SOON, environment=environment)

        assert len(ended.error_lines) >= 1, ended
        # When a rank notices that its peer has gone before the launcher ends it, it says so. That is all it may say.
        told = [line for line in ended.error_lines if " failed: " not in line]
        for line in told:
            assert all(fragment in line for fragment in case.says), line
        lost_peer = launcher == "fork2" and case.midway and "onnection" in ended.stderr
        assert told, ended.stderr
        assert "Traceback" not in ended.stderr or (lost_peer and "InputError" not in ended.stderr), ended.stderr
        assert all(status in (1, 2) for status in ended.statuses) or launcher == "mpiexec"
        check_what_is_left(case, tmp_path, files)
        return ended

    return check


@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2", "none"])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_network_is_measured_before_it_is_built(monkeypatch, pool, depth):
    """By no more than it takes: its weights and one feature map."""
    if pool == "none":
        config = ModelConfig(**MODEL | {"num_res_blocks": depth}, class_cond=True, num_classes=500)
        build, width = lambda: build_model(config, DiffusionConfig()), config.num_channels
    else:
        config = ClassifierConfig(**CLASSIFIER | {"classifier_depth": depth}, classifier_pool=pool)
        build, width = lambda: build_classifier(config), config.classifier_width
    size = sum(values.nbytes for values in build().parameters())
    monkeypatch.setattr(builders, "machine_memory", lambda: size + 4 * width * config.image_size**2)
    build()
    monkeypatch.setattr(builders, "machine_memory", lambda: size // 30)
    monkeypatch.setattr(builders, "_build", lambda *args, **kwargs: pytest.fail("it was built"))
    with pytest.raises(InputError, match="found a network that takes at least"):
        build()


def test_the_marker_of_the_malicious_files_works(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_the_table_is_a_table():
    names = [str(case) for case in SCRIPTS]
    assert len(set(names)) == len(names) and len(names) + len(IMAGE_SETS) + len(COMMANDS) + len(RECIPES) >= 150
    assert all(case.says for case in SCRIPTS)


def test_an_error_is_one_line_whatever_a_file_calls_its_tensors(tmp_path):
    checkpoint.save({"a\nb\r\u2028c": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="1 unexpected: a b  c") as error:
        checkpoint.load_weights(torch.nn.Linear(1, 1), tmp_path / "model.pt")
    assert len(str(pickle.loads(pickle.dumps(error.value))).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", SCRIPTS, ids=str)
def test_alone(fails, case):
    ended = fails(case, "fork")
    assert len(ended.error_lines) == 1, ended.stderr
    assert ended.statuses == [2]


@pytest.mark.slow
def test_two_ranks_say_the_same(run, files, tmp_path):
    """All rows that stop before the first step of the work, in one process group."""
    cases = [case for case in SCRIPTS if case not in MIDWAY + ENVIRONMENT]
    folders = [prepare(case, tmp_path / str(index)) for index, case in enumerate(cases)]
    rows = [
        {"program": str(FOLDER / f"{case.script}.py"), "argv": as_arguments(arguments(case, files)), "cwd": str(folder)}
        for case, folder in zip(cases, folders, strict=True)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    program = ROOT / "tests" / "support" / "bad_rows_program.py"
    run(program, [str(tmp_path / "rows.json")], launcher="fork2", timeout=480)
    ends = [[json.loads(line) for line in (tmp_path / f"ends-{rank}.jsonl").open()] for rank in (0, 1)]
    for case, folder, told, also_told in zip(cases, folders, *ends, strict=True):
        assert told is not None and also_told is not None, f"{case}: a rank went on"
        assert "Traceback" not in told + also_told, f"{case}: {told} {also_told}"
        assert told.strip().count("\n") == 0 and all(fragment in told for fragment in case.says), f"{case}: {told}"
        if also_told:  # argparse speaks on the first rank alone
            assert also_told.count("\n") == 0 and "found" in also_told or also_told == told, f"{case}: {also_told}"
        check_what_is_left(case, folder, files)


@pytest.mark.slow
@pytest.mark.parametrize("case", ON_RANKS_OF_THEIR_OWN, ids=str)
def test_every_rank_ends(fails, case):
    fails(case, "fork2")


@pytest.mark.slow
@pytest.mark.parametrize("case", THROUGH_MPIEXEC, ids=str)
def test_through_mpiexec(fails, case):
    fails(case, "mpiexec")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["mpiexec", "torchrun"])
def test_a_rank_that_fails_takes_the_job_with_it(run, tmp_path, launcher):
    """Rank 1 raises while rank 0 waits for it in a collective."""
    program = tmp_path / "program.py"
    program.write_text(
        "import torch, torch.distributed as dist\n"
        "from guided_diffusion import dist_util\n"
        "def main():\n"
        "    dist_util.setup_dist()\n"
        "    if dist_util.get_rank() == 1:\n"
        "        raise RuntimeError('rank 1 has had enough')\n"
        "    dist.all_reduce(torch.zeros(1))\n"
        "dist_util.run_main(main)\n"
    )
    ended = run(program, launcher=launcher, fails=True, timeout=SOON)
    assert "rank 1 has had enough" in ended.stderr


def one_line(error: pytest.ExceptionInfo, says: str) -> None:
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "path", "says"), IMAGE_SETS, ids=[row[0] for row in IMAGE_SETS])
def test_images_to_judge(files, name, path, says):
    with pytest.raises(InputError) as error:
        images = open_image_set(path.format_map(files))
        list(images.batches(2))
    one_line(error, says)
    assert not (Path(files["nowhere"]).parent / "executed").exists(), "code in a file was run"


@pytest.mark.parametrize(("name", "words", "says"), COMMANDS, ids=[row[0] for row in COMMANDS])
def test_commands_of_ed_dpm(files, monkeypatch, tmp_path, name, words, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ed-dpm", *shlex.split(words.format_map(files))])
    with pytest.raises(InputError) as error:
        cli.main()
    one_line(error, says)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("file", "old", "new", "says"), RECIPES)
def test_a_broken_recipe_names_file_and_key(tmp_path, file, old, new, says):
    directory = tmp_path / "recipes"
    shutil.copytree(THE_RECIPES, directory)
    text = (directory / file).read_text()
    assert old in text
    (directory / file).write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        load(directory)
    one_line(error, says)
    assert str(directory / file) in str(error.value)
