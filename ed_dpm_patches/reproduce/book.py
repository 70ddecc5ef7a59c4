"""Experiments as read from a folder of recipes: networks, runs, and the tables whose rows name them.

    book = load()                                  # the paper's; load(Path("demo/recipes")): the digits'
    row = book.row("table1/cadm-g-ect-eds-ddpm250")
    book.runs[row.run].flags

A run is one set of samples for each seed; rows of several tables can name the same one. `recipes/README.md` has
the format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guided_diffusion.errors import InputError

from .published import PUBLISHED
from .toml_entry import KIND_NAMES, Entry, Flags, read_entry

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
ROOT = RECIPES.parents[1]  # of the repository
IMAGENET = "imagenet"
DIGITS = "demo/digits.py"
# What a program that writes data leaves: folders of images and, of the same names, npz files with labels.
PARTS = ("train", "evaluator", "heldout")
HELDOUT = "heldout.npz"
SAMPLERS = {"ddpm": "DDPM", "ddim": "DDIM", "dpmpp2m": "DPM-Solver++(2M)", "unipc": "UniPC"}  # --sampler: name


@dataclass(frozen=True)
class Figures:
    """What a paper or release prints for one row; None where it prints nothing."""

    fid: float | None = None
    sfid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None


@dataclass(frozen=True)
class Training:
    """How to train a network that nobody publishes.

    :param batch_size: images a step over all processes together; flags: of the script.
    :param script: classifier_train or image_train; part: the folder of the data that it learns from.
    """

    batch_size: int
    flags: Flags
    script: str = "classifier_train"
    part: str = "train"


@dataclass(frozen=True)
class Derivation:
    """How a program makes a network of another one.

    :param program: of the repository; checkpoint, npz file and new file are its arguments.
    :param network: key of `Book.networks`; part: of the written data, whose npz file it reads.
    """

    program: str
    network: str
    part: str


@dataclass(frozen=True)
class Network:
    """A checkpoint and the flags that make its architecture and precision.

    :param checkpoint: name of a published file; with `training` or `derived` the name of the folder that they fill;
        else a file of the repository. parameters: how many numbers it holds.
    """

    name: str
    checkpoint: str
    parameters: int
    flags: Flags
    training: Training | None = None
    note: str = ""
    derived: Derivation | None = None

    @property
    def is_made(self) -> bool:
        """Whether we make it ourselves."""
        return bool(self.training or self.derived)


@dataclass(frozen=True)
class Run:
    """One set of samples.

    :param model, classifier: keys of `Book.networks`; no classifier means unguided sampling.
    :param reference: the evaluator's reference batch.
    :param flags: of the sampling script, on top of those of the networks.
    """

    name: str
    model: str
    reference: str
    flags: Flags
    classifier: str | None = None
    note: str = ""

    @property
    def num_samples(self) -> int:
        return self.flags["num_samples"]

    @property
    def sampler(self) -> str:
        """Such as "DDPM 250" or "UniPC 10"."""
        steps = str(self.flags["timestep_respacing"]).removeprefix("ddim")
        name = self.flags.get("sampler") or ("ddim" if self.flags.get("use_ddim") else "ddpm")
        return f"{SAMPLERS.get(name, name)} {steps}"


@dataclass(frozen=True)
class Row:
    """A line of a table, or a point of a curve.

    :param name: "table/key"; method: as the paper calls it.
    :param release: the authors' README where it prints something else than the paper.
    :param run: name of the run that makes it; batch: samples published by others. Neither: figures only.
    :param sweep: instead of `run`, the runs of which the one with the lowest mean FID is this row.
    """

    name: str
    method: str
    paper: Figures
    release: Figures
    run: str | None = None
    batch: str | None = None
    reference: str | None = None
    note: str = ""
    sweep: tuple[str, ...] = ()

    @property
    def run_names(self) -> tuple[str, ...]:
        """All runs that the row needs."""
        return (self.run,) if self.run else self.sweep


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper."""

    name: str
    title: str
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class Book:
    """All experiments of a folder.

    :param data: where training images and references come from: "imagenet", files that the user has and
        published ones; else the program of the repository, with its arguments, that writes `PARTS` into the folder
        that follows them.
    :param features: name of the network that judges samples; None: Inception.
    :param seeds: a run is sampled once with each.
    """

    title: str
    data: str
    networks: dict[str, Network]
    runs: dict[str, Run]
    tables: dict[str, Table]
    seeds: tuple[int, ...] = (0,)
    features: str | None = None

    @property
    def writes_data(self) -> bool:
        """Whether a program writes the data on the spot."""
        return self.data != IMAGENET

    def row(self, name: str) -> Row:
        """The row called "table/key". InputError where there is none."""
        for table in self.tables.values():
            for row in table.rows:
                if row.name == name:
                    return row
        raise InputError(f"{name}: no such row or table, `ed-dpm list` shows them all")

    def rows(self, name: str) -> tuple[Row, ...]:
        """All rows of a table, the one row of that name, or every row for "all"."""
        if name == "all":
            return tuple(row for table in self.tables.values() for row in table.rows)
        return self.tables[name].rows if name in self.tables else (self.row(name),)

    def network_flags(self, run: Run) -> Flags:
        """Flags of a run's networks, the model's first."""
        classifier = self.networks[run.classifier].flags if run.classifier else {}
        return {**self.networks[run.model].flags, **classifier}

    def image_shape(self, run: Run) -> tuple[int, int, int]:
        """Height, width and channels of the images that a run makes."""
        flags = self.networks[run.model].flags
        return flags["image_size"], flags["image_size"], flags.get("in_channels", 3)


