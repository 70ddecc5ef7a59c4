"""The texts of `ed-dpm list` and `ed-dpm show`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from evaluations.metrics.registry import in_tables
from experiments.commands import Commands, checkpoint_bytes, sample_bytes, shell, training_bytes
from experiments.documents import render
from experiments.published import PUBLISHED
from experiments.spec import Network, Row, Run, Spec


def listing(spec: Spec) -> Iterator[str]:
    """One line a row, under a line for its table."""
    rows = spec.rows("all")
    name_width, method_width = (max(len(getattr(row, key)) for row in rows) for key in ("name", "method"))
    yield f"{'row':{name_width}}  {'method':{method_width}}  paper FID  sampler                 samples"
    for table in spec.tables.values():
        yield f"\n{table.title}"
        for row in table.rows:
            sampler, samples = _made_by(spec, row)
            fid = f"{row.paper['fid']:.2f}" if "fid" in row.paper else "-"
            yield f"{row.name:{name_width}}  {row.method:{method_width}}  {fid:>9}  {sampler:22}  {samples:>7}"


def _made_by(spec: Spec, row: Row) -> tuple[str, str]:
    if row.run_names:
        run = spec.runs[row.run_names[0]]
        best_of = f", best of {len(row.sweep)}" if row.sweep else ""
        return run.sampler + best_of, f"{run.num_samples:,}"
    return (spec.batch_title if row.batch else "quoted only"), "-"


def details(commands: Commands, rows: Sequence[Row]) -> list[str]:
    """Everything about some rows, table by table, as lines."""

    def twins(run: Run, row: Row) -> list[str]:
        return [r.name for r in commands.spec.rows("all") if run.name in r.run_names and r.name != row.name]

    text = render(
        "show.txt", commands=commands, spec=commands.spec, rows=rows, shell=shell, twins=twins,
        columns={metric.name: metric.column for metric in in_tables() if metric.upstream},
        disk=partial(disk, commands), file_line=partial(_file_line, commands),
    )  # fmt: skip
    return text.removesuffix("\n").split("\n")


def _file_line(commands: Commands, name: str, network: Network | None = None) -> str:
    """A file that has to be there: name, size where something is known of it, where to get it."""
    size = ""
    if network:
        count, known = checkpoint_bytes(network)
        size = f"{count:,} bytes" if known else f"about {_bytes(count)}"
    parts = [name, size]
    if file := PUBLISHED.get(name):
        where = f"given as {commands.given[name]}" if name in commands.given else file.url
        parts += [where or file.instruction, f"sha256 {file.sha256}" if file.sha256 else ""]
    return "  " + "  ".join(part for part in parts if part)


def disk(commands: Commands, rows: Sequence[Row]) -> str:
    """The disk that rows need; what several rows share counts once."""
    spec = commands.spec
    runs = {name: spec.runs[name] for row in rows for name in row.run_names}.values()
    networks = {network.name: network for run in runs for network in spec.run_networks(run)}.values()
    files = sum(checkpoint_bytes(network)[0] for network in networks if not network.is_made)
    training = sum(training_bytes(network) for network in networks if network.training)
    sizes = [sample_bytes(commands, run) for run in runs]
    largest = max(sizes, default=0) // len(commands.seeds)
    total = files + training + sum(sizes) + largest
    parts = [f"checkpoints {_bytes(files)}"] + [f"training {_bytes(training)}"] * bool(training)
    parts += [f"samples {_bytes(sum(sizes))}", f"{_bytes(largest)} for a while as batches become one file"]
    unknown = {file for row in rows for file in (row.batch, row.reference) if file} | {run.reference for run in runs}
    published = "" if spec.writes_data else f" plus published npz files of unknown size: {len(unknown)}"
    return f"{_bytes(total)} ({', '.join(parts)}){published}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
