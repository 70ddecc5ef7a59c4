"""`python -m tests.parity [--markdown FILE] [--only TEXT]`: the parity table.

Exits with 1 when a case exceeds its requirement or fails, with 2 when upstream is unavailable.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from pathlib import Path

from benchmarks.upstream import UpstreamUnavailable, load_upstream
from tests.parity import (
    cases_api,
    cases_data,
    cases_diffusion,
    cases_layers,
    cases_models,
    cases_precision,
    cases_sampling,
    cases_tables,
    cases_training,
)
from tests.parity.compare import Case, Outcome, run

TOPICS = {
    "API": cases_api.CASES,
    "Tables": cases_tables.CASES,
    "Layers": cases_layers.CASES,
    "Models": cases_models.CASES,
    "Diffusion": cases_diffusion.CASES,
    "Sampling": cases_sampling.CASES,
    "Precision": cases_precision.CASES,
    "Training": cases_training.CASES,
    "Data": cases_data.CASES,
}
HEADER = ("case", "comparisons", "worst absolute error", "worst relative error", "required", "bitwise?")

INTRODUCTION = """# Parity with upstream

Written by `python -m tests.parity --markdown docs/parity.md`: {comparisons:,} comparisons in {cases} cases on a CPU.
Both implementations run in one process with the same weights, inputs, seeds and noise. Relative error is the largest
difference divided by upstream's largest value, array by array; "bitwise" means equal values.

"Upstream" is `{peer}` from the package index. Eleven of its fourteen modules are OpenAI's own files; its
`gaussian_diffusion`, `nn` and `unet` come from a fork with more samplers. Where the fork deviates on purpose (extra
trailing parameters of the sampling loops; an unguided `pred_xstart` from guided DDIM steps), the comparison leaves that
out. `GUIDED_DIFFUSION_PEER=<checkout of openai/guided-diffusion>` compares with OpenAI's own files, without exemptions;
all cases pass there too.

"""


def main() -> int:
    arguments = parse_arguments()
    warnings.simplefilter("ignore")
    try:
        peer = load_upstream()
    except UpstreamUnavailable as reason:
        print(f"upstream unavailable: {reason}", file=sys.stderr)
        return 2
    rows: list[tuple[str, ...]] = []
    failed = 0
    start = time.perf_counter()
    print(f"upstream: {peer.source}" + (" (fork, see benchmarks/upstream.py)" if peer.is_fork else ""))
    for topic, cases in TOPICS.items():
        for case in cases:
            name = f"{topic}: {case.name}"
            if arguments.only in name:
                row, passed = evaluate(name, case, peer)
                rows.append(row)
                failed += not passed
                print("{:<72} {:>6} {:>9} {:>9} {:>8} {:>7}".format(*row), flush=True)
    print(f"{len(rows)} cases, {failed} failed, {time.perf_counter() - start:.0f} s")
    if arguments.markdown:
        arguments.markdown.write_text(as_markdown(rows, peer))
        print(f"wrote {arguments.markdown.resolve()}")
    return 1 if failed or not rows else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description="The parity table.")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases whose name contains TEXT")
    return parser.parse_args()


def evaluate(name: str, case: Case, peer) -> tuple[tuple[str, ...], bool]:
    """One row of the table and whether it passed; the failures go to stderr."""
    required = f"{case.required:.0e}" if case.required else "bitwise"
    try:
        outcome = run(case, peer)
    except Exception:
        traceback.print_exc()
        return (name, "0", "error", "error", required, "FAILED"), False
    for failure in outcome.failures[:10]:
        print(f"{name}: {failure.label}: {failure.note or f'{failure.relative:.3g}'}", file=sys.stderr)
    return row_of(name, outcome, required), not outcome.failures


def row_of(name: str, outcome: Outcome, required: str) -> tuple[str, ...]:
    verdict = "FAILED" if outcome.failures else "no" if outcome.relative else "yes"
    count = str(len(outcome.comparisons))
    return name, count, f"{outcome.absolute:.2g}", f"{outcome.relative:.2g}", required, verdict


def as_markdown(rows: list[tuple[str, ...]], peer) -> str:
    lines = [HEADER, ("---",) * len(HEADER), *rows]
    comparisons = sum(int(row[1]) for row in rows)
    return INTRODUCTION.format(comparisons=comparisons, cases=len(rows), peer=peer.source) + "".join(
        "| " + " | ".join(line) + " |\n" for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
