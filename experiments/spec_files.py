"""Reader of a folder of recipes. `recipes/README.md` has the format.

    spec = load()                                  # the paper's; load(Path("experiments/digits/recipes")): the digits'
    (row,) = spec.rows("table1/cadm-g-ect-eds-ddpm250")
    spec.runs[row.run].flags
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from experiments.published import PUBLISHED
from experiments.spec import (
    HELDOUT,
    IMAGENET,
    PARTS,
    REAL,
    RECIPES,
    REPORTED,
    ROOT,
    Derivation,
    Network,
    Row,
    Run,
    Spec,
    Table,
    Training,
)
from experiments.toml_entry import Entry, read_entry
from guidance_methods.config import SECOND_MODELS
from guided_diffusion.errors import InputError
from guided_diffusion.io.reading import list_names

# The programs that a recipe can name, by what they make, with their flags, which all take a number.
PROGRAMS = {
    "data": {IMAGENET: (), "experiments/digits/data.py": (), "experiments/cifar10/data.py": ("--size",)},
    "network": {"experiments/cifar10/calibrate.py": ("--temperature",)},
    "part": {"experiments/cifar10/subclasses.py": ("--clusters",)},
}
_PLAIN = re.compile(r"\w[\w.+-]{0,99}", re.ASCII)  # a name that leads nowhere else
_NEEDED = {"classifier_train": ("iterations",), "image_train": ("lr_anneal_steps", "ema_rate")}


def load(directory: Path = RECIPES) -> Spec:
    """All recipes below a directory. InputError, one line with file and key, for anything wrong in them."""
    if "book.toml" not in list_names(directory):
        raise InputError(f"{directory}: no book.toml in it, expected a folder of recipes")
    entry = read_entry(directory / "book.toml")
    title, data = entry.take("title", str), _program(entry, "data", "data")
    seeds = _checked_seeds(entry, entry.take("seeds", list, [0]))
    folders, replace = [directory], {}
    if "base" in entry.values:
        base = entry.take("base", str)
        folders.append(directory / base)
        if not os.path.isdir(_inside(folders[-1], directory)):
            raise entry.fail("base", base, "a folder of the repository or of these recipes")
        replace = entry.take("replace", dict, {})
        for flag, new in replace.items():
            for value in new.values() if isinstance(new, dict) else [new]:
                Entry(entry.file, {"replace": {flag: value}}).flags(key="replace")
    files = {name: made for path in _files(folders, "networks") for name, made in _network_entries(path).items()}
    derivations, parts = entry.inner("parts", {}), {}
    for name in [*derivations.values]:
        if not _PLAIN.fullmatch(name) or name in PARTS:
            raise entry.fail("parts", name, f"a plain name other than {', '.join(PARTS)}")
        parts[name] = _derivation(derivations.inner(name), "part", files)
    features = entry.choice("features", files, None)
    entry.finish()
    data_parts = ("train", "val") if data == IMAGENET else (*PARTS, *parts)
    networks = {name: _network(name, *made, directory, files, data_parts) for name, made in files.items()}
    _check_networks(networks, parts, directory)

    references = PUBLISHED if data == IMAGENET else (HELDOUT,)
    batches = PUBLISHED if data == IMAGENET else (REAL,)
    runs: dict[str, Run] = {}
    sweeps: dict[str, tuple[str, ...]] = {}
    for path in _files(folders, "runs"):
        for name, made in _runs(path, networks, references):
            for run in (_replaced(run, replace) for run in made):
                if run.name in runs:
                    raise InputError(f"{path}: the name {run.name} is taken by another run")
                runs[run.name] = run
            if [run.name for run in made] != [name]:
                sweeps[name] = tuple(run.name for run in made)
    tables = [_table(path, runs, sweeps, batches, references) for path in _files(folders, "tables")]
    tables.sort(key=lambda table: table.name.startswith("supplement"))
    return Spec(title, data, networks, runs, {table.name: table for table in tables}, tuple(seeds), features, parts)


def _files(folders: list[Path], kind: str) -> list[Path]:
    """The recipes of one kind, those of the first folder in place of the later ones' of the same name."""
    folders = [folder / kind for folder in reversed(folders)]
    files = {name: folder / name for folder in folders for name in list_names(folder) if name.endswith(".toml")}
    if not files:
        raise InputError(f"{folders[0]}: no *.toml files, expected recipes")
    return [files[name] for name in sorted(files)]


