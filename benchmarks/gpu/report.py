"""The summaries of the rows measured so far: summary.json, summary.md and the table on stdout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.record import read_rows
from guided_diffusion.io.atomic import write_atomically, write_json

LINES = 60


def write(out: Path) -> tuple[list[str], bool]:
    """Write both summaries; return the table's lines, at most `LINES`, and whether nothing failed or was cut."""
    rows = read_rows(out)
    failed = [row for row in rows if "error" in row or row.get("status") in ("failed", "cut")]
    lines = table(rows)
    write_json(out / "summary.json", {"fine": not failed, "rows": rows})
    with write_atomically(out / "summary.md") as file:
        file.write(("\n".join(lines) + "\n").encode())
    return lines, not failed


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table with a line for each row, the stages first, of at most `LINES` lines."""
    lines = ["| stage | what | result |", "| --- | --- | --- |"]
    passed = [row for row in rows if row["stage"] == "correctness" and row.get("passed")]
    if passed:
        lines.append(f"| correctness | checks | {len(passed)} passed |")
    # Failures come first, as the table may have no room for all rows.
    rest = sorted((row for row in rows if row not in passed), key=lambda row: not ("error" in row or "log" in row))
    stages = [row for row in rest if row["what"] == "stage"]
    for row in stages + [row for row in rest if row["what"] != "stage"]:
        lines.append(f"| {row['stage']} | {row['what']} | {describe(row)} |")
    more = len(lines) - LINES
    return lines if more <= 0 else [*lines[: LINES - 1], f"| | | and {more + 1} more: results.jsonl |"]


def describe(row: dict[str, Any]) -> str:
    """The values of a row in one cell."""
    if "error" in row:
        return f"**failed**: {cell(row['error'])}"
    if row["what"] == "stage":
        last = next((line for line in reversed(row.get("log", [])) if line.strip()), "")
        return f"{row['status']} in {row['seconds']:.0f} s" + (f": {cell(last)}" if last else "")
    values = {key: value for key, value in row.items() if key not in ("stage", "what") and value is not None}
    return ", ".join(f"{key} {short(value)}" for key, value in values.items())


def short(value: Any) -> str:
    """A number with four digits; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else cell(str(value))


def cell(text: str) -> str:
    """Text without characters that would end a table's cell, at most 160 characters."""
    return " ".join(text.replace("|", "/").split())[:160]
