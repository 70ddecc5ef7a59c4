"""Count the product files that a step's data passes, and how deep networks are wrapped: `python -m tests.ways`.

Steps: a guided step of classifier_sample (DDIM, EDS, a model with and one without classes) and a training step of
classifier_train (ECT), with the smallest networks, on a CPU in float32, in one process, uncompiled. The second step is
traced, from its entry to the entry of the third, so that what follows it (callbacks, logging, the next batch) belongs
to it.

A file counts if at least one of its functions was entered with data or gave data back. A function is entered with data
if an argument, `self` or a variable of an enclosing function is or holds a tensor or an array whose first axis is as
long as the batch, or one without axes (a loss): x_t, t, y, eps, logits, guidance and images, but no weights, optimizer
states and tables. What it returns or yields is looked at in the same way. Tensors are looked for in containers, in the
attributes of objects of the product's classes, in bound methods and in functools.partial, three levels deep; not inside
networks (nn.Module), whose tensors are weights. The files that were entered without data are printed too, but not
counted. Work that other processes do (reading images, with --data_workers) is not seen. FOLDERS are the product.

A network's depth is the number of the product's functions on the stack, between the step and the forward of UNetModel
or EncoderUNetModel, that stand for the network: `forward` and `__call__` methods and functions defined in functions.
For the guiding classifier `ClassifierGuidance.__call__` is one of them.
"""

from __future__ import annotations

import dataclasses
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType, MethodType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks import builders
from benchmarks.gpu import program_checks
from evaluations.evaluate import evaluate
from evaluations.features.function import FunctionExtractor
from tests.support.helpers import ROOT

FOLDERS = ("guided_diffusion", "ed_dpm_patches", "evaluations", "scripts")
PRODUCT = (*FOLDERS, "guidance_methods", "experiments", "benchmarks")  # all but tests
LEVELS = 3
NETWORKS = ("UNetModel.forward", "EncoderUNetModel.forward")


@dataclass
class Way:
    """What a step entered: files with data, all files, and the wrappers of each network, outermost first."""

    with_data: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    wrappers: dict[str, list[str]] = field(default_factory=dict)

    def lines(self, name: str) -> Iterator[str]:
        yield f"{name}: {len(self.with_data)} files with data"
        yield from (f"  {file}" for file in sorted(self.with_data))
        yield "  entered without data, not counted:"
        yield from (f"    {file}" for file in sorted(self.files - self.with_data))
        for network, wrappers in self.wrappers.items():
            yield f"  {network} is wrapped {len(wrappers)} deep: {', '.join(wrappers)}"


def way_of_a_step(step: str, batch_size: int, work: Callable[[], Any]) -> Way:
    """Trace what is called from the second call of the function named `step` to the third."""
    calls, way = 0, Way()

    def note(frame: FrameType, event: str, returned: Any) -> None:
        nonlocal calls
        code = frame.f_code
        file = _product_file(code)
        if file is None or event not in ("call", "return"):
            return
        calls += event == "call" and code.co_name == step
        if calls != 2:
            return
        way.files.add(file)
        values = _received(frame) if event == "call" else [returned]
        if any(has_data(value, batch_size) for value in values):
            way.with_data.add(file)
        if event == "call" and code.co_qualname in NETWORKS:
            way.wrappers.setdefault(code.co_qualname.partition(".")[0], _wrappers(frame, step))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return way


@cache
def _product_file(code: CodeType) -> str | None:
    path = Path(code.co_filename)
    if not path.is_relative_to(ROOT) or path.relative_to(ROOT).parts[0] not in FOLDERS:
        return None
    return str(path.relative_to(ROOT))


