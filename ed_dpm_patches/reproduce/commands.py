"""From a recipe to what is typed: the commands that train, sample and evaluate, and the disk they need."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from guided_diffusion.errors import InputError

from .book import Book, Flags, Network, Row, Run
from .published import PUBLISHED

MODELS = Path("models")  # where published files are expected, as in upstream's README
IMAGENET = Path("imagenet")  # with the folders train and val
_BYTES = 4  # a parameter, float32
_SAVE_INTERVAL = 10_000  # the default of classifier_train


@dataclass(frozen=True)
class Commands:
    """The commands of one book, as lists of arguments.

    :param processes: of sampling and training; out: where samples and results go, one folder a run.
    """

    book: Book
    processes: int
    out: Path

    def checkpoint(self, network: Network) -> Path:
        """Where a network's weights are: a published file, or what `train` leaves."""
        if network.training is None:
            return MODELS / network.checkpoint
        return self.out / network.checkpoint / f"model{network.training.flags['iterations'] - 1:06d}.pt"

    def train(self, network: Network) -> list[str]:
        """classifier_train for a network with a [training] table. InputError if its batch cannot be shared out."""
        share, left_over = divmod(network.training.batch_size, self.processes)
        if left_over or not share:
            raise InputError(
                f"--nproc: found {self.processes}, expected a divisor of {network.training.batch_size}, "
                f"the batch of {network.checkpoint}"
            )
        return self._launch(
            "classifier_train",
            {"data_dir": str(IMAGENET / "train"), "val_data_dir": str(IMAGENET / "val"), "batch_size": share}
            | network.flags
            | network.training.flags
            | {"log_dir": str(self.out / network.checkpoint)},
        )

    def sample(self, run: Run) -> list[str]:
        """classifier_sample, or image_sample for a run without a classifier."""
        paths = {"model_path": str(self.checkpoint(self.book.networks[run.model]))}
        if run.classifier:
            paths["classifier_path"] = str(self.checkpoint(self.book.networks[run.classifier]))
        return self._launch(
            "classifier_sample" if run.classifier else "image_sample",
            paths | self.book.network_flags(run) | run.flags | {"log_dir": str(self.out / run.name)},
        )

    def samples(self, run: Run) -> Path:
        """The file that sampling leaves."""
        side = self.book.image_size(run)
        return self.out / run.name / f"samples_{run.num_samples}x{side}x{side}x3.npz"

    def evaluate(self, run: Run) -> list[str]:
        """The evaluator on a run's samples. One process."""
        return self._evaluate(run.reference, self.samples(run), self.out / run.name)

    def evaluate_batch(self, row: Row) -> list[str]:
        """The evaluator on the samples that somebody else publishes for this row."""
        reference = self.book.runs[row.run].reference if row.run else row.reference
        return self._evaluate(reference, MODELS / row.batch, self.out / Path(row.batch).stem)

    def _launch(self, script: str, flags: Flags) -> list[str]:
        launcher = ["mpiexec", "-n", str(self.processes), "python", f"scripts/{script}.py"]
        return launcher + [part for name, value in flags.items() for part in (f"--{name}", str(value))]

    @staticmethod
    def _evaluate(reference: str, samples: Path, directory: Path) -> list[str]:
        command = ["python", "evaluations/evaluator.py", MODELS / reference, samples]
        return [str(part) for part in command + ["--json", directory / "metrics.json"]]


def checkpoint_bytes(network: Network) -> tuple[int, bool]:
    """Size of a network's file, and whether that is known rather than computed from its parameters."""
    known = PUBLISHED[network.checkpoint].size if network.checkpoint in PUBLISHED else None
    return (known, True) if known else (_BYTES * network.parameters, False)


def training_bytes(network: Network) -> int:
    """What training a classifier leaves: at every save its weights and AdamW's two moments."""
    saves = -(-network.training.flags["iterations"] // _SAVE_INTERVAL)
    return 3 * _BYTES * network.parameters * saves


def sample_bytes(book: Book, run: Run) -> int:
    """Size of a run's samples. While the finished batches become one file both exist, twice this in all."""
    return run.num_samples * 3 * book.image_size(run) ** 2


def shell(command: list[str], width: int = 112) -> str:
    """A command as text to paste, wrapped so that a flag and its value stay together."""
    pieces: list[str] = []
    for part in command:
        if pieces and not part.startswith("--") and pieces[-1].startswith("--") and " " not in pieces[-1]:
            pieces[-1] += f" {shlex.quote(part)}"
        else:
            pieces.append(shlex.quote(part))
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1]) + 1 + len(piece) > width:
            lines.append("   ")
        lines[-1] += f" {piece}" if lines[-1] else piece
    return " \\\n".join(lines)