def _replaced(run: Run, replace: dict[str, Any]) -> Run:
    """A run with other values of some flags: {flag: value}, or {flag: {value as text: other value}}."""
    flags = {}
    for name, value in run.flags.items():
        new = replace.get(name, value)
        flags[name] = new.get(str(value), value) if isinstance(new, dict) else new
    return dataclasses.replace(run, flags=flags)


def _reported(row: Entry, key: str) -> dict[str, float]:
    """The values that a paper or release prints for a row."""
    entry = row.inner(key, {})
    return entry.finish({name: entry.take(name, float) for name in REPORTED if name in entry.values})


def _checked_seeds(entry: Entry, seeds: Any) -> list[int]:
    """The seeds of an entry. InputError for others than different whole numbers."""
    is_list = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not is_list or not len(seeds) == len({*seeds}) > 0:
        raise entry.fail("seeds", seeds, "whole numbers from 0 on, each once")
    return seeds


def _network_entries(path: Path) -> dict[str, tuple[Entry, int | None]]:
    """The networks of a file, by name with the seed that tells them apart: FILE-SEED of a training with seeds."""
    entry = read_entry(path)
    training = entry.values.get("training")
    if not isinstance(training, dict) or "seeds" not in training:
        return {path.stem: (entry, None)}
    seeds = _checked_seeds(Entry(path, training, "training."), training["seeds"])
    return {f"{path.stem}-{seed}": (Entry(path, entry.values), seed) for seed in seeds}


def _network(
    name: str, entry: Entry, seed: int | None, directory: Path, networks: Collection[str], parts: Collection[str]
) -> Network:
    """:param networks, parts: names of all networks, and of the parts of the data."""
    path, training, derived = entry.file, None, None
    if "training" in entry.values:
        inner = entry.inner("training")
        script = inner.choice("script", _NEEDED, "classifier_train")
        batch_size, flags = inner.take("batch_size", int), inner.flags(*_NEEDED[script])
        if seed is not None:
            inner.values.pop("seeds")
            flags |= {"seed": seed}
        others = _other_networks(inner, networks, ("model_path",))
        training = inner.finish(Training(batch_size, flags, script, inner.choice("part", parts, "train"), others))
        if not re.fullmatch(r"[0-9.]+", str(rate := flags.get("ema_rate", 0))):  # it is part of a file's name
            raise inner.fail("flags.ema_rate", rate, "one number")
    if "derived" in entry.values:
        if training or "val" in parts:
            raise InputError(f"{path}: derived: found with training or {IMAGENET}, expected neither")
        derived = _derivation(entry.inner("derived"), "network", networks)
    checkpoint = entry.take("checkpoint", str)
    if training or derived:
        if not _PLAIN.fullmatch(checkpoint):
            raise entry.fail("checkpoint", checkpoint, "a plain name, of the folder that is filled")
    elif checkpoint not in PUBLISHED and not os.path.isfile(_inside(ROOT / checkpoint, directory)):
        raise entry.fail("checkpoint", checkpoint, "a published file, or one of the repository or of these recipes")
    if seed is not None:
        checkpoint = f"{checkpoint}-{seed}"
    parameters, flags = entry.take("parameters", int, least=0), entry.flags("image_size")
    note = entry.take("note", str, "")
    return entry.finish(Network(name, checkpoint, parameters, flags, training, note, derived))


def _inside(path: Path, directory: Path) -> str:
    """The real path of a path; "" if that is out of the repository and of the folder of the recipes."""
    real = os.path.realpath(path)
    return real if any(Path(real).is_relative_to(os.path.realpath(root)) for root in (ROOT, directory)) else ""


def _check_networks(networks: dict[str, Network], parts: dict[str, Derivation], directory: Path) -> None:
    """InputError for networks that fill the same folder, or that are made of themselves by way of others."""
    needs, filled = {f"part {name}": [part.network] for name, part in parts.items()}, {}
    for name, network in networks.items():
        needs[name] = [network.derived.network] if network.derived else []
        needs[name] += [f"part {network.training.part}", *network.training.others.values()] if network.training else []
        if network.is_made and (other := filled.setdefault(network.checkpoint, name)) != name:
            raise InputError(f"{directory}: networks {other} and {name}: one checkpoint, expected a folder for each")
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise InputError(f"{directory}: networks: found a circle, {circle}, expected none made of itself") from None