def load(directory: Path = RECIPES) -> Book:
    """All recipes below a directory. InputError, one line with file and key, for anything wrong in them."""
    if not (directory / "book.toml").is_file():
        raise InputError(f"{directory}: no book.toml in it, expected a folder of recipes")
    entry = read_entry(directory / "book.toml")
    title, data, seeds = entry.take("title", str), entry.take("data", str), entry.take("seeds", list, [0])
    if data != IMAGENET and not (ROOT / data.split(" ")[0]).is_file():
        raise entry.fail("data", data, f"{IMAGENET}, or a program of the repository that writes the data")
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise entry.fail("seeds", seeds, "whole numbers from 0 on")
    folders, replace = [directory], {}
    if "base" in entry.values:
        folders.append(directory / entry.take("base", str))
        replace = entry.take("replace", dict, {})
    networks = {path.stem: _network(path) for path in _files(folders, "networks")}
    for network in networks.values():
        if network.derived and network.derived.network not in networks:
            raise InputError(
                f"{directory}: network {network.name}: derived.network: found {network.derived.network!r}, expected "
                f"one of {', '.join(networks)}"
            )
    features = entry.choice("features", networks, None)
    entry.finish()

    references = PUBLISHED if data == IMAGENET else (HELDOUT,)
    runs: dict[str, Run] = {}
    sweeps: dict[str, tuple[str, ...]] = {}
    for path in _files(folders, "runs"):
        made = [_replaced(run, replace) for run in _runs(path, networks, references)]
        for run in made:
            if run.name in runs:
                raise InputError(f"{path}: the name {run.name} is taken by another run")
            runs[run.name] = run
        if [run.name for run in made] != [path.stem]:
            sweeps[path.stem] = tuple(run.name for run in made)
    tables = [_table(path, runs, sweeps) for path in _files(folders, "tables")]
    tables.sort(key=lambda table: table.name.startswith("supplement"))
    return Book(title, data, networks, runs, {table.name: table for table in tables}, tuple(seeds), features)


def _files(folders: list[Path], kind: str) -> list[Path]:
    """The recipes of one kind, those of the first folder in place of the later ones' of the same name."""
    files = {path.name: path for folder in reversed(folders) for path in (folder / kind).glob("*.toml")}
    if not files:
        raise InputError(f"{folders[-1] / kind}: no *.toml files, expected recipes")
    return [files[name] for name in sorted(files)]


def _replaced(run: Run, replace: dict[str, Any]) -> Run:
    """A run with other values of some flags: {flag: value}, or {flag: {value as text: other value}}."""
    flags = {}
    for name, value in run.flags.items():
        new = replace.get(name, value)
        flags[name] = new.get(str(value), value) if isinstance(new, dict) else new
    return dataclasses.replace(run, flags=flags)


def _figures(row: Entry, key: str) -> Figures:
    entry = Entry(row.file, row.take(key, dict, {}), f"{row.prefix}{key}.")
    figures = Figures(**{f.name: entry.take(f.name, float, None) for f in dataclasses.fields(Figures)})
    entry.finish()
    return figures


