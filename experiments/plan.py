"""The steps that rows of a spec need, in an order in which they can be run."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.commands import Commands
from experiments.published import INCEPTION, PUBLISHED
from experiments.spec import ROOT, Network, Row
from experiments.steps import Step, in_order
from guided_diffusion.errors import InputError


def plan(commands: Commands, rows: Sequence[Row]) -> list[Step]:
    """Everything that rows need; what several of them share comes once."""
    steps = preparation(commands, rows)
    for run in (commands.spec.runs[name] for name in dict.fromkeys(name for row in rows for name in row.run_names)):
        for seed in commands.seeds:
            steps += [commands.sample(run, seed), commands.evaluate(run, seed)]
    batches = {row.batch: row for row in rows if row.batch}
    return steps + [commands.evaluate_batch(row) for row in batches.values()]


def preparation(commands: Commands, rows: Sequence[Row]) -> list[Step]:
    """Steps that rows need before the first sample: published files, written data, networks."""
    spec, networks = commands.spec, needed_networks(commands, rows)
    files = [name for name in needed_files(commands, rows) if name not in commands.given]
    steps = [*map(commands.download, files), *([commands.write_data()] if spec.writes_data else [])]
    steps += [commands.train(network) for network in networks if network.training]
    steps += [commands.derive(network) for network in networks if network.derived]
    parts = {network.training.part: None for network in networks if network.training}
    steps += [commands.derive_part(part) for part in parts if part in spec.parts]
    return list(in_order(steps).static_order())  # the order is the one above where that is free


def needed_networks(commands: Commands, rows: Sequence[Row]) -> list[Network]:
    """The networks that rows need, those that sample first, then those that others are made of."""
    spec = commands.spec
    names = [spec.features] if spec.features and any(row.run_names or row.batch for row in rows) else []
    for run in (spec.runs[name] for row in rows for name in row.run_names):
        names = [network.name for network in spec.run_networks(run)] + names
    names = list(dict.fromkeys(names))
    for name in names:  # grows by what is needed in turn
        network = spec.networks[name]
        part = spec.parts.get(network.training.part) if network.training else None
        origins = [origin.network for origin in (network.derived, part) if origin]
        origins += network.training.others.values() if network.training else []
        names += [origin for origin in dict.fromkeys(origins) if origin not in names]
    return [spec.networks[name] for name in names]


def needed_files(commands: Commands, rows: Sequence[Row]) -> list[str]:
    """Names of the published files that rows need."""
    spec = commands.spec
    names = [network.checkpoint for network in needed_networks(commands, rows) if not network.is_made]
    if not spec.writes_data:
        names += [spec.runs[name].reference for row in rows for name in row.run_names]
        for row in rows:
            names += [row.batch, commands.batch_reference(row)] if row.batch else []
        names += [INCEPTION] if not spec.features and any(row.run_names or row.batch for row in rows) else []
    return [name for name in dict.fromkeys(names) if name in PUBLISHED]


def check_files(commands: Commands, rows: Sequence[Row]) -> None:
    """InputError, before any work, where rows need files that only the user can bring."""
    for name in needed_files(commands, rows):
        path = ROOT / commands.published(name)
        if name in commands.given and not path.is_file():
            raise InputError(f"{path}: no such file, expected {name}")
        if PUBLISHED[name].url is None and not path.is_file():
            needing = sorted({row.name for row in rows if name in needed_files(commands, [row])})
            raise InputError(
                f"{name}: {PUBLISHED[name].instruction}; "
                f"{len(needing)} of {len(rows)} rows need it: --skip_missing leaves them out"
            )
    for network in needed_networks(commands, rows):
        if network.training and not commands.spec.writes_data:
            for part in (network.training.part, "val"):
                if not (ROOT / commands.images(part)).is_dir():
                    raise InputError(
                        f"--data_dir {commands.data_dir}: no folder {part} in it, expected the images that "
                        f"{network.checkpoint} is trained with; --skip_missing leaves its rows out"
                    )


def without_missing(commands: Commands, rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Rows that can be made with what is there, and a line for each of the others."""
    possible, lines = [], []
    for row in rows:
        try:
            check_files(commands, [row])
            possible.append(row)
        except InputError as error:
            lines.append(f"skipped: {row.name}: {error}")
    return possible, lines
