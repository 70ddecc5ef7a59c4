"""A sampling run: batches dealt out to the processes, finished ones on disk, one npz at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import dist_util, logger
from .files import hash_file, write_atomically, write_json
from .manifest import check_manifest, read_manifest, versions, write_manifest
from .nonfinite import Watch, as_records
from .parts import PartStore, Piece, assemble, earlier_results, missing_batches, without_overlap
from .progress import Progress
from .sample_noise import LabelPlan, PerSampleNoise
from .write_behind import WriteBehind

# Flags that do not change what a sample is (but for rounding): a run may be continued with others.
CHANGEABLE_FLAGS = ("log_dir", "num_samples", "batch_size", "save_images", "compile", "nonfinite", "meet_timeout")

# Flags that name files which determine the samples.
INPUT_FLAGS = ("model_path", "classifier_path", "base_samples")

NONFINITE = "nonfinite"  # array of a part, and name of the file, that says which samples are not finite


@dataclass(frozen=True)
class Batch:
    """What a batch of samples is made from."""

    indices: range  # numbers of the samples in the run
    labels: Tensor | None  # int64 [B]
    noise: PerSampleNoise
    watched: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]  # the model, looked at: see `nonfinite.Watch`

    def loop_arguments(self, shape: Sequence[int]) -> dict[str, Any]:
        """Shape, starting noise (drawn here), step noise and device, as the sampling loops take them."""
        return {
            "shape": (len(self.indices), *shape),
            "noise": self.noise.normal(shape),
            "noise_fn": self.noise,
            "device": self.noise.device,
        }


@dataclass(frozen=True)
class SampleRun:
    """The plan of a run.

    :param shape: (C, H, W) of a sample.
    :param labels: None: the samples have no labels, and the npz no arr_1.
    :param flags: everything that determines the samples; a directory holds samples of one set of flags.
    :param watch: looks for inf and nan; samples that it lets pass are written as far as they are numbers, and
        listed in `nonfinite.json`.
    """

    num_samples: int
    batch_size: int
    shape: Sequence[int]
    seed: int
    directory: Path
    flags: dict[str, Any]
    labels: LabelPlan | None = None
    save_images: bool = False
    extras_path: Path | None = None  # where the arrays of `extras` go
    watch: Watch = field(default_factory=Watch)

    def generate(
        self,
        draw: Callable[[Batch], Tensor],
        extras: Callable[[], dict[str, np.ndarray]] | None = None,
    ) -> Path:
        """Make the samples and return the path of `samples_{N}x{H}x{W}x{C}.npz`.

        :param draw: batch -> images [B, C, H, W], nominally in [-1, 1].
        :param extras: called after each batch for more arrays to keep, samples on the first axis (all of the
            batch, some or none); they end in `extras_path`.
        :raises InputError: the directory holds another run's samples; a sample is not finite (but see `watch`).
        """
        rank, world_size = dist_util.get_rank(), dist_util.get_world_size()
        output = self.directory / f"samples_{self.num_samples}x{self._size}.npz"
        sha256 = dist_util.broadcast_object(self._hash_inputs() if rank == 0 else None)
        check_manifest(self.directory, self.flags, CHANGEABLE_FLAGS, rank == 0, sha256, versions())
        store = PartStore(self.directory)
        # One rank looks, so that all deal out the same list.
        complete, pieces = dist_util.broadcast_object((output.exists(), self._finished(store)) if rank == 0 else None)
        if complete:
            logger.log(f"already complete: {output}")
            if rank == 0:
                store.remove(below=self.num_samples)
            return output

        missing = missing_batches(pieces, self.num_samples, self.batch_size)
        to_make = sum(map(len, missing))
        if to_make < self.num_samples:
            logger.log(f"resuming: {self.num_samples - to_make} of {self.num_samples} images are there")
        made = self.num_samples - to_make
        with Progress(self.num_samples, "images", initial=made, directory=self.directory) as progress:
            with WriteBehind(store.write) as write:
                for indices in missing[rank::world_size]:
                    write(indices.start, self._make_part(indices, draw, extras, progress.alive))
                    # Rank 0 shows the whole run: the others advance at about its pace.
                    progress.update(min(len(indices) * world_size, self.num_samples - progress.n))
            dist_util.barrier()
        if rank == 0:
            self._finish(self._finished(store), output)
            store.remove(below=self.num_samples)
        dist_util.barrier()
        logger.log(f"samples: {output}")
        progress.finish(samples=str(output))
        return output

    @property
    def _size(self) -> str:
        channels, height, width = self.shape
        return f"{height}x{width}x{channels}"

    def _hash_inputs(self) -> dict[str, str]:
        named = {name: self.flags.get(name) for name in INPUT_FLAGS}
        return {name: hash_file(path) for name, path in named.items() if path and Path(path).is_file()}

    def _finished(self, store: PartStore) -> list[Piece]:
        """What is there already: parts, and the result of a run with another number of samples."""
        for leftover in self.directory.glob(".samples_*.tmp"):  # of a run killed while it assembled
            leftover.unlink(missing_ok=True)
        names = ["arr_0"] + ["arr_1"] * (self.labels is not None)
        results = []
        if self.extras_path is None or self._owns_extras():
            results = earlier_results(self.directory, self._size, names, self.extras_path)
        return without_overlap([*results, *store.pieces()], self.num_samples)

    def _owns_extras(self) -> bool:
        """Whether the file of extras is as this run left it."""
        digest = read_manifest(self.directory).get("extras_sha256")
        return digest is not None and self.extras_path.is_file() and hash_file(self.extras_path) == digest

    def _make_part(self, indices: range, draw, extras, alive: Callable[[], None]) -> dict[str, np.ndarray]:
        noise = PerSampleNoise(self.seed, indices, dist_util.dev())
        labels = None if self.labels is None else self.labels.labels(indices, noise)
        images = draw(Batch(indices, labels, noise, partial(self.watch.wrap, alive=alive)))
        found = self.watch.take(images, indices)
        if found:
            logger.warn(f"not finite: {'; '.join(map(str, found))}")
            images = images.nan_to_num(nan=-1.0)
        part = {"arr_0": to_uint8(images).cpu().numpy()}
        if found:
            part[NONFINITE] = np.array([json.dumps(record) for record in as_records(found)])
        if labels is not None:
            part["arr_1"] = labels.cpu().numpy()
        return part | (extras() if extras is not None else {})

    def _finish(self, pieces: list[Piece], output: Path) -> None:
        self._list_nonfinite(pieces)
        main = ["arr_0"] + ["arr_1"] * (self.labels is not None)
        others = [name for name in pieces[-1].names() if name not in (*main, NONFINITE)]
        if others:
            assemble(pieces, others, self.extras_path)
            logger.log(f"trace: {self.extras_path}")
        assemble(pieces, main, output)
        if others:  # only now: an earlier result goes with the earlier file
            extras = {"extras_sha256": hash_file(self.extras_path)}
            write_manifest(self.directory, read_manifest(self.directory) | extras)
        if self.save_images:
            grid_path = output.with_suffix(".png")
            first = without_overlap(pieces, min(64, self.num_samples))
            save_grid(np.concatenate([piece.read("arr_0") for piece in first]), grid_path)
            logger.log(f"grid: {grid_path}")

    def _list_nonfinite(self, pieces: list[Piece]) -> None:
        """Write `nonfinite.json` where samples are not finite."""
        path = self.directory / f"{NONFINITE}.json"
        found = json.loads(path.read_text()) if path.exists() else []  # of an earlier result
        for piece in pieces:
            if NONFINITE in piece.names():
                with np.load(piece.path, allow_pickle=False) as part:
                    found += [json.loads(text) for text in part[NONFINITE]]
        found = [record for i, record in enumerate(found) if record not in found[:i]]
        if not found:
            return
        write_json(path, found)
        logger.warn(f"{len(found)} of {self.num_samples} samples are not finite and better left out: {path}")


def to_uint8(images: Tensor) -> Tensor:
    """[B, C, H, W] in [-1, 1] -> uint8 [B, H, W, C], truncating as upstream does."""
    return ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def save_grid(images: np.ndarray, path: Path, columns: int = 8) -> None:
    """Write uint8 images [N, H, W, C] as one PNG, row by row."""
    from PIL import Image

    count, height, width, channels = images.shape
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, height, width, channels), np.uint8)
    padded[:count] = images
    grid = padded.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * height, columns * width, channels)
    with write_atomically(path) as file:
        Image.fromarray(grid[..., 0] if channels == 1 else grid).save(file, format="PNG")
