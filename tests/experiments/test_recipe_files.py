"""Recipes that are wrong: circles, paths out of the tree, values of any kind. A plan, or a line with file and key."""

from __future__ import annotations

import json
import math
import os
import signal
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.commands import Commands
from experiments.describe import details, listing
from experiments.plan import plan
from experiments.spec import IMAGENET
from experiments.spec_files import PROGRAMS, load
from guided_diffusion.errors import InputError
from tests.support.experiments import CLASSIFIER_SPEC, DERIVED_SPEC, write_spec
from tests.support.helpers import ROOT

EXAMPLES = int(os.environ.get("ED_DPM_FUZZ", "0"))
DERIVED_NAMES = ("calibrated", "second", "third")


@pytest.fixture
def book(tmp_path) -> Path:
    """A book with a base, replaced flags, sweeps, trained and derived networks and a derived part."""
    return write_spec(tmp_path / "book")


@contextmanager
def soon(seconds: int = 20) -> Iterator[None]:
    """Ends what would go on for ever."""

    def stop(*_: object) -> None:
        raise AssertionError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def change(book: Path, file: str, old: str, new: str) -> None:
    text = (book / file).read_text()
    assert old in text
    (book / file).write_text(text.replace(old, new, 1))


def refused(book: Path, *says: str) -> None:
    with soon(), pytest.raises(InputError) as error:
        load(book)
    line = str(error.value)
    assert "\n" not in line and len(line) < 1000
    assert all(part in line for part in says), line


def derive(book: Path, name: str, origin: str) -> None:
    text = CLASSIFIER_SPEC.format(name=name) + DERIVED_SPEC.replace('network = "plain"', f'network = "{origin}"')
    (book / "networks" / f"{name}.toml").write_text(text)


def test_real_images_of_written_data_can_be_judged_and_nothing_else(book):
    with (book / "tables" / "rules.toml").open("a") as file:
        file.write('[[rows]]\nkey = "real"\nmethod = "real"\nbatch = "train.npz"\nreference = "heldout.npz"\n')
    assert load(book).rows("rules/real")[0].batch == "train.npz"
    change(book, "tables/rules.toml", '"train.npz"', '"admnet_imagenet64.npz"')
    refused(book, "rules.toml: rows[4].batch: found 'admnet_imagenet64.npz', expected one of train.npz")


# ---- networks that are made of others


def test_a_chain_of_derivations_is_planned_in_an_order_that_works(book, tmp_path):
    """The first link is the last name: neither the order of the files nor that of the rows is the right one."""
    links = [f"link{number:02d}" for number in range(40)]
    for name, origin in zip(links, [*links[1:], "plain"], strict=True):
        derive(book, name, origin)
    change(book, "base/runs/uncond-calibrated-constant.toml", '"calibrated"', '"link00"')
    with soon():
        loaded = load(book)
        steps = plan(Commands(loaded, out=tmp_path / "out", processes=1), loaded.rows("rules/calibrated"))
    names = [step.name for step in steps]
    assert [name for name in names if name.startswith("derive-")] == [f"derive-{name}" for name in reversed(links)]
    made = set()
    for step in steps:
        assert set(step.inputs) <= made, step.name
        made.update(step.outputs)


def test_every_step_of_a_book_with_parts_comes_after_what_it_needs(book, tmp_path):
    loaded = load(book)
    made = set()
    for step in plan(Commands(loaded, out=tmp_path / "out", processes=1), loaded.rows("all")):
        assert set(step.inputs) <= made, step.name
        made.update(step.outputs)