def _received(frame: FrameType) -> list[Any]:
    """The arguments of a function that is being entered, and the variables that it has from enclosing functions."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    names = (*code.co_varnames[:count], *code.co_freevars)
    return [frame.f_locals[name] for name in names if name in frame.f_locals]


def has_data(value: Any, batch_size: int, levels: int = LEVELS) -> bool:
    """Whether a value is or holds a tensor of the batch."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.ndim == 0 or value.shape[0] == batch_size
    if levels == 0 or isinstance(value, nn.Module | type | str | bytes):
        return False
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    elif isinstance(value, MethodType):
        parts, levels = [value.__self__], levels + 1
    elif isinstance(value, partial):
        parts = [*value.args, *value.keywords.values()]
    else:
        ours = type(value).__module__.partition(".")[0] in FOLDERS
        parts = list(getattr(value, "__dict__", {}).values()) if ours else []
    return any(has_data(part, batch_size, levels - 1) for part in parts)


def _wrappers(frame: FrameType, step: str) -> list[str]:
    """What stands between the step and a network's forward, outermost first."""
    found: list[str] = []
    above = frame.f_back
    while above is not None and above.f_code.co_name != step:
        name = above.f_code.co_qualname
        if _product_file(above.f_code) and (name.endswith((".forward", ".__call__")) or "<locals>" in name):
            found.insert(0, name.replace(".<locals>", ""))
        above = above.f_back
    return found


def count_ways(folder: Path) -> dict[str, Way]:
    """Run the programs, which write below `folder`, and return the ways by their names."""
    guided = program_checks.guided(folder) | {"sampler": "ddim", "batch_size": 7}
    network = dataclasses.replace(builders.SMALLEST.model, class_cond=False)
    unconditional = guided | {"model_path": builders.write_network(folder / "unconditional", network)}
    images = builders.write_images(folder / "files", 8, 4, 10)
    training = program_checks.JOBS["classifier_train"] | {"data_dir": images, "iterations": 4, "batch_size": 5}
    steps = {
        "x_t in one guided step (DDIM, EDS)": ("ddim_step", 7, "classifier_sample", guided),
        "the same, model without classes": ("ddim_step", 7, "classifier_sample", unconditional),
        "a training step of the classifier (ECT)": ("_train_step", 5, "classifier_train", training),
    }
    return {
        name: way_of_a_step(step, batch_size, partial(program_checks.call, program, folder / str(number), **flags))
        for number, (name, (step, batch_size, program, flags)) in enumerate(steps.items())
    }


def way_of_an_image(folder: Path) -> Way:
    """Trace the evaluator, which reads below `folder`, from two folders of PNG files to the FID.

    The feature extractor is a function; its own file is not the product's.
    Data are open image files, PIL's images, and arrays whose first axis is as long as the sets (11 and 13), an image
    (8 pixels) or its features (5): images, features, their mean and covariance.
    """
    way = Way()

    def is_data(value: Any) -> bool:
        return isinstance(value, io.BufferedReader | Image.Image) or any(has_data(value, n) for n in (5, 8, 11, 13))

    def note(frame: FrameType, event: str, returned: Any) -> None:
        file = _product_file(frame.f_code)
        if file is None or event not in ("call", "return"):
            return
        way.files.add(file)
        if any(map(is_data, _received(frame) if event == "call" else [returned])):
            way.with_data.add(file)

    sets = [str(builders.write_images(folder / f"{count} images", 8, 4, count)) for count in (11, 13)]
    extractor = FunctionExtractor("tests.ways:mean_rows")
    sys.setprofile(note)
    try:
        evaluate(*sets, extractor, metrics=["fid"])
    finally:
        sys.setprofile(None)
    return way


def mean_rows(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Features [B, 5]: the mean of the first rows."""
    return images_BCHW.float().mean(dim=(1, 3))[:, :5]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ways = count_ways(Path(folder))
        ways["an image in the evaluator (a PNG file to the FID)"] = way_of_an_image(Path(folder))
    for name, way in ways.items():
        print(*way.lines(name), sep="\n")
    files = [path for package in PRODUCT for path in (ROOT / package).rglob("*.py")]
    lines = sum(len(path.read_text().splitlines()) for path in files)
    print(f"product code ({', '.join(PRODUCT)}): {lines:,} lines in {len(files)} files")


if __name__ == "__main__":
    main()
