"""docs/own-data.md: its commands one after the other, as a new user gives them, with sizes for a CPU."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.support.helpers import ROOT, Runner, make_images

SMALLER = {
    "image_size": "8", "num_channels": "32", "attention_resolutions": "4", "num_res_blocks": "1",
    "classifier_depth": "1", "num_samples": "8", "batch_size": "4", "iterations": "3", "timestep_respacing": "ddim5",
}  # fmt: skip
FIGURE = "import sys; from experiments.cli import run; run()"


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs" / "own-data.md").read_text(), re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def make_photographs(folder: Path) -> None:
    """Class folders of files whose names say nothing."""
    make_images(folder / "all", classes=3, per_class=8, size=12)
    for number, path in enumerate(sorted((folder / "all").iterdir())):
        label = {"c0": "cat", "c1": "dog", "c2": "fox"}[path.name[:2]]
        target = folder / ("photos" if number % 2 else "photos-val") / label / f"IMG{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


@pytest.mark.slow
def test_the_commands_lead_to_an_evaluation(run: Runner):
    pytest.importorskip("matplotlib")
    make_photographs(run.cwd)
    runs = []
    for words in commands():
        small = [SMALLER.get(flag.removeprefix("--"), word) for flag, word in zip(["", *words], words, strict=False)]
        if words[0] == "ed-dpm":
            (run.cwd / "figure.py").write_text(FIGURE)
            runs.append(run(run.cwd / "figure.py", small[1:]))
        else:
            runs.append(run(ROOT / words[1], small[2:]))
    classifiers = [one for one, words in zip(runs, commands(), strict=True) if "classifier_train" in words[1]]
    assert len(classifiers) == 3 and all("by folder: cat 4, dog 4, fox 4" in one.stdout for one in classifiers)
    assert (run.cwd / "vanishing.png").is_file()
    for judged in runs[-2:]:
        assert "FID: " in judged.stdout and "Reference accuracy: " in judged.stdout
