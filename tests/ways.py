"""How many product files a datum passes through; `python -m tests.ways` prints the table.

A guided step of classifier_sample and a training step of classifier_train, with the smallest networks: every file of
the product whose functions are called between the second and the third step.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.builders import write_images
from benchmarks.gpu import program_checks
from tests.support.helpers import ROOT

FOLDERS = ("guided_diffusion", "ed_dpm_patches", "evaluations", "scripts")


def files_of_a_step(step: str, work: Callable[[], Any]) -> list[str]:
    """The files entered between the second and the third call of the function named `step`."""
    calls, found = 0, set()

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        if event != "call":
            return
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(ROOT) or path.relative_to(ROOT).parts[0] not in FOLDERS:
            return
        calls += frame.f_code.co_name == step
        if calls == 2:
            found.add(str(path.relative_to(ROOT)))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return sorted(found)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        guided = program_checks.guided(folder)
        images = write_images(folder / "files", 8, 4, 8)
        training = program_checks.JOBS["classifier_train"] | {"data_dir": images, "iterations": 4}
        ways = {
            "x_t in one guided step (DDIM, EDS)": files_of_a_step(
                "ddim_step",
                lambda: program_checks.call("classifier_sample", folder / "samples", **guided, sampler="ddim"),
            ),
            "a training step of the classifier (ECT)": files_of_a_step(
                "_train_step", lambda: program_checks.call("classifier_train", folder / "training", **training)
            ),
        }
    for way, files in ways.items():
        print(f"{way}: {len(files)} files\n  " + "\n  ".join(files))


if __name__ == "__main__":
    main()
