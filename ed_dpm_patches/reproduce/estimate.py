"""How many GPU-hours a sampling run takes, from what has been measured: earlier runs, else the benchmarks.

    hours, source = gpu_hours(book, run, Path("runs/paper"), Path("benchmarks/results"))
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from guided_diffusion.errors import InputError

from .book import Book, Run
from .results import RUN_NAME, read_json, read_record

_BENCHMARK = re.compile(r"published-(?P<side>\d+)(?P<uncond>-uncond)?-b(?P<batch>\d+)")
# A benchmark names its device and not the kind of it.
_GPU = re.compile(r"NVIDIA|Tesla|GeForce|Quadro|RTX|TITAN|Instinct|Radeon (RX|Pro)", re.IGNORECASE)


def gpu_hours(book: Book, run: Run, out: Path | None, results: Path) -> tuple[float, str] | None:
    """GPU-hours for one seed of `run.num_samples` samples, and a few words on their source; None: not measured.

    :param out: folder with records of sampling; those of the same networks count, also with other numbers of
        steps. Its wall times include loading and the beginning.
    :param results: folder of benchmark results, used where there is no such record.
    InputError, naming the file, for a damaged one.
    """
    found = (_from_records(book, run, out) if out else None) or _from_benchmarks(book, run, results)
    if found is None:
        return None
    seconds_per_image, source = found
    return seconds_per_image * run.num_samples / 3600, source


def number_of_steps(run: Run) -> int:
    """Of the sampler: "250" and "ddim25" are one section, "10,15" two."""
    sections = str(run.flags["timestep_respacing"]).removeprefix("ddim").split(",")
    if not all(section.isdecimal() for section in sections):
        raise InputError(
            f"{run.name}: timestep_respacing: found {run.flags['timestep_respacing']!r}, expected such as 250 or ddim25"
        )
    return sum(map(int, sections))


def _from_records(book: Book, run: Run, out: Path) -> tuple[float, str] | None:
    """GPU-seconds an image, from the record with the same number of steps if there is one, then most images."""
    if (out / "book.json").exists() and read_json(out / "book.json").get("rehearsal"):
        return None
    best: tuple[tuple[bool, int], float, str] | None = None
    for path in sorted((out / "steps").glob("sample-*.json")):
        match = RUN_NAME.fullmatch(path.stem.removeprefix("sample-"))
        other = book.runs.get(match["run"]) if match else None
        if other is None or _networks(book, other) != _networks(book, run):
            continue
        step = read_record(path)
        if step.device.startswith("CPU") or step.seconds is None:
            continue
        n, steps, wanted = int(match["n"]), number_of_steps(other), number_of_steps(run)
        if n == 0 or steps == 0:
            continue
        scaled = "" if steps == wanted else f", {steps} steps scaled to {wanted}"
        source = f"measured: {n:,} samples of {other.name} on {step.device}{scaled}"
        rank = (steps == wanted, n)
        if best is None or rank > best[0]:
            best = rank, step.seconds * step.processes / n * wanted / steps, source
    return best[1:] if best else None


def _networks(book: Book, run: Run) -> tuple[str, dict[str, Any] | None]:
    """What a step costs depends on: the model, and the classifier's architecture whatever its weights."""
    return run.model, book.networks[run.classifier].flags if run.classifier else None


def _from_benchmarks(book: Book, run: Run, results: Path) -> tuple[float, str] | None:
    """Seconds an image at the fastest batch size; one GPU, loading and decoding not counted."""
    flags = book.networks[run.model].flags
    part = "guided step" if run.classifier else "UNet"
    best: tuple[float, str] | None = None
    for path in sorted(results.glob("*.json")):
        report = read_json(path)
        half = bool(flags.get("use_fp16", False))
        if report.get("what") != "sampling" or report.get("half") != half or not _on_gpu(report):
            continue
        for row in report.get("rows", []):
            match = _BENCHMARK.fullmatch(str(row.get("config")))
            if not match or row.get("part") != part or int(match["side"]) != flags["image_size"]:
                continue
            if bool(match["uncond"]) == bool(flags.get("class_cond", False)):
                continue
            seconds = row.get("ours_seconds")
            if type(seconds) not in (int, float):
                raise InputError(f"{path}: ours_seconds: found {seconds!r}, expected a number")
            seconds = seconds / int(match["batch"]) * number_of_steps(run)
            if best is None or seconds < best[0]:
                best = seconds, f"benchmark: {part} on {report['device']}, batches of {match['batch']}"
    return best


def _on_gpu(report: dict[str, Any]) -> bool:
    return not str(report.get("torch")).endswith("+cpu") and bool(_GPU.search(str(report.get("device"))))