def _program(entry: Entry, key: str, makes: str) -> str:
    """A program and its flags. InputError for one that makes nothing such, other flags, or values but numbers."""
    text, programs = entry.take(key, str), PROGRAMS[makes]
    name, *words = text.split() or [""]
    pattern = rf"(({'|'.join(programs.get(name, ()))}) [0-9]+(\.[0-9]+)? )*"
    if name not in programs or not re.fullmatch(pattern, "".join(f"{word} " for word in words)):
        known = [" ".join([name, *(f"[{flag} N]" for flag in flags)]) for name, flags in programs.items()]
        raise entry.fail(key, text, " or ".join(known))
    return " ".join([name, *words])


def _derivation(entry: Entry, makes: str, networks: Collection[str]) -> Derivation:
    program = _program(entry, "program", makes)
    return entry.finish(Derivation(program, entry.choice("network", networks), entry.choice("part", PARTS)))


def _runs(
    path: Path, networks: dict[str, Network], references: Collection[str]
) -> Iterator[tuple[str, list[Run]]]:
    """The runs of a file by name: FILE, or FILE-CLASSIFIER for each of several; see `_runs_of`."""
    values = read_entry(path).values
    named = [(path.stem, values)]
    if isinstance(several := values.get("classifier"), list):
        named = [(f"{path.stem}-{one}", values | {"classifier": one}) for one in several]
    for name, own in named:
        yield name, _runs_of(Entry(path, own), name, networks, references)


def _runs_of(entry: Entry, name: str, networks: dict[str, Network], references: Collection[str]) -> list[Run]:
    """The run of an entry; with a [sweep], one run for each value of a flag, named NAME-VALUE."""
    run = Run(
        name=name,
        model=entry.choice("model", networks),
        classifier=entry.choice("classifier", networks, None),
        reference=entry.choice("reference", references),
        flags=entry.flags("num_samples", "timestep_respacing"),
        note=entry.take("note", str, ""),
        others=_other_networks(entry, networks),
    )
    if run.classifier and networks[run.model].flags["image_size"] != networks[run.classifier].flags["image_size"]:
        raise entry.fail("classifier", run.classifier, f"one of the image size of {run.model}")
    runs = [run]
    if "sweep" in entry.values:
        sweep = entry.inner("sweep")
        flag, values = sweep.finish((sweep.take("flag", str), sweep.take("values", list)))
        for value in values or [values]:
            is_name = isinstance(value, str) and _PLAIN.fullmatch(value) and isinstance(run.flags.get(flag), str)
            if type(value) not in (int, float) and not is_name:
                raise entry.fail("sweep.values", value, "numbers, or plain names of a flag whose value is one")
            Entry(entry.file, {"sweep": {flag: value}}).flags(key="sweep")
        runs = [
            dataclasses.replace(run, name=f"{run.name}-{text}", flags={**run.flags, flag: value})
            for value, text in ((value, value if isinstance(value, str) else f"{value:g}") for value in values)
        ]
    return entry.finish(runs)


def _other_networks(
    entry: Entry, networks: Collection[str], flags: Collection[str] = tuple(SECOND_MODELS)
) -> dict[str, str]:
    """Names of networks by the flag that takes each one's file."""
    others = entry.inner("networks", {})
    return others.finish({flag: others.choice(flag, networks) for flag in flags if flag in others.values})


def _table(
    path: Path, runs: dict[str, Run], sweeps: dict[str, tuple[str, ...]], batches: Collection[str],
    references: Collection[str],
) -> Table:  # fmt: skip
    entry = read_entry(path)
    title, note, rows, seen = entry.take("title", str), entry.take("note", str, ""), [], set()
    for index, values in enumerate(entry.take("rows", list) or [None]):
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
            paper=_reported(inner, "paper"),
            release=_reported(inner, "release"),
            run=inner.choice("run", runs, None),
            batch=inner.choice("batch", batches, None),
            reference=inner.choice("reference", references, None),
            note=inner.take("note", str, ""),
            sweep=sweeps.get(inner.choice("sweep", sweeps, None), ()),
        )
        if row.run and row.sweep:
            raise InputError(f"{path}: rows[{index}].sweep: found beside run, expected one of them")
        if row.batch and not (row.run or row.reference):
            raise InputError(f"{path}: rows[{index}].reference: missing, expected what to compare {row.batch} with")
        rows.append(inner.finish(row))
    return entry.finish(Table(path.stem, title, tuple(rows), note))
