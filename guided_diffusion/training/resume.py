"""A training run: its seed, its checkpoints, and where it goes on when the same command is given again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from guided_diffusion.data.seeding import Purpose, seed_globals
from guided_diffusion.distributed import collectives
from guided_diffusion.errors import InputError, counted
from guided_diffusion.io import checkpoint
from guided_diffusion.io.reading import list_names
from guided_diffusion.io.remote import join
from guided_diffusion.runs import logger
from guided_diffusion.runs.checkpoint_folder import Checkpoint, CheckpointFolder
from guided_diffusion.runs.run_directory import clashes, versions
from guided_diffusion.training.init_weights import init_weights

# Flags that make no difference to the numbers. In place of data_dir and batch_size stand facts, see below.
CHANGEABLE = frozenset(
    ("log_dir", "log_interval", "eval_interval", "save_interval", "keep", "resume_checkpoint", "init_from")
    + ("val_data_dir",)
    + ("data_dir", "data_workers", "batch_size", "processes", "meet_timeout")
)
# Flags over whose steps the learning rate falls, where it does; only then is --iterations part of what a run is.
_ANNEALED_OVER = frozenset(("iterations", "lr_anneal_steps"))
# What a run depends on and what is no flag, as an error names it.
_FACTS = {"class_names": "classes", "images": "images", "global_batch": "--batch_size times processes"}


@dataclass(frozen=True)
class TrainingRun:
    """Where a run stands when its program starts, and how it is kept.

    :param model_path: weights to load first, the optimizer's and the averages' files beside them; "": none.
    :param number: in that file's name.
    :param began: the step that the run began with: 0, or that of the file given by --resume_checkpoint.
    :param first_step: the step to train next; steps count from 0.
    :param state: what `save` was given when the run was interrupted; None where it begins.
    :param seed: of all draws; None: from the global generators as they are.
    :param folder: for checkpoints that the run can go on from; None: upstream's files alone.
    :param init_from: whose weights a new run begins with where there is no model_path, see `init_weights`; "": none.
    :param flags: what `folder`'s other checkpoints must have been made with. keep: so many checkpoints; 0: all.
    """

    model_path: str = ""
    number: int = 0
    began: int = 0
    first_step: int = 0
    state: dict[str, Any] | None = None
    seed: int | None = None
    folder: CheckpointFolder | None = None
    init_from: str = ""
    flags: dict[str, Any] = field(default_factory=dict)
    keep: int = 0

    @classmethod
    def from_checkpoint(cls, path: str) -> TrainingRun:
        """As upstream resumes: from a model%06d.pt, at the step in its name; from the start where path is ""."""
        step = parse_resume_step_from_filename(path)
        return cls(path, step, step, step)

    @property
    def loads_optimizer(self) -> bool:
        """Whether the optimizer's state and the averages are to be read too; upstream does not for step 0."""
        return self.state is not None or self.number > 0

    def has_done(self, steps: int | None) -> bool:
        """Whether an earlier call has trained so many steps already."""
        return self.state is not None and steps is not None and self.first_step >= steps

    def load_weights(self, model: nn.Module) -> None:
        """Load the weights to go on from, where there are any; on every rank."""
        if self.model_path:
            logger.log(f"resuming from {self.model_path} with step {self.first_step}")
            checkpoint.load_weights(model, self.model_path)
        elif self.init_from:
            init_weights(model, self.init_from, self.flags.get("class_names"))

    def seed_step(self, step: int, purpose: Purpose = Purpose.STEP) -> None:
        """Seed the global generators for a step of this rank."""
        if self.seed is not None:
            seed_globals(self.seed, purpose, collectives.get_rank(), step)

    def save(self, directory: str, number: int, steps_done: int, objects: Mapping[str, Any], state: dict) -> str:
        """Write a checkpoint from rank 0, then drop old ones; all ranks wait. Returns the path of its weights.

        :param number: for the names of its files; steps_done: counted from step 0.
        :param objects: what goes into the files, by their names.
        :param state: JSON values that the loop needs for going on, given back as `state`.
        """
        if collectives.get_rank() == 0 and self.folder is None:
            for name, content in objects.items():
                path = join(directory, name)
                checkpoint.save(content, path)
                logger.log(f"saved {path}")
        elif collectives.get_rank() == 0:
            entry = {"steps_done": steps_done, "began": self.began, "seed": self.seed, "loop": state}
            entry |= {"flags": self.flags, "versions": versions()}
            self.folder.save(number, objects, entry)
            self.folder.prune(self.keep)
        collectives.barrier()
        return join(directory, f"model{number:06d}.pt")


def parse_resume_step_from_filename(filename: str) -> int:
    """The step in path/to/modelNNNNNN.pt: what stands between the last "model" and the next dot; else 0."""
    _, found, rest = filename.rpartition("model")
    try:
        return int(rest.split(".")[0]) if found else 0
    except ValueError:
        return 0


def open_run(
    directory: str | Path,
    flags: Mapping[str, Any],
    changeable: frozenset[str],
    seed: int,
    keep: int,
    resume_checkpoint: str,
    init_from: str = "",
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> TrainingRun:
    """The run in a folder: from its newest intact checkpoint on, else from `resume_checkpoint`, else from the start.

    The start is a new network's weights, or those of `init_from`.

    A collective. InputError on all ranks when the folder holds the checkpoints of a run with other flags; the line
    names each difference, see `run_directory.clashes`.
    """
    folder = CheckpointFolder(Path(directory))

    def look() -> Checkpoint | None:
        _check_flags(folder, flags, changeable, defaults)
        newest = folder.newest_intact()
        folder.prune(0)  # to the end of what an interrupted call began to delete
        return newest

    found = collectives.from_rank_0(look)
    kept = {"seed": seed, "folder": folder, "flags": dict(flags), "keep": keep}
    given = TrainingRun.from_checkpoint(resume_checkpoint)
    if found is None or given.number > found.number:
        return TrainingRun(given.model_path, given.number, given.began, given.first_step, **kept, init_from=init_from)
    steps_done, began, before = found.state["steps_done"], found.state["began"], found.state["flags"]["processes"]
    if before != flags["processes"]:
        now = counted(flags["processes"], "processes")
        logger.warning(f"going on with {now}, {before} before: the draws will be others")
    if found.state["versions"] != versions():
        logger.warning(f"going on with {versions()}, before {found.state['versions']}: roundings may differ")
    return TrainingRun(found.model, found.number, began, steps_done, found.state["loop"], **kept)


def _check_flags(
    folder: CheckpointFolder, flags: Mapping[str, Any], changeable: frozenset[str], defaults: Mapping[str, Any]
) -> None:
    """InputError when the folder's checkpoints are of another run."""
    state = folder.newest_state()
    models = [path for name in list_names(folder.directory) if (path := folder.directory / name).match("model*.pt")]
    if state is None and not models:
        return
    # Without a state: what was written beside the checkpoints of a run that was ended before its first was whole.
    found = state["flags"] if state else checkpoint.read_config(models[0]) or {}
    differences = clashes(flags, found, changeable, defaults, _FACTS)
    told = list(differences.values()) if found else ["it has no config.json"]
    if found and (annealed := _ANNEALED_OVER.intersection(differences)):
        told[-1] += f"; the learning rate is annealed over --{min(annealed)}, so another value is another run"
    if told:
        raise InputError(
            f"{folder.directory}: holds checkpoints of another run: {', '.join(told)}; use another --log_dir"
        )
