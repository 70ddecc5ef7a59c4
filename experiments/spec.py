"""Experiments: networks, runs, and the tables whose rows name them. `spec_files.load` reads them.

A run is one set of samples for each seed; rows of several tables can name the same one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from experiments.toml_entry import Flags
from guided_diffusion.diffusion.solvers import SAMPLERS
from guided_diffusion.errors import InputError

RECIPES = Path(__file__).resolve().with_name("recipes")
ROOT = RECIPES.parents[1]  # of the repository
IMAGENET = "imagenet"
DIGITS = "experiments/digits/data.py"
# A program that writes data writes folders of images and, of the same names, npz files with labels.
PARTS = ("train", "evaluator", "heldout")
REPORTED = ("fid", "sfid", "inception_score", "precision", "recall")  # the metrics that papers print
HELDOUT, REAL = "heldout.npz", "train.npz"  # what samples are compared with; real images evaluated as samples are


def short(path: Path) -> Path:
    """A path as typed in the repository's root, where the commands run: relative inside it, else absolute."""
    path = path.absolute()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


@dataclass(frozen=True)
class Training:
    """The training of a network that nobody publishes.

    :param batch_size: images a step over all processes together; flags: of the script.
    :param script: classifier_train or image_train; part: the folder of the data that it learns from.
    :param others: keys of further networks that it needs, by the flag that names each one's file.
    """

    batch_size: int
    flags: Flags
    script: str = "classifier_train"
    part: str = "train"
    others: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Derivation:
    """A program that makes a network of another one, or a further part of the data with the help of one.

    :param program: of the repository, with flags; checkpoint, npz file and new file are its further arguments.
    :param network: key of `Spec.networks`; part: of the written data, whose npz file it reads.
    """

    program: str
    network: str
    part: str


@dataclass(frozen=True)
class Network:
    """A checkpoint and the flags that make its architecture and precision.

    :param checkpoint: name of a published file; with `training` or `derived` the name of the folder that they fill;
        else a file of the repository. parameters: how many numbers it holds.
    """

    name: str
    checkpoint: str
    parameters: int
    flags: Flags
    training: Training | None = None
    note: str = ""
    derived: Derivation | None = None

    @property
    def is_made(self) -> bool:
        """True for a network that is trained or derived here."""
        return bool(self.training or self.derived)


@dataclass(frozen=True)
class Run:
    """One set of samples.

    :param model, classifier: keys of `Spec.networks`; no classifier means unguided sampling.
    :param reference: the evaluator's reference batch.
    :param flags: of the sampling script, on top of those of the networks.
    :param others: keys of further networks, by the flag that names each one's file.
    """

    name: str
    model: str
    reference: str
    flags: Flags
    classifier: str | None = None
    note: str = ""
    others: dict[str, str] = field(default_factory=dict)

    @property
    def is_guided(self) -> bool:
        """True for a run with a classifier or a second diffusion model."""
        return bool(self.classifier or self.others)

    @property
    def num_samples(self) -> int:
        return self.flags["num_samples"]

    @property
    def sampler(self) -> str:
        """The sampler's name and number of steps, such as "DDPM 250" or "UniPC 10"."""
        steps = str(self.flags["timestep_respacing"]).removeprefix("ddim")
        name = self.flags.get("sampler") or ("ddim" if self.flags.get("use_ddim") else "ddpm")
        return f"{SAMPLERS[name].title if name in SAMPLERS else name} {steps}"


@dataclass(frozen=True)
class Row:
    """A line of a table, or a point of a curve.

    :param name: "table/key"; method: as the paper calls it.
    :param paper: values of `REPORTED` that the paper prints; release: what the authors' README prints otherwise.
    :param run: name of the run that makes it; batch: samples published by others, in written data real images.
        Neither: the paper's values only.
    :param sweep: instead of `run`, the runs of which the one with the lowest mean FID is this row.
    """

    name: str
    method: str
    paper: dict[str, float] = field(default_factory=dict)
    release: dict[str, float] = field(default_factory=dict)
    run: str | None = None
    batch: str | None = None
    reference: str | None = None
    note: str = ""
    sweep: tuple[str, ...] = ()

    @property
    def run_names(self) -> tuple[str, ...]:
        """All runs that the row needs."""
        return (self.run,) if self.run else self.sweep


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper."""

    name: str
    title: str
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class Spec:
    """All experiments of a folder.

    :param data: where training images and references come from: "imagenet", files that the user has and
        published ones; else the program of the repository, with its flags, that writes `PARTS` into the folder
        that follows them.
    :param features: name of the network that extracts features of samples; None: Inception.
    :param seeds: a run is sampled once with each.
    :param parts: further parts of written data, by name, made when networks are there.
    :param smoke: the networks are small stand-ins, and so the results mean nothing.
    """

    title: str
    data: str
    networks: dict[str, Network]
    runs: dict[str, Run]
    tables: dict[str, Table]
    seeds: tuple[int, ...] = (0,)
    features: str | None = None
    parts: dict[str, Derivation] = field(default_factory=dict)
    smoke: bool = False

    @property
    def writes_data(self) -> bool:
        """True where a program writes the data."""
        return self.data != IMAGENET

    @property
    def batch_title(self) -> str:
        """The name of what is evaluated besides our own samples; in written data that is real images."""
        return "real images" if self.writes_data else "published samples"

    def rows(self, name: str) -> tuple[Row, ...]:
        """All rows of a table, the one row called "table/key", or every row for "all". InputError for other names."""
        rows = tuple(row for table in self.tables.values() for row in table.rows)
        found = tuple(row for row in rows if name in ("all", row.name, row.name.partition("/")[0]))
        if not found:
            raise InputError(f"{name}: no such row or table, `ed-dpm list` shows them all")
        return found

    def run_networks(self, run: Run) -> list[Network]:
        """A run's networks, the model first, then the classifier."""
        return [self.networks[name] for name in (run.model, run.classifier, *run.others.values()) if name]

    def network_flags(self, run: Run) -> Flags:
        """Flags of a run's model and classifier; another network's flags are in its config.json."""
        networks = [self.networks[name] for name in (run.model, run.classifier) if name]
        return {name: value for network in networks for name, value in network.flags.items()}

    def image_shape(self, run: Run) -> tuple[int, int, int]:
        """Height, width and channels of the images that a run makes."""
        flags = self.networks[run.model].flags
        return flags["image_size"], flags["image_size"], flags.get("in_channels", 3)
