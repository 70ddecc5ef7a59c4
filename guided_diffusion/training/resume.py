"""A training run: its seed, its checkpoints, and the step at which it resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from guided_diffusion.data.seeding import Purpose, seed_globals
from guided_diffusion.distributed import collectives, stop_signals
from guided_diffusion.distributed.progress import Progress
from guided_diffusion.errors import InputError, counted
from guided_diffusion.io import checkpoint
from guided_diffusion.io.reading import list_names
from guided_diffusion.io.remote import join
from guided_diffusion.runs import logger
from guided_diffusion.runs.best_checkpoint import BestCheckpoint
from guided_diffusion.runs.checkpoint_folder import Checkpoint, CheckpointFolder
from guided_diffusion.runs.run_directory import clashes, versions
from guided_diffusion.training.init_weights import init_weights

# Flags that do not change the numbers. Instead of data_dir and batch_size, _FACTS are compared.
CHANGEABLE = frozenset(
    ("log_dir", "log_interval", "eval_interval", "save_interval", "keep", "resume_checkpoint", "init_from")
    + ("val_data_dir", "keep_best")
    + ("data_dir", "data_workers", "batch_size", "processes", "meet_timeout")
)
# Flags over whose steps the learning rate falls; only then does --iterations belong to a run's identity.
_ANNEALED_OVER = frozenset(("iterations", "lr_anneal_steps"))
# Facts that a run depends on and that are no flags, with their names in errors.
_FACTS = {"class_names": "classes", "images": "images", "global_batch": "--batch_size times processes"}


@dataclass(frozen=True)
class TrainingRun:
    """The state of a run when its program starts, and how its checkpoints are kept.

    :param model_path: weights to load first, with the optimizer's and the averages' files beside them; "": none.
    :param number: the one in that file's name.
    :param began: the first step of the run: 0, or that of the file of --resume_checkpoint.
    :param first_step: the step to train next; steps count from 0.
    :param state: the loop's state as passed to `save`, of a run that is resumed; None for a new run.
    :param seed: of all draws; None: use the global generators as they are.
    :param folder: for checkpoints from which the run can resume; None: only upstream's files.
    :param init_from: checkpoint to start from where there is no model_path, see `init_weights`; "": none.
    :param flags: those that all checkpoints in `folder` share. keep: number of checkpoints to keep; 0: all.
    :param best: finds the best checkpoint, which is kept too; None: there is none.
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
    best: BestCheckpoint | None = None

    @classmethod
    def from_checkpoint(cls, path: str) -> TrainingRun:
        """Resume as upstream does: from a model%06d.pt, at the step in its name; from the start where path is ""."""
        step = parse_resume_step_from_filename(path)
        return cls(path, step, step, step)

    def keeping_best(self, name: str, higher: Mapping[str, bool]) -> TrainingRun:
        """Return the run with its best checkpoint kept, see `BestCheckpoint`; InputError for a name not in `higher`."""
        return replace(self, best=BestCheckpoint(name, higher, (self.state or {}).get("best")))

    def load_weights(self, model: nn.Module) -> None:
        """Load the weights to start from, if any, on every rank."""
        if self.model_path:
            logger.log(f"resuming from {self.model_path} at step {self.first_step}")
            checkpoint.load_weights(model, self.model_path)
        elif self.init_from:
            init_weights(model, self.init_from, self.flags.get("class_names"))

    def seed_step(self, step: int, purpose: Purpose = Purpose.STEP) -> None:
        """Seed the global generators for a step on this rank."""
        if self.seed is not None:
            seed_globals(self.seed, purpose, collectives.get_rank(), step)

    @contextmanager
    def upkeep(self, last_step: int | None) -> Iterator[Callable[..., None]]:
        """Show progress and catch signals during a training of `last_step` steps in all (None: without end).

        Yields a function to call after each step: `logs` writes the log, `due` calls `save`, which writes a checkpoint
        and returns its path. A signal asks for a checkpoint too, and SIGTERM and SIGINT end the training after it.
        """
        progress = Progress(last_step, "steps", self.first_step, directory=logger.get_dir())
        with progress, stop_signals.StopSignals() as signals:

            def after_step(logs: bool, save: Callable[[], str], due: bool) -> None:
                if logs:
                    logged = logger.dumpkvs()
                    if self.best is not None:
                        self.best.see(logged)
                asked = signals.asked()
                if asked or due:
                    path = save()
                    if progress.n + 1 != last_step:
                        stop_signals.leave(asked, path)
                progress.update()

            yield after_step
        if last_step is not None and progress.n >= last_step:  # False under DIFFUSION_TRAINING_TEST
            progress.finish()

    def save(self, directory: str, number: int, steps_done: int, objects: Mapping[str, Any], state: dict) -> str:
        """Write a checkpoint from rank 0, then delete old ones; all ranks wait. Returns the path of its weights.

        :param number: the one in its file names; steps_done: counted from step 0.
        :param objects: contents of its files, by name.
        :param state: JSON values that the loop needs to resume, returned as `state`.
        """
        if collectives.get_rank() == 0 and self.folder is None:
            for name, content in objects.items():
                path = join(directory, name)
                checkpoint.save(content, path)
                logger.log(f"saved {path}")
        elif collectives.get_rank() == 0:
            best = None if self.best is None else self.best.update(number)
            state = state if best is None else state | {"best": best}
            entry = {"steps_done": steps_done, "began": self.began, "seed": self.seed, "loop": state}
            entry |= {"flags": self.flags, "versions": versions()}
            self.folder.save(number, objects, entry)
            self.folder.prune(self.keep, besides=() if best is None else (best["number"],))
        collectives.barrier()
        return join(directory, f"model{number:06d}.pt")