def test_a_training_with_seeds_is_a_network_for_each_and_runs_can_have_several_classifiers(book, tmp_path):
    again = 'batch_size = 16\nseeds = [3, 0]\nnetworks = { model_path = "uncond" }'
    text = (book / "networks" / "plain.toml").read_text().replace('"plain"', '"twin"', 1)
    (book / "networks" / "twin.toml").write_text(text.replace("batch_size = 16", again))
    run = 'model = "uncond"\nclassifier = ["twin-3", "twin-0"]\nreference = "heldout.npz"\n'
    run += '[flags]\nnum_samples = 8\ntimestep_respacing = "ddim5"\n'
    flags = '[sweep]\nflag = "classifier_scale"\nvalues = [1, 2]\n'
    (book / "base" / "runs" / "both.toml").write_text(run + flags)
    with (book / "tables" / "rules.toml").open("a") as file:
        file.write('[[rows]]\nkey = "twin"\nmethod = "twin"\nsweep = "both-twin-0"\n')
    loaded = load(book)
    assert [loaded.runs[name].classifier for name in ("both-twin-3-2", "both-twin-0-1")] == ["twin-3", "twin-0"]
    (row,) = loaded.rows("rules/twin")
    assert row.sweep == ("both-twin-0-1", "both-twin-0-2")
    commands = Commands(loaded, out=tmp_path / "out", processes=1)
    model = commands.checkpoint(loaded.networks["uncond"])
    steps = {step.name: step for step in plan(commands, [row])}
    assert "train-twin-3" not in steps
    words = " ".join(steps["train-twin-0"].command)
    assert "--seed 0" in words and f"--model_path {model}" in words and model in steps["train-twin-0"].inputs
    made = set()
    for step in steps.values():
        assert set(step.inputs) <= made, step.name
        made.update(step.outputs)


def test_a_classifier_named_twice(book):
    path = book / "base" / "runs" / "uncond-calibrated-constant.toml"
    path.write_text(path.read_text().replace('"calibrated"', '["calibrated", "calibrated"]'))
    refused(book, "uncond-calibrated-constant.toml: the name uncond-calibrated-constant-calibrated", "is taken")


@pytest.mark.parametrize("seeds", ["3", "[]", "[-1]", "[true]", '["1"]', "[1, 1]"])
def test_seeds_of_a_training_are_whole_numbers(book, seeds):
    change(book, "networks/plain.toml", "batch_size = 16", f"batch_size = 16\nseeds = {seeds}")
    refused(book, "plain.toml: training.seeds: found", "expected whole numbers from 0 on")


def test_a_network_derived_from_itself(book):
    derive(book, "calibrated", "calibrated")
    refused(book, str(book), "networks: found a circle, calibrated -> calibrated")


def test_networks_derived_from_each_other(book):
    for name, origin in zip(DERIVED_NAMES, [*DERIVED_NAMES[1:], DERIVED_NAMES[0]], strict=True):
        derive(book, name, origin)
    refused(book, "found a circle", *(f"{name} ->" for name in DERIVED_NAMES))


def test_a_circle_through_a_part_of_the_data(book):
    change(book, "book.toml", 'network = "features"', 'network = "subclasses"')
    refused(book, "found a circle", "part halves -> subclasses")


def test_two_networks_in_one_folder(book):
    change(book, "networks/calibrated.toml", 'checkpoint = "calibrated"', 'checkpoint = "plain"')
    refused(book, "networks calibrated and plain: one checkpoint")


# ---- what a recipe can name


def test_the_programs_are_there_and_know_their_flags():
    for programs in PROGRAMS.values():
        for name, flags in programs.items():
            if name != IMAGENET:
                assert all(f'"{flag}"' in (ROOT / name).read_text() for flag in flags)


@pytest.mark.parametrize("program", [
    "/tmp/x.py", "../x.py", "scripts/image_train.py", "experiments/cifar10/subclasses.py", "", " ",
    *(f"experiments/cifar10/calibrate.py {words}" for words in (
        "other.pt", "--temperature", "--temperature --temperature", "--temperature nan", "--temperature=2",
        "--clusters 5",
    )),
])  # fmt: skip
def test_a_program_is_one_that_we_know(book, program):
    change(book, "networks/calibrated.toml", '"experiments/cifar10/calibrate.py"', json.dumps(program))
    expected = "experiments/cifar10/calibrate.py [--temperature N]"
    refused(book, f"{book}/networks/calibrated.toml: derived.program: found", expected)


