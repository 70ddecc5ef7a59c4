"""What `ed-dpm list` and `ed-dpm show` print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evaluations.metrics.registry import in_tables
from experiments.commands import Commands, checkpoint_bytes, sample_bytes, shell, training_bytes
from experiments.published import PUBLISHED
from experiments.spec import Book, Figures, Network, Row, Run

_COLUMNS = {metric.name: metric.column for metric in in_tables() if metric.upstream}


def listing(book: Book) -> Iterator[str]:
    """One line a row, under a line for its table."""
    names = [row.name for table in book.tables.values() for row in table.rows]
    methods = [row.method for table in book.tables.values() for row in table.rows]
    name_width, method_width = max(map(len, names)), max(map(len, methods))
    yield f"{'row':{name_width}}  {'method':{method_width}}  paper FID  sampler                 samples"
    for table in book.tables.values():
        yield f"\n{table.title}"
        for row in table.rows:
            sampler, samples = _made_by(book, row)
            fid = _number(row.paper.fid)
            yield f"{row.name:{name_width}}  {row.method:{method_width}}  {fid:>9}  {sampler:22}  {samples:>7}"


def _made_by(book: Book, row: Row) -> tuple[str, str]:
    if row.run_names:
        run = book.runs[row.run_names[0]]
        best_of = f", best of {len(row.sweep)}" if row.sweep else ""
        return run.sampler + best_of, f"{run.num_samples:,}"
    return (batch_name(book) if row.batch else "figures only"), "-"


def batch_name(book: Book) -> str:
    """What is evaluated besides our own samples; in written data real ones are in their place."""
    return "real images" if book.writes_data else "published samples"


def details(commands: Commands, rows: Sequence[Row]) -> Iterator[str]:
    """Everything about some rows, table by table."""
    book, shown = commands.book, None
    for row in rows:
        table = book.tables[row.name.split("/")[0]]
        if table != shown:
            yield f"{chr(10) * 2 if shown else ''}# {table.title}"
            if table.note:
                yield f"# {table.note}"
            shown = table
        yield f"\n## {row.name}: {row.method}"
        yield from _figures(row)
        if row.note:
            yield f"note: {row.note}"
        if row.sweep:
            yield f"the best of {len(row.sweep)} runs: {', '.join(row.sweep)}"
        for name in row.run_names:
            yield from _run(commands, book.runs[name], row)
        if row.batch:
            yield f"{batch_name(book)}, to evaluate as they are:"
            for name in () if book.writes_data else (row.batch, *((row.reference,) if not row.run else ())):
                yield _file_line(commands, name)
            yield shell(commands.evaluate_batch(row))
        if not row.run_names and not row.batch:
            yield "nothing to run: the figures are quoted"
    if len(rows) > 1:
        yield f"\ndisk for all {len(rows)} rows: {disk(commands, rows)}"


def _figures(row: Row) -> Iterator[str]:
    if row.paper == Figures():
        yield "the paper has no figures in numbers"
        return
    yield " " * 8 + "".join(f"{title:>10}" for title in _COLUMNS.values())
    yield f"{'paper':8}" + "".join(f"{_number(getattr(row.paper, key)):>10}" for key in _COLUMNS)
    if row.release != Figures():
        differing = "".join(f"{_number(getattr(row.release, key), ''):>10}" for key in _COLUMNS)
        yield f"{'release':8}{differing}   (where it differs)"


def _run(commands: Commands, run: Run, row: Row) -> Iterator[str]:
    book = commands.book
    count = commands.count(run)
    asked = f" (the recipe asks for {run.num_samples:,})" if count != run.num_samples else ""
    yield f"run {run.name}: {count:,} samples{asked}, {run.sampler}"
    twins = [r.name for r in book.rows("all") if run.name in r.run_names and r.name != row.name]
    if twins:
        yield f"the same run as {', '.join(twins)}"
    networks = _networks(book, run)
    for text in [run.note, *(network.note for network in networks)]:
        if text:
            yield f"note: {text}"
    if book.data == "imagenet":
        yield f"files, expected in {commands.options.models}/:"
        for network in networks:
            if not network.is_made:
                yield _file_line(commands, network.checkpoint, network)
        yield _file_line(commands, run.reference)
    for network in networks:
        if network.training:
            what = "classifier" if network.training.script == "classifier_train" else "model"
            yield f"train the {what} (images are called CLASS_anything, as upstream wants them):"
            yield shell(commands.train(network))
        if network.derived:
            yield f"make the classifier of {network.derived.network}:"
            yield shell(commands.derive(network))
    for seed in commands.seeds:
        yield "sample:" if len(commands.seeds) == 1 else f"sample, seed {seed}:"
        yield shell(commands.sample(run, seed))
        yield "evaluate:"
        yield shell(commands.evaluate(run, seed))
    yield f"disk: {disk(commands, (row,))}"


def _networks(book: Book, run: Run) -> list[Network]:
    return [book.networks[name] for name in (run.model, run.classifier) if name]


def _file_line(commands: Commands, name: str, network: Network | None = None) -> str:
    """A file that has to be there: name, size where something is known of it, where to get it."""
    size = ""
    if network:
        count, known = checkpoint_bytes(network)
        size = f"{count:,} bytes" if known else f"about {_bytes(count)}"
    if name not in PUBLISHED:
        return "  " + "  ".join(part for part in (name, size) if part)
    file = PUBLISHED[name]
    where = f"given as {commands.options.given[name]}" if name in commands.options.given else file.url
    parts = [name, size, where or file.instruction, f"sha256 {file.sha256}" if file.sha256 else ""]
    return "  " + "  ".join(part for part in parts if part)


def disk(commands: Commands, rows: Sequence[Row]) -> str:
    """What rows need on disk; what several rows share counts once."""
    book = commands.book
    runs = {name: book.runs[name] for row in rows for name in row.run_names}.values()
    networks = {network.name: network for run in runs for network in _networks(book, run)}.values()
    files = sum(checkpoint_bytes(network)[0] for network in networks if not network.is_made)
    training = sum(training_bytes(network) for network in networks if network.training)
    sizes = [sample_bytes(commands, run) for run in runs]
    largest = max(sizes, default=0) // len(commands.seeds)
    total = files + training + sum(sizes) + largest
    parts = [f"checkpoints {_bytes(files)}"] + [f"training {_bytes(training)}"] * bool(training)
    parts += [f"samples {_bytes(sum(sizes))}", f"{_bytes(largest)} for a while as batches become one file"]
    unknown = {row.batch for row in rows if row.batch} | {run.reference for run in runs}
    unknown |= {row.reference for row in rows if row.reference}
    published = f" plus published npz files of unknown size: {len(unknown)}" if book.data == "imagenet" else ""
    return f"{_bytes(total)} ({', '.join(parts)}){published}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _number(value: float | None, missing: str = "-") -> str:
    return missing if value is None else f"{value:.2f}"