def parse_resume_step_from_filename(filename: str) -> int:
    """Return the step in path/to/modelNNNNNN.pt, between the last "model" and the next dot; 0 for other names."""
    _, found, rest = filename.rpartition("model")
    try:
        return int(rest.split(".")[0]) if found else 0
    except ValueError:
        return 0


def open_run(
    flags: Mapping[str, Any],
    changeable: frozenset[str],
    resume_checkpoint: str,
    init_from: str,
    defaults: Mapping[str, Any],
) -> TrainingRun:
    """Return the run in the log's directory, resumed from its newest intact checkpoint or `resume_checkpoint`.

    Without either it starts with a new network's weights, or those of `init_from`.

    A collective. InputError on all ranks when the folder holds checkpoints of a run with other flags; the line
    names each difference, see `run_directory.clashes`.
    """
    folder = CheckpointFolder(Path(logger.get_dir()))

    def look() -> Checkpoint | None:
        _check_flags(folder, flags, changeable, defaults)
        newest = folder.newest_intact()
        folder.prune(0)  # finish deletions that an interrupted call began
        return newest

    found = collectives.from_rank_0(look)
    kept = {"seed": flags["seed"], "folder": folder, "flags": dict(flags), "keep": flags["keep"]}
    other = TrainingRun.from_checkpoint(resume_checkpoint)
    if found is None or other.number > found.number:
        return replace(other, **kept, init_from=init_from)
    steps_done, began, before = found.state["steps_done"], found.state["began"], found.state["flags"]["processes"]
    if before != flags["processes"]:
        now = counted(flags["processes"], "processes")
        logger.warning(f"resuming with {now}, {before} before: the random draws will differ")
    if found.state["versions"] != versions():
        logger.warning(f"resuming with {versions()}, before {found.state['versions']}: roundings may differ")
    return TrainingRun(found.model, found.number, began, steps_done, found.state["loop"], **kept)


def _check_flags(
    folder: CheckpointFolder, flags: Mapping[str, Any], changeable: frozenset[str], defaults: Mapping[str, Any]
) -> None:
    """Raise InputError when the folder's checkpoints are of another run."""
    state = folder.newest_state()
    models = [path for name in list_names(folder.directory) if (path := folder.directory / name).match("model*.pt")]
    if state is None and not models:
        return
    # Without a state: config.json of a run that ended before its first checkpoint was complete.
    found = state["flags"] if state else checkpoint.read_config(models[0]) or {}
    differences = clashes(flags, found, changeable, defaults, _FACTS)
    told = list(differences.values()) if found else ["it has no config.json"]
    if found and (annealed := _ANNEALED_OVER.intersection(differences)):
        told[-1] += f"; the learning rate is annealed over --{min(annealed)}, so another value is another run"
    if told:
        raise InputError(
            f"{folder.directory}: holds checkpoints of another run: {', '.join(told)}; use another --log_dir"
        )