@pytest.mark.parametrize("data", [
    "/tmp/x.py", "experiments/digits/data.py /tmp", "experiments/digits/data.py  5", "experiments/cifar10/calibrate.py",
])  # fmt: skip
def test_data_comes_from_a_program_that_we_know(book, data):
    change(book, "book.toml", "experiments/cifar10/data.py --size 8", data)
    expected = "imagenet or experiments/digits/data.py or experiments/cifar10/data.py [--size N]"
    refused(book, f"{book}/book.toml: data: found", expected)


@pytest.mark.parametrize("checkpoint", ["../..", "..", ".", "", "a/b", "/tmp/a", "-a", "a\\nb", "x" * 300])
@pytest.mark.parametrize("name", ["plain", "calibrated"])
def test_a_folder_to_fill_has_a_plain_name(book, name, checkpoint):
    change(book, f"networks/{name}.toml", f'checkpoint = "{name}"', f'checkpoint = "{checkpoint}"')
    refused(book, f"{book}/networks/{name}.toml: checkpoint: found", "a plain name")


@pytest.mark.parametrize("part", ["..", "/tmp", "evaluator", ""])
def test_a_part_has_a_plain_name_of_its_own(book, part):
    change(book, "book.toml", "[parts.halves]", f'[parts."{part}"]')
    refused(book, f"{book}/book.toml: parts: found {part!r}, expected a plain name other than train")


def test_a_checkpoint_lies_in_the_repository_or_with_the_recipes(book, tmp_path):
    outside, file = tmp_path / "secret.pt", "networks/plain.toml"
    outside.write_bytes(b"")
    whole = (book / file).read_text()
    change(book, file, whole[whole.index("[training]") :], "")
    plain = (book / file).read_text()

    def name(path: str) -> None:
        (book / file).write_text(plain.replace('checkpoint = "plain"', f'checkpoint = "{path}"'))

    (book / "link.pt").symlink_to(outside)
    for path in (outside, os.path.relpath(outside, ROOT), book / "link.pt", book / ".." / "secret.pt", book, "none.pt"):
        name(str(path))
        refused(book, f"{book}/{file}: checkpoint: found", "one of the repository or of these recipes")
    (book / "own.pt").write_bytes(b"")
    shipped = "experiments/digits/model/uncond.safetensors"
    for path in (book / "own.pt", shipped, f"experiments/../{shipped}"):
        name(str(path))
        assert load(book).networks["plain"].checkpoint == str(path)


@pytest.mark.parametrize("base", ["..", "/tmp", "nowhere", "book.toml", "link"])
def test_a_base_lies_in_the_repository_or_with_the_recipes(book, base):
    (book / "link").symlink_to("/tmp")
    change(book, "book.toml", 'base = "base"', f'base = "{base}"')
    refused(book, f"{book}/book.toml: base: found {base!r}, expected a folder of the repository")


@pytest.mark.parametrize(("file", "old", "new", "says"), [
    ("networks/plain.toml", "noised = true", 'data_dir = "/"', "training.flags.data_dir: found '/', expected a flag"),
    ("networks/plain.toml", "noised = true", 'resum = "/x"', "training.flags.resum: found '/x'"),
    ("networks/plain.toml", "noised = true", 'noised = "--log_dir=/"', "training.flags.noised: found '--log_dir=/'"),
    ("networks/plain.toml", "noised = true", '"a b" = 1', "training.flags.a b: found 1"),
    ("networks/uncond.toml", 'ema_rate = "0.5"', 'ema_rate = "../0.5"', "training.flags.ema_rate: found '../0.5'"),
    ("base/runs/uncond-plain-constant.toml", 'flag = "classifier_scale"', 'flag = "model_path"', "sweep.model_path"),
])  # fmt: skip
def test_flags_name_no_files(book, file, old, new, says):
    change(book, file, old, new)
    refused(book, f"{book}/{file}: {says}")


# ---- values


