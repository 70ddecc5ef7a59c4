"""The steps of recipes: the commands that download, train, sample and evaluate, their files, and the disk they need."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.published import INCEPTION, PUBLISHED
from experiments.spec import HELDOUT, PARTS, REAL, ROOT, Derivation, Flags, Network, Row, Run, Spec
from experiments.steps import Step
from guidance_methods.config import untraceable
from guided_diffusion.errors import InputError

_BYTES = 4  # a parameter, float32
_SAVE_INTERVAL = 10_000  # the default of classifier_train


@dataclass(frozen=True)
class Commands:
    """The steps of a spec, and the files they write, by what the user decides.

    :param out: folder for all that is made; processes: of training and sampling.
    :param models: folder of published files; data_dir: folder with the folders train and val.
    :param given: published files that are elsewhere, by name.
    :param num_samples, seeds: instead of the recipes'. batch_size: images a process samples at once.
    :param trace: write a trace beside the samples of every guided run; bootstrap: rounds behind 95 % intervals.
    """

    spec: Spec
    out: Path = Path("runs/paper")
    processes: int = 8
    models: Path = Path("models")
    data_dir: Path = Path("imagenet")
    given: dict[str, Path] = field(default_factory=dict)
    num_samples: int | None = None
    seeds: tuple[int, ...] = ()
    batch_size: int | None = None
    trace: bool = False
    bootstrap: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", self.seeds or self.spec.seeds)

    @property
    def data(self) -> Path:
        """Folder of the parts that a program writes."""
        return self.out / "data"

    def images(self, part: str) -> Path:
        """Folder of training images; `part` is train or val."""
        if self.spec.writes_data:
            return self.data / {"val": "evaluator"}.get(part, part)
        return self.data_dir / part

    def published(self, name: str) -> Path:
        """The expected path of a published file."""
        return self.given.get(name, self.models / name)

    def reference(self, name: str) -> Path:
        """The evaluator's reference batch."""
        return self.data / HELDOUT if self.spec.writes_data else self.published(name)

    def count(self, run: Run) -> int:
        """Number of samples of a run."""
        return self.num_samples or run.num_samples

    def checkpoint(self, network: Network) -> Path:
        """The path of a network's weights: a published file, one of the repository, or what `train` writes."""
        if network.derived:
            return self.out / "networks" / network.checkpoint / f"{network.checkpoint}.pt"
        if network.training is None:
            return self.published(network.checkpoint) if network.checkpoint in PUBLISHED else Path(network.checkpoint)
        flags = network.training.flags
        if network.training.script == "image_train":
            name = f"ema_{flags['ema_rate']}_{flags['lr_anneal_steps']:06d}.pt"
        else:
            name = f"model{flags['iterations'] - 1:06d}.pt"
        return self.out / "networks" / network.checkpoint / name

    def download(self, name: str) -> Step:
        """Fetch a published file."""
        command = ("python", "-m", "experiments", "download", name, "--out", str(self.models))
        return Step(f"download-{name}", command, (), (self.models / name,))

    def write_data(self) -> Step:
        """Run the program that writes the data."""
        parts = tuple(self.data / f"{part}.npz" for part in PARTS)
        return Step("data", ("python", *self.spec.data.split(), str(self.data)), (), parts)

    def train(self, network: Network) -> Step:
        """Train a network with a [training] table. InputError if its batch cannot be shared out."""
        training, output = network.training, self.checkpoint(network)
        share, left_over = divmod(training.batch_size, self.processes)
        if left_over or not share:
            raise InputError(
                f"--nproc: found {self.processes}, expected a divisor of {training.batch_size}, "
                f"the batch of {network.checkpoint}"
            )
        images = {"data_dir": str(self.images(training.part))}
        if training.script == "classifier_train" and training.part == "train":
            images["val_data_dir"] = str(self.images("val"))
        others = {flag: self.checkpoint(self.spec.networks[name]) for flag, name in training.others.items()}
        flags = images | {flag: str(path) for flag, path in others.items()} | {"batch_size": share}
        flags |= network.flags | training.flags | {"log_dir": str(output.parent)}
        # Images in folders have no hash; the npz file of written data stands for the folder beside it.
        inputs = ((self.data / f"{training.part}.npz",) if self.spec.writes_data else ()) + tuple(others.values())
        command = self._launch(training.script, flags)
        return Step(f"train-{network.checkpoint}", command, inputs, (output,), precious=True)

    def derive(self, network: Network) -> Step:
        """Make a network with a [derived] table of another one."""
        return self._derive(f"derive-{network.name}", network.derived, self.checkpoint(network))

    def derive_part(self, part: str) -> Step:
        """Make a further part of the data: its npz file and the folder of its images beside that."""
        return self._derive(f"part-{part}", self.spec.parts[part], self.data / f"{part}.npz")

    def _derive(self, name: str, derived: Derivation, new: Path) -> Step:
        inputs = self.checkpoint(self.spec.networks[derived.network]), self.data / f"{derived.part}.npz"
        return Step(name, ("python", *derived.program.split(), *map(str, (*inputs, new))), inputs, (new,))

    def sample(self, run: Run, seed: int) -> Step:
        """Run classifier_sample, or image_sample for a run without a classifier."""
        networks = [self.checkpoint(network) for network in self.spec.run_networks(run)]
        named = ["model_path", *["classifier_path"] * bool(run.classifier), *run.others]
        flags = dict(zip(named, map(str, networks), strict=True))
        flags |= self.spec.network_flags(run) | run.flags | {"num_samples": self.count(run)}
        if self.batch_size:
            flags["batch_size"] = self.batch_size
        if seed:
            flags["seed"] = seed
        outputs = [self.samples(run, seed)]
        flags["log_dir"] = str(outputs[0].parent)
        if run.classifier and self.trace and not untraceable(run.flags):
            outputs.append(self.trace_file(run, seed))
            flags["trace"] = str(outputs[1])
        command = self._launch("classifier_sample" if run.is_guided else "image_sample", flags)
        name = f"sample-{run.name}-seed{seed}-{self.count(run)}"
        return Step(name, command, tuple(networks), tuple(outputs), precious=True)

    def samples(self, run: Run, seed: int) -> Path:
        """The file that sampling writes."""
        height, width, channels = self.spec.image_shape(run)
        folder = self.out / "samples" / f"{run.name}-seed{seed}"
        return folder / f"samples_{self.count(run)}x{height}x{width}x{channels}.npz"

    def trace_file(self, run: Run, seed: int) -> Path:
        """The trace that a guided run writes where one is wanted."""
        return self.samples(run, seed).with_name("trace.npz")

    def evaluate(self, run: Run, seed: int) -> Step:
        """Run the evaluator on a run's samples, in one process."""
        metrics = self.out / "metrics" / f"{run.name}-seed{seed}-{self.count(run)}.json"
        return self._evaluate(run.reference, self.samples(run, seed), metrics)

    def compare(self, run: Run, base: Run, seed: int) -> Step:
        """Run the evaluator's paired test of a run's samples against another run's: the same noise and classes."""
        metrics = self.out / "paired" / f"{run.name}-against-{base.name}-seed{seed}-{self.count(run)}.json"
        return self._evaluate(run.reference, self.samples(run, seed), metrics, paired=self.samples(base, seed))

    def batch_reference(self, row: Row) -> str:
        """The reference that a published batch is compared with."""
        return self.spec.runs[row.run].reference if row.run else row.reference

    def evaluate_batch(self, row: Row) -> Step:
        """Run the evaluator on samples that somebody else publishes for a row; written data has real images instead."""
        samples = self.data / REAL if self.spec.writes_data else self.published(row.batch)
        metrics = self.out / "metrics" / f"batch-{Path(row.batch).stem}.json"
        return self._evaluate(self.batch_reference(row), samples, metrics)

    def _launch(self, script: str, flags: Flags) -> tuple[str, ...]:
        several = ["mpiexec", "-n", str(self.processes)] if self.processes > 1 else []
        words = (part for name, value in flags.items() for part in (f"--{name}", str(value)))
        return (*several, "python", f"scripts/{script}.py", *words)

    def _evaluate(self, reference: str, samples: Path, metrics: Path, paired: Path | None = None) -> Step:
        if self.spec.features:
            extractor = "--features", self.checkpoint(self.spec.networks[self.spec.features])
        else:
            extractor = "--inception", self.published(INCEPTION)
        inputs = self.reference(reference), samples, extractor[1]
        command = ["python", "evaluations/evaluator.py", *inputs[:2], *extractor]
        # The cache is of the reference's activations, which every run is compared with.
        command += ["--cache", self.out / "cache", "--json", metrics]
        if paired:
            inputs = (*inputs, paired)
            command += ["--paired", paired]
        elif self.bootstrap:
            command += ["--bootstrap", self.bootstrap]
        name = f"{'paired' if paired else 'evaluate'}-{metrics.stem}"
        return Step(name, tuple(map(str, command)), inputs, (metrics,))


def checkpoint_bytes(network: Network) -> tuple[int, bool]:
    """Size of a network's file, and whether that is known rather than computed from its parameters."""
    known = PUBLISHED[network.checkpoint].size if network.checkpoint in PUBLISHED else None
    if (ROOT / network.checkpoint).is_file():
        known = (ROOT / network.checkpoint).stat().st_size
    return (known, True) if known else (_BYTES * network.parameters, False)


def training_bytes(network: Network) -> int:
    """Bytes that training writes: at every save the weights and AdamW's two moments."""
    flags = network.training.flags
    saves = -(-(flags.get("iterations") or flags["lr_anneal_steps"]) // flags.get("save_interval", _SAVE_INTERVAL))
    return 3 * _BYTES * network.parameters * saves


def sample_bytes(commands: Commands, run: Run) -> int:
    """Size of a run's samples. While the finished batches become one file both exist, twice this in all."""
    height, width, channels = commands.spec.image_shape(run)
    return commands.count(run) * height * width * channels * len(commands.seeds)


def shell(command: Sequence[str], width: int = 112) -> str:
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