def _network(path: Path) -> Network:
    entry = read_entry(path)
    training = None
    if "training" in entry.values:
        inner = Entry(path, entry.take("training", dict), "training.")
        training = Training(
            inner.take("batch_size", int),
            inner.flags(),
            inner.choice("script", ("classifier_train", "image_train"), "classifier_train"),
            inner.take("part", str, "train"),
        )
        inner.finish()
    derived = None
    if "derived" in entry.values:
        inner = Entry(path, entry.take("derived", dict), "derived.")
        derived = Derivation(inner.take("program", str), inner.take("network", str), inner.choice("part", PARTS))
        inner.finish()
    checkpoint = entry.take("checkpoint", str)
    if not (training or derived) and checkpoint not in PUBLISHED and not (ROOT / checkpoint).is_file():
        raise entry.fail("checkpoint", checkpoint, "a published file, one of the repository, or a [training] table")
    network = Network(
        name=path.stem,
        checkpoint=checkpoint,
        parameters=entry.take("parameters", int),
        flags=entry.flags(),
        training=training,
        note=entry.take("note", str, ""),
        derived=derived,
    )
    if type(network.flags.get("image_size")) is not int:
        raise entry.fail("flags.image_size", network.flags.get("image_size"), "a whole number")
    entry.finish()
    return network


def _runs(path: Path, networks: dict[str, Network], references: Collection[str]) -> list[Run]:
    """The run of a file; with a [sweep], one run for each value of a flag, named FILE-VALUE."""
    entry = read_entry(path)
    run = Run(
        name=path.stem,
        model=entry.choice("model", networks),
        classifier=entry.choice("classifier", networks, None),
        reference=entry.choice("reference", references),
        flags=entry.flags(),
        note=entry.take("note", str, ""),
    )
    for name, kind in {"num_samples": int, "timestep_respacing": str}.items():
        if type(run.flags.get(name)) is not kind:
            raise entry.fail(f"flags.{name}", run.flags.get(name), KIND_NAMES[kind])
    if run.classifier and networks[run.model].flags["image_size"] != networks[run.classifier].flags["image_size"]:
        raise entry.fail("classifier", run.classifier, f"one of the image size of {run.model}")
    runs = [run]
    if "sweep" in entry.values:
        sweep = Entry(path, entry.take("sweep", dict), "sweep.")
        flag, values = sweep.take("flag", str), sweep.take("values", list)
        sweep.finish()
        for value in values:
            if type(value) not in (int, float):
                raise entry.fail("sweep.values", value, "numbers")
        runs = [
            dataclasses.replace(run, name=f"{run.name}-{value:g}", flags={**run.flags, flag: value})
            for value in values
        ]
    entry.finish()
    return runs


def _table(path: Path, runs: dict[str, Run], sweeps: dict[str, tuple[str, ...]]) -> Table:
    entry = read_entry(path)
    title, note, rows, seen = entry.take("title", str), entry.take("note", str, ""), [], set()
    for index, values in enumerate(entry.take("rows", list)):
        if not isinstance(values, dict):
            raise entry.fail(f"rows[{index}]", values, "a table")
        inner = Entry(path, values, f"rows[{index}].")
        key = inner.take("key", str)
        if key in seen:
            raise inner.fail("key", key, "a key that no other row has")
        seen.add(key)
        row = Row(
            name=f"{path.stem}/{key}",
            method=inner.take("method", str),
            paper=_figures(inner, "paper"),
            release=_figures(inner, "release"),
            run=inner.choice("run", runs, None),
            batch=inner.choice("batch", PUBLISHED, None),
            reference=inner.choice("reference", PUBLISHED, None),
            note=inner.take("note", str, ""),
            sweep=sweeps.get(inner.choice("sweep", sweeps, None), ()),
        )
        if row.run and row.sweep:
            raise InputError(f"{path}: rows[{index}].sweep: found beside run, expected one of them")
        if row.batch and not (row.run or row.reference):
            raise InputError(f"{path}: rows[{index}].reference: missing, expected what to compare {row.batch} with")
        inner.finish()
        rows.append(row)
    entry.finish()
    return Table(path.stem, title, tuple(rows), note)
