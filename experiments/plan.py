"""From rows of a book to the steps that make them, in an order in which they can be run."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path

from experiments.commands import Commands
from experiments.published import INCEPTION, PUBLISHED
from experiments.spec import PARTS, ROOT, Network, Row, Run
from experiments.steps import Step
from guided_diffusion.errors import InputError


def plan(commands: Commands, rows: Sequence[Row]) -> list[Step]:
    """Everything that rows need; what several of them share comes once."""
    book = commands.book
    runs = [book.runs[name] for name in dict.fromkeys(name for row in rows for name in row.run_names)]
    batches = list({row.batch: row for row in rows if row.batch}.values())
    steps = preparation(commands, rows)
    for run in runs:
        for seed in commands.seeds:
            steps += [_sampling(commands, run, seed), _evaluation(commands, run, seed)]
    return steps + [_batch_evaluation(commands, row) for row in batches]


def preparation(commands: Commands, rows: Sequence[Row]) -> list[Step]:
    """What rows need before the first sample: published files, written data, networks."""
    book, networks = commands.book, needed_networks(commands, rows)
    steps = [_download(commands, name) for name in needed_files(commands, rows) if name not in commands.options.given]
    if book.writes_data:
        steps.append(_data(commands))
    steps += [_training(commands, network) for network in networks if network.training]
    steps += [_derivation(f"derive-{other.name}", commands.derive(other)) for other in networks if other.derived]
    parts = {network.training.part: None for network in networks if network.training}
    steps += [_derivation(f"part-{part}", commands.derive_part(part)) for part in parts if part in book.parts]
    # Each after those that make its files, however long the chain; the order is the one above where that is free.
    makers = {output: step for step in steps for output in step.outputs}
    needs = {step: [makers[file] for file in step.inputs if file in makers] for step in steps}
    return list(TopologicalSorter(needs).static_order())


def needed_networks(commands: Commands, rows: Sequence[Row]) -> list[Network]:
    """The networks that rows need, those that sample first, then those that others are made of."""
    book = commands.book
    names = [book.features] if book.features and any(row.run_names or row.batch for row in rows) else []
    for run in (book.runs[name] for row in rows for name in row.run_names):
        names = [run.model] + [run.classifier] * bool(run.classifier) + names
    names = list(dict.fromkeys(names))
    for name in names:  # grows by what is needed in turn
        network = book.networks[name]
        part = book.parts.get(network.training.part) if network.training else None
        names += [origin.network for origin in (network.derived, part) if origin and origin.network not in names]
    return [book.networks[name] for name in names]


def needed_files(commands: Commands, rows: Sequence[Row]) -> list[str]:
    """Names of the published files that rows need."""
    book = commands.book
    names = [network.checkpoint for network in needed_networks(commands, rows) if not network.is_made]
    if not book.writes_data:
        names += [book.runs[name].reference for row in rows for name in row.run_names]
        for row in rows:
            names += [row.batch, commands.batch_reference(row)] if row.batch else []
        names += [INCEPTION] if not book.features and any(row.run_names or row.batch for row in rows) else []
    return [name for name in dict.fromkeys(names) if name in PUBLISHED]


def check_files(commands: Commands, rows: Sequence[Row]) -> None:
    """InputError, before any work, where rows need files that only the user can bring."""
    for name in needed_files(commands, rows):
        path = ROOT / commands.published(name)
        if name in commands.options.given and not path.is_file():
            raise InputError(f"{path}: no such file, expected {name}")
        if PUBLISHED[name].url is None and not path.is_file():
            needing = sorted({row.name for row in rows if name in needed_files(commands, [row])})
            raise InputError(
                f"{name}: {PUBLISHED[name].instruction}, then give its path as --classifier_path; "
                f"{len(needing)} of {len(rows)} rows need it: --skip_missing leaves them out"
            )
    for network in needed_networks(commands, rows):
        if network.training and not commands.book.writes_data:
            for part in (network.training.part, "val"):
                if not (ROOT / commands.images(part)).is_dir():
                    raise InputError(
                        f"--data_dir {commands.options.images}: no folder {part} in it, expected the images that "
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


def _download(commands: Commands, name: str) -> Step:
    models = commands.options.models
    command = ("python", "-m", "experiments", "download", name, "--out", str(models))
    return Step(f"download-{name}", command, (), (models / name,))


def _data(commands: Commands) -> Step:
    parts = tuple(commands.data / f"{part}.npz" for part in PARTS)
    return Step("data", ("python", *commands.book.data.split(), str(commands.data)), (), parts)


def _training(commands: Commands, network: Network) -> Step:
    # Images in folders have no hash; the npz file of written data stands for the folder beside it.
    inputs = (commands.data / f"{network.training.part}.npz",) if commands.book.writes_data else ()
    output = commands.checkpoint(network)
    return Step(f"train-{output.parent.name}", tuple(commands.train(network)), inputs, (output,), precious=True)


def _derivation(name: str, command: list[str]) -> Step:
    return Step(name, tuple(command), tuple(map(Path, command[-3:-1])), (Path(command[-1]),))


def _sampling(commands: Commands, run: Run, seed: int) -> Step:
    networks = [commands.book.networks[name] for name in (run.model, run.classifier) if name]
    outputs = [commands.samples(run, seed)]
    if commands.options.trace and run.classifier:
        outputs.append(commands.trace(run, seed))
    return Step(
        f"sample-{run.name}-seed{seed}-{commands.count(run)}",
        tuple(commands.sample(run, seed)),
        tuple(commands.checkpoint(network) for network in networks),
        tuple(outputs),
        precious=True,
    )


def _evaluation(commands: Commands, run: Run, seed: int) -> Step:
    files = (commands.reference(run.reference), commands.samples(run, seed), commands.judge())
    metrics = commands.metrics(run, seed)
    return Step(f"evaluate-{metrics.stem}", tuple(commands.evaluate(run, seed)), files, (metrics,))


def _batch_evaluation(commands: Commands, row: Row) -> Step:
    files = (commands.reference(commands.batch_reference(row)), commands.batch(row), commands.judge())
    metrics: Path = commands.batch_metrics(row)
    return Step(f"evaluate-{metrics.stem}", tuple(commands.evaluate_batch(row)), files, (metrics,))