@pytest.mark.parametrize(("file", "old", "new", "says"), [
    ("book.toml", "seeds = [1, 2]", "seeds = [1, 1]", "seeds: found [1, 1], expected whole numbers from 0 on, each"),
    ("book.toml", "seeds = [1, 2]", "seeds = [{}]", "seeds: found [{}]"),
    ("book.toml", "[parts.halves]", "[other.halves]", "other: no such key"),
    ("book.toml", "[parts.halves]", "parts.a = 5\n[parts.halves]", "parts.a: found 5, expected a table"),
    ("book.toml", "num_samples = 48", "num_samples = [1]", "replace.num_samples: found [1]"),
    ("book.toml", "num_samples = 48", 'num_samples = "4"', "replace.num_samples: found '4', expected a whole number"),
    ("book.toml", '"ddim5" }', "[] }", "replace.timestep_respacing: found []"),
    ("networks/plain.toml", "iterations = 20", "", "training.flags.iterations: missing, expected a whole number"),
    ("networks/plain.toml", "iterations = 20", "iterations = 0", "training.flags.iterations: found 0, expected a"),
    ("networks/plain.toml", "batch_size = 16", "batch_size = -16", "training.batch_size: found -16"),
    ("networks/plain.toml", "lr = 1e-3", "lr = nan", "training.flags.lr: found NUL, nan, inf or more than 64 bits"),
    ("networks/plain.toml", "lr = 1e-3", f"lr = 0x{'f' * 5000}", "training.flags.lr: found NUL, nan, inf or more"),
    ("networks/plain.toml", "lr = 1e-3", 'lr = "\\u0000"', "training.flags.lr: found NUL, nan, inf or more"),
    ("networks/plain.toml", 'part = "train"', 'part = "val"', "training.part: found 'val', expected one of train"),
    ("networks/plain.toml", "image_size = 8", "image_size = 8.5", "flags.image_size: found 8.5"),
    ("networks/calibrated.toml", "[derived]", "[training]", "training.batch_size: missing"),
    ("networks/uncond.toml", 'ema_rate = "0.5"', "", "training.flags.ema_rate: missing, expected text"),
    ("tables/rules.toml", "[[rows]]", "[[other]]", "other: no such key"),
    ("tables/rules.toml", 'key = "constant"', "key = {}", "rows[0].key: found {}, expected text"),
    ("tables/rules.toml", 'key = "constant"', f"key = {'[' * 60 + ']' * 60}", "rows[0].key: found [[[[[[[...]]]]]]]"),
    ("tables/rules.toml", 'method = "constant"', 'method = "a"\npaper = 5', "rows[0].paper: found 5, expected a table"),
])  # fmt: skip
def test_a_wrong_value_is_named_by_file_and_key(book, file, old, new, says):
    change(book, file, old, new)
    refused(book, f"{book}/{file}: {says}")


@pytest.mark.parametrize("rows", ["5", "[]", "[5]", "{}"])
def test_rows_are_tables(book, rows):
    (book / "tables" / "rules.toml").write_text(f'title = "a"\nrows = {rows}\n')
    refused(book, f"{book}/tables/rules.toml: rows")


@pytest.mark.parametrize("values", ["{}", "[]", "[[1]]", '["1"]', "[true]", "5", '["a/b"]', '[""]'])
def test_the_values_of_a_sweep_are_those_of_its_flag(book, values):
    file = book / "base" / "runs" / "uncond-plain-constant.toml"
    text = file.read_text()
    file.write_text(text[: text.index("values = ")] + f"values = {values}\n")
    refused(book, f"{file}: sweep.values: found")


def test_a_sweep_over_names(book):
    file = book / "base" / "runs" / "uncond-plain-constant.toml"
    text = file.read_text()
    sweep = '[sweep]\nflag = "timestep_respacing"\nvalues = ["ddim5", "ddim10"]\n'
    file.write_text(text[: text.index("[sweep]")] + sweep)
    runs = load(book).runs
    found = {name: runs[f"uncond-plain-constant-{name}"].flags["timestep_respacing"] for name in ("ddim5", "ddim10")}
    assert found == {"ddim5": "ddim5", "ddim10": "ddim10"}


