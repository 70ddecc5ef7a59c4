"""A sampling run: processes share the batches, finished ones are written at once, and become one npz at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.diffusion.nonfinite import NonfiniteDetector
from guided_diffusion.diffusion.samplers import Callback, together
from guided_diffusion.distributed import collectives
from guided_diffusion.distributed.progress import Progress, note_complete
from guided_diffusion.distributed.stop_signals import how_to_resume, terminating
from guided_diffusion.errors import DamagedError, InputError, counted
from guided_diffusion.io.atomic import remove_leftovers, set_aside, write_json
from guided_diffusion.io.reading import exists, hash_file, read_json
from guided_diffusion.runs import logger
from guided_diffusion.runs.run_directory import check_held, check_manifest, read_manifest, record_result, versions
from guided_diffusion.sampling import tallies
from guided_diffusion.sampling.image_grid import save_grid
from guided_diffusion.sampling.noise import LabelPlan, PerSampleNoise, stream
from guided_diffusion.sampling.shards import (
    Shard,
    ShardStore,
    assemble,
    check_result,
    missing_batches,
    read_array,
    result_paths,
    set_damaged_aside,
    without_overlap,
    writing_behind,
)
from guided_diffusion.sampling.tallies import TALLY, Tally

# Flags that do not change the samples (but for rounding): a run may be resumed with other values.
CHANGEABLE_FLAGS = ("log_dir", "num_samples", "batch_size", "save_images", "compile", "nonfinite", "meet_timeout")

# Flags that name files which determine the samples.
INPUT_FLAGS = ("model_path", "classifier_path", "base_samples", "uncond_model_path", "weak_model_path")

_MOST_PASSES = 20  # after which samples that are missing although written are an error

NONFINITE = "nonfinite"  # array of a shard, and name of the file, that lists the samples which are not finite


@dataclass(frozen=True)
class Batch:
    """The inputs of a batch of samples."""

    indices: range  # numbers of the samples in the run
    labels: Tensor | None  # int64 [B]
    noise: PerSampleNoise
    callbacks: tuple[Callback, ...]  # called with the output of every step
    alive: Callable[[], None]  # called after every step

    def loop_arguments(self, shape: Sequence[int], *callbacks: Callback) -> dict[str, Any]:
        """Return shape, starting noise (drawn here), step noise, device and callback, as the sampling loops take them.

        :param callbacks: further ones.
        """
        return {
            "shape": (len(self.indices), *shape),
            "noise": self.noise.normal(shape),
            "noise_fn": self.noise,
            "device": self.noise.device,
            "callback": together((*self.callbacks, *callbacks), self.alive),
        }


@dataclass(frozen=True)
class SampleRun:
    """The plan of a run.

    :param shape: (C, H, W) of a sample.
    :param labels: None: the samples have no labels, and the npz no arr_1.
    :param flags: everything that determines the samples; a directory holds samples of one set of flags.
    :param extras_path: file for the arrays of `extras`; None: none.
    :param extras_flags: flags that select the extras, the one that names `extras_path` first. Samples do not depend
        on them: a run may be resumed without its extras, or with extras where it had none.
    :param defaults: of the flags.
    :param updated: see `run_directory.check_manifest`.
    :param detector: detects inf and nan; samples that it lets pass have nan replaced, and are listed in
        `nonfinite.json`.
    """

    num_samples: int
    batch_size: int
    shape: Sequence[int]
    seed: int
    directory: Path
    flags: dict[str, Any]
    defaults: dict[str, Any] = field(default_factory=dict)
    labels: LabelPlan | None = None
    save_images: bool = False
    extras_path: Path | None = None
    extras_flags: Sequence[str] = ()
    tally: Tally | None = None
    updated: Callable[[dict[str, Any]], dict[str, Any]] = dict
    detector: NonfiniteDetector = field(default_factory=NonfiniteDetector)

    @classmethod
    def from_flags(cls, flags: dict[str, Any], **more: Any) -> SampleRun:
        """Return the run that `flags` describe; more: the other arguments."""
        own = {name: flags[name] for name in ("num_samples", "batch_size", "seed", "save_images")}
        return cls(flags=flags, detector=NonfiniteDetector(flags["nonfinite"]), **own, **more)

    def generate(
        self, draw: Callable[[Batch], Tensor], extras: Callable[[], dict[str, np.ndarray]] = dict
    ) -> Path:
        """Make the samples and return the path of `samples_{N}x{H}x{W}x{C}.npz`.

        :param draw: batch -> images [B, C, H, W], nominally in [-1, 1].
        :param extras: called after each batch for further arrays, samples on the first axis (all of the batch, or
            those among the first of the run); they are written to `extras_path`.
        :raises InputError: the directory holds another run's samples; a sample is not finite (but see `detector`).
        """
        rank, world_size = collectives.get_rank(), collectives.get_world_size()
        output = self.directory / f"samples_{self.num_samples}x{self._size}.npz"
        if collectives.from_rank_0(lambda: self._is_complete(output)):
            return output
        # One rank looks, so that all share the same list.
        missing = collectives.from_rank_0(lambda: self._finish_or_miss(output))
        made = self.num_samples - sum(map(len, missing))
        if made:
            logger.log(f"resuming: {made} of {self.num_samples} images exist")
        kept = f"finished batches are kept; {how_to_resume()}"
        with Progress(self.num_samples, "images", made, directory=self.directory) as progress, terminating(kept):
            passes = 0
            while missing:
                with writing_behind(ShardStore(self.directory).write) as write:
                    for indices in missing[rank::world_size]:
                        write(indices.start, self._make_shard(indices, draw, extras, progress.alive))
                        # Rank 0 shows the whole run: the others advance at about its pace.
                        progress.update(min(len(indices) * world_size, self.num_samples - progress.n))
                collectives.barrier()
                missing = collectives.from_rank_0(lambda: self._finish_or_miss(output))
                if missing:
                    passes += 1
                    lost = sum(map(len, missing))
                    line = f"{self.directory}: {counted(lost, 'samples')} missing although written"
                    if passes == _MOST_PASSES:
                        raise InputError(f"{line}, {passes} times: do all ranks see this directory? Is the disk sound?")
                    logger.warning(f"{line}: making them again")
                    progress.update(self.num_samples - lost - progress.n)
        logger.log(f"samples: {output}")
        progress.finish(samples=str(output))
        return output

    @property
    def _size(self) -> str:
        channels, height, width = self.shape
        return f"{height}x{width}x{channels}"

    def _is_complete(self, output: Path) -> bool:
        """Check that the directory is this run's; return whether its result exists, after completing its grid."""
        named = {name: self.flags.get(name) for name in INPUT_FLAGS}
        sha256 = {name: hash_file(path) for name, path in named.items() if path and Path(path).is_file()}
        changeable = (*CHANGEABLE_FLAGS, *self._changeable_extras_flags())
        flags = self.flags | stream(collectives.dev())
        check_manifest(self.directory, flags, changeable, sha256, versions(), self.updated, self.defaults)
        remove_leftovers(ShardStore(self.directory).directory, owned=True)
        if self.extras_path is not None:
            remove_leftovers(self.extras_path.parent, self.extras_path.name)
        try:
            self._check_result(output, self.num_samples)
        except FileNotFoundError:
            return False
        except DamagedError as error:
            set_damaged_aside(error)
            return False
        logger.log(f"already complete: {output}")
        if self.extras_path is not None and not self._owns_extras():
            found = "of other samples" if exists(self.extras_path) else "not there"
            line = f"{self.extras_path}: {found}; it is made only with the samples: use another --log_dir for it"
            logger.warning(line)
        self._clean_up(output)
        note_complete(self.directory, self.num_samples, "images")
        return True

    def _changeable_extras_flags(self) -> Sequence[str]:
        """Return the extras' flags that may change: where extras exist and are wanted, only their path may."""
        first = self.extras_flags[:1]
        both = any(self.flags.get(name) and read_manifest(self.directory).get(name) for name in first)
        return first if both else self.extras_flags

    def _check_result(self, path: Path, count: int) -> None:
        """Raise DamagedError for a finished file that differs from what was written; FileNotFoundError for none."""
        digest, results = hash_file(path), read_manifest(self.directory).get("results", {})
        if results.get(digest) == path.name:
            return
        if path.name in results.values():
            raise DamagedError(f"{path}: damaged (SHA-256 {digest[:12]}, not what was written)", path)
        # The file of an earlier version, which recorded no digest.
        channels, height, width = self.shape
        shapes = {"arr_0": (count, height, width, channels), "arr_1": (count,)}
        check_result(path, {name: shapes[name] for name in self._arrays})
        record_result(self.directory, path, path.name)

    @property
    def _arrays(self) -> list[str]:
        return ["arr_0"] + ["arr_1"] * (self.labels is not None)

    def _finished(self) -> list[Shard]:
        """Return existing shards, among them the result of a run with another number of samples."""
        shards = ShardStore(self.directory).shards()
        if self.extras_path is not None:
            complete = [shard for shard in shards if self._names_of_extras(shard)]
            if made := sum(len(shard.indices) for shard in shards if shard not in complete):
                count = counted(made, "samples")
                logger.warning(f"{self.extras_path}: {count} exist without what goes into it: made again")
            shards = complete
        if self.extras_path is None or self._owns_extras():
            for path, count in result_paths(self.directory, self._size).items():
                try:
                    self._check_result(path, count)
                    shard = Shard(path, 0, range(count), self.extras_path)
                    if self.extras_path is None or _has_extras(shard):
                        shards.append(shard)
                except DamagedError as error:
                    logger.warning(f"{error}; its samples are not used")
        return without_overlap(shards, self.num_samples)

    def _owns_extras(self) -> bool:
        """Return whether the file of extras is the one that this run wrote."""
        try:
            return hash_file(self.extras_path) in read_manifest(self.directory).get("results", {})
        except FileNotFoundError:
            return False

    def _finish_or_miss(self, output: Path) -> list[range]:
        """Return the batches that are missing; where none are, write the result."""
        while True:
            check_held(self.directory)
            shards = self._finished()
            missing = missing_batches(shards, self.num_samples, self.batch_size)
            if missing:
                return missing
            try:
                self._assemble(shards, output)
            except DamagedError as error:
                set_damaged_aside(error)
                continue
            self._clean_up(output)
            return []

    def _make_shard(self, indices: range, draw, extras, alive: Callable[[], None]) -> dict[str, np.ndarray]:
        noise = PerSampleNoise(self.seed, indices, collectives.dev())
        labels = None if self.labels is None else self.labels.labels(indices, noise)
        self.detector.begin()
        images = draw(Batch(indices, labels, noise, (self.detector.step,), alive))
        found = self.detector.take(images, indices)
        if found:
            logger.warning(f"not finite: {'; '.join(map(str, found))}")
            images = images.nan_to_num(nan=-1.0)
        shard = {"arr_0": to_uint8(images).cpu().numpy()}
        if found:
            shard[NONFINITE] = np.array([json.dumps(asdict(finding)) for finding in found])
        if labels is not None:
            shard["arr_1"] = labels.cpu().numpy()
        if self.tally is not None:
            shard[TALLY] = np.frombuffer(json.dumps(self.tally.take()).encode(), np.uint8)
        return shard | extras()

    def _assemble(self, shards: list[Shard], output: Path) -> None:
        """Write the result and its companions; every file's digest is recorded before the file appears.

        DamagedError where a shard is damaged or has vanished; nothing is lost by it.
        """
        self._list_nonfinite(shards)
        if self.tally is not None:
            tallies.write_sum(self.tally, shards, output)
        others = self._names_of_extras(shards[-1])
        if others and self.extras_path is not None:
            record = partial(record_result, self.directory, name=str(self.extras_path))
            assemble(shards, others, self.extras_path, record)
            logger.log(f"trace: {self.extras_path}")
        assemble(shards, self._arrays, output, partial(record_result, self.directory, name=output.name))

    def _names_of_extras(self, shard: Shard) -> list[str]:
        return [name for name in shard.names() if name not in ("arr_0", "arr_1", NONFINITE, TALLY)]

    def _clean_up(self, output: Path) -> None:
        """Draw the grid if it is wanted and missing, then delete the shards of a complete result."""
        grid_path = output.with_suffix(".png")
        if self.save_images and not exists(grid_path):
            save_grid(read_array(output, "arr_0", 64), grid_path, captions=self._captions(output))
            logger.log(f"grid: {grid_path}")
        ShardStore(self.directory).remove(below=self.num_samples)

    def _captions(self, output: Path) -> list[str] | None:
        """Return the classes of the grid's samples, by name where it is known."""
        if self.labels is None:
            return None
        labels, names = read_array(output, "arr_1", 64).tolist(), self.labels.names
        return [names[label] if label < len(names) else str(label) for label in labels]

    def _list_nonfinite(self, shards: list[Shard]) -> None:
        """Write `nonfinite.json` where samples are not finite."""
        path = self.directory / f"{NONFINITE}.json"
        found = []
        try:
            found = read_json(path, kind=list)  # of an earlier result
        except FileNotFoundError:
            pass
        except DamagedError as error:
            logger.warning(f"{error}; kept as {set_aside(path).name}")
        for shard in shards:
            if NONFINITE in shard.names():
                found += [json.loads(text) for text in read_array(shard.path, NONFINITE)]
        found = list({json.dumps(record, sort_keys=True): record for record in found}.values())
        if not found:
            return
        write_json(path, found)
        logger.warning(f"{len(found)} of {self.num_samples} samples are not finite and better left out: {path}")


def _has_extras(result: Shard) -> bool:
    """Return whether the extras of a result cover all of its samples; a shard's do where it has any."""
    names = Shard(result.extras, 0, result.indices).names()
    return any(len(result.rows(name)) == len(result.indices) for name in names)


def to_uint8(images: Tensor) -> Tensor:
    """Convert [B, C, H, W] in [-1, 1] to uint8 [B, H, W, C], truncating as upstream does."""
    return ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
