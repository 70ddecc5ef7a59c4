"""Reading a folder of recipes. `recipes/README.md` has the format.

    book = load()                                  # the paper's; load(Path("demo/recipes")): the digits'
    row = book.row("table1/cadm-g-ect-eds-ddpm250")
    book.runs[row.run].flags
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from guided_diffusion.errors import InputError

from .book import HELDOUT, IMAGENET, PARTS, RECIPES, ROOT, Book, Derivation, Figures, Network, Row, Run, Table, Training
from .published import PUBLISHED
from .toml_entry import KIND_NAMES, Entry, read_entry


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
    parts = {
        name: _derivation(Entry(entry.file, inner, f"parts.{name}."), networks)
        for name, inner in entry.take("parts", dict, {}).items()
    }
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
    return Book(title, data, networks, runs, {table.name: table for table in tables}, tuple(seeds), features, parts)


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
        derived = _derivation(Entry(path, entry.take("derived", dict), "derived."))
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


def _derivation(entry: Entry, networks: Collection[str] | None = None) -> Derivation:
    """:param networks: of which its network is to be one, if they are known already."""
    network = entry.choice("network", networks) if networks else entry.take("network", str)
    made = Derivation(entry.take("program", str), network, entry.choice("part", PARTS))
    entry.finish()
    return made


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