ODD_FILES: dict[str, Callable[[Path], Any]] = {
    "found a folder": Path.mkdir,
    "a named pipe": os.mkfifo,
    "regular file": lambda path: path.symlink_to("/dev/null"),
    "No such file": lambda path: path.symlink_to("nowhere"),
    "utf-8": lambda path: path.write_bytes(b'title = "\xff"'),
    "recursion": lambda path: path.write_text(f"a = {'[' * 10_000}"),
    "digits": lambda path: path.write_text(f"a = {'9' * 10_000}"),
    "title: found {'a': {'a'": lambda path: path.write_text(f"title.{'a.' * 1500}a = 1"),
    "Expected '='": lambda path: path.write_text("a"),
}


@pytest.mark.parametrize("file", ["book.toml", "networks/plain.toml", "tables/rules.toml"])
@pytest.mark.parametrize("says", ODD_FILES)
def test_what_is_no_recipe_is_named(book, file, says):
    (book / file).unlink()
    ODD_FILES[says](book / file)
    if says.startswith("title") and file.startswith("networks"):
        says = "checkpoint: missing"
    refused(book, f"{book}/{file}: ", says)


# ---- any values


class Raw(str):
    """TOML as it is."""


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    return value if isinstance(value, Raw) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*path, key)
        yield from places(part, (*path, key))


ODD: list[Any] = [
    0, 1, -1, 5, 2**31, 2**63 - 1, 2**63, -(2**64), True, False, 0.0, -0.5, 1e308, 1e-308, math.nan, math.inf,
    -math.inf, "", " ", ".", "..", "../..", "/etc/passwd", "a/b", "a\0b", "x" * 300, "é", "\n", "--help", "imagenet",
    "experiments/digits/data.py", [], {}, [[]], [{}], {"a": {}}, [1, "a"], {"250": "5"}, Raw("1979-05-27"),
    Raw("07:32:00"),
    Raw("0x" + "f" * 5000), Raw("[" * 50 + "]" * 50), Raw("{a=" * 50 + "1" + "}" * 50), Raw("[" * 5000 + "]" * 5000),
]  # fmt: skip


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    """A valid book, and what is in its files."""
    folder = write_spec(tmp_path_factory.mktemp("valid") / "book")
    derive(folder, "second", "calibrated")
    files = sorted(path for path in folder.rglob("*.toml"))
    return folder, {str(path.relative_to(folder)): tomllib.loads(path.read_text()) for path in files}


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES or 300, derandomize=not EXAMPLES, database=None, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(data=st.data())
def test_mutated_recipes_make_a_plan_or_one_line(valid, data):
    folder, contents = valid
    keys = {str(key) for content in contents.values() for path in places(content) for key in path}
    words = sorted(keys) + sorted(Path(name).stem for name in contents)
    odd = st.sampled_from(ODD).map(deepcopy)  # what is drawn may be changed in its turn
    file = data.draw(st.sampled_from(sorted(contents)))
    content = deepcopy(contents[file])
    for _ in range(data.draw(st.integers(1, 3))):
        if not content:
            break
        *way, key = data.draw(st.sampled_from(list(places(content))))
        holder = content
        for step in way:
            holder = holder[step]
        act = data.draw(st.sampled_from(["value", "value", "name", "remove", "add", "key"]))
        if act == "remove":
            del holder[key]
        elif act == "key" and isinstance(holder, dict):
            holder[data.draw(st.sampled_from(words))] = holder.pop(key)
        elif act == "add" and isinstance(holder, dict):
            holder[data.draw(st.sampled_from(words) | st.text(max_size=5))] = data.draw(odd)
        else:
            text = st.text(st.characters(codec="utf-8"), max_size=5)
            holder[key] = data.draw(st.sampled_from(words) if act == "name" else odd | text)
    before = (folder / file).read_text()
    try:
        (folder / file).write_text("".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in content.items()))
        with soon():
            loaded = load(folder)
            commands, rows = Commands(loaded, processes=1), loaded.rows("all")
            made = plan(commands, rows)
            assert len({step.name for step in made}) == len(made)
            assert list(listing(loaded)) and list(details(commands, rows))
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
    finally:
        (folder / file).write_text(before)


def test_the_valid_book_is_valid(valid):
    folder, contents = valid
    loaded = load(folder)
    for file, content in contents.items():
        (folder / file).write_text("".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in content.items()))
    assert load(folder) == loaded
