"""What the demo runs: the configurations compared, and the command line of every step."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from demo.digits import PARTS
from ed_dpm_patches.reproduce.steps import Step

MODEL = Path("demo/model/uncond.safetensors")
CLASSIFIERS, RULES = ("plain", "ect"), ("constant", "eds")
# The same three for both rules; the middle one is traced. In a finer scan with another seed the Fréchet distance
# was lowest near 2 for the constant scale and near 1.5 for EDS, so the middle is equally far from both.
SCALES = {"constant": (1.0, 1.7, 3.0), "eds": (1.0, 1.7, 3.0)}
TRACED_SCALE = 1.7
UNGUIDED, REAL = "unguided", "real digits"

CLASSIFIER_FLAGS = (
    "--image_size 8 --in_channels 1 --random_crop False --random_flip False "
    "--classifier_width 32 --classifier_depth 1 --classifier_attention_resolutions 4 "
    "--classifier_num_head_channels 32 --lr 1e-3 --anneal_lr --log_interval 100"
)


@dataclass(frozen=True)
class Settings:
    """How much is done."""

    iterations: int = 400  # of each guiding classifier, 64 images a process and step
    feature_iterations: int = 300  # of the feature network, 32 images a process and step
    num_samples: int = 400  # a run
    respacing: str = "ddim25"
    seeds: tuple[int, ...] = (0, 1)


FULL = Settings()
# For tests: everything happens, on too little to mean anything.
QUICK = Settings(iterations=20, feature_iterations=40, num_samples=40, respacing="ddim5", seeds=(0,))


@dataclass(frozen=True)
class Configuration:
    """A way to sample. `classifier` is one of CLASSIFIERS, `rule` one of RULES; both "" when unguided."""

    classifier: str = ""
    rule: str = ""
    scale: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.classifier}-{self.rule}-{self.scale:g}" if self.rule else UNGUIDED

    @property
    def traced(self) -> bool:
        return bool(self.rule) and self.scale == TRACED_SCALE


COMBINATIONS = [(classifier, rule) for classifier in CLASSIFIERS for rule in RULES]
CONFIGURATIONS = [Configuration()] + [
    Configuration(classifier, rule, scale) for classifier, rule in COMBINATIONS for scale in SCALES[rule]
]


class Plan:
    """The steps of one run, all files of which are under `out`."""

    def __init__(self, out: Path, settings: Settings):
        self.out, self.settings = out, settings
        self.data = out / "data"

    def checkpoint(self, classifier: str) -> Path:
        """The last checkpoint of "plain", "ect" or "features"."""
        iterations = self.settings.feature_iterations if classifier == "features" else self.settings.iterations
        return self.out / "classifiers" / classifier / f"model{iterations - 1:06d}.pt"

    def samples(self, configuration: Configuration, seed: int) -> Path:
        """The npz of a sampling run."""
        folder = self.out / "samples" / f"{configuration.name}-seed{seed}"
        return folder / f"samples_{self.settings.num_samples}x8x8x1.npz"

    def trace(self, configuration: Configuration, seed: int) -> Path:
        """The npz that a traced run leaves beside its samples."""
        return self.samples(configuration, seed).with_name("trace.npz")

    def metrics(self, name: str, seed: int = 0) -> Path:
        """The evaluator's JSON file; `name` is a configuration's or REAL."""
        return self.out / "metrics" / f"{name.replace(' ', '-')}-seed{seed}.json"

    def part(self, name: str) -> Path:
        """One of the digits' parts as a file; beside it is the folder of the same images."""
        return self.data / f"{name}.npz"

    def writing(self) -> list[Step]:
        """The digits on disk."""
        outputs = tuple(map(self.part, PARTS))
        return [Step("digits", ("python", "demo/digits.py", str(self.data)), (), outputs)]

    def training(self) -> list[Step]:
        """Two classifiers that guide, alike but for the loss, and one that judges."""
        parts = {"plain": ("train", ""), "ect": ("train", " --ect"), "features": ("evaluator", " --noised False")}
        return [self._training_step(name, part, flags) for name, (part, flags) in parts.items()]

    def _training_step(self, name: str, part: str, flags: str) -> Step:
        judge = name == "features"
        iterations = self.settings.feature_iterations if judge else self.settings.iterations
        checkpoint = self.checkpoint(name)
        command = (
            f"mpiexec -n 2 python scripts/classifier_train.py{flags} --data_dir {quoted(self.data / part)} "
            f"--iterations {iterations} --batch_size {32 if judge else 64} {CLASSIFIER_FLAGS} "
            f"--log_dir {quoted(checkpoint.parent)}"
        )
        return make_step(f"train-{name}", command, [self.part(part)], checkpoint)

    def sampling(self) -> list[Step]:
        """Every configuration with every seed; sample i of a seed starts from the same noise in all of them."""
        return [self._sampling_step(c, seed) for c in CONFIGURATIONS for seed in self.settings.seeds]

    def _sampling_step(self, configuration: Configuration, seed: int) -> Step:
        samples, classifier = self.samples(configuration, seed), self.checkpoint(configuration.classifier or "plain")
        trace = f" --trace {quoted(self.trace(configuration, seed))}" if configuration.traced else ""
        flags = [
            f"--model_path {MODEL} --classifier_path {quoted(classifier)}",
            f"--classifier_scale {configuration.scale:g}" + " --eds" * (configuration.rule == "eds"),
            f"--use_ddim --timestep_respacing {self.settings.respacing} --balanced --seed {seed}",
            f"--num_samples {self.settings.num_samples} --batch_size {self.settings.num_samples // 2}",
            f"--log_dir {quoted(samples.parent)}{trace}",
        ]
        command = f"python scripts/classifier_sample.py {' '.join(flags)}"
        return make_step(f"sample-{configuration.name}-seed{seed}", command, [MODEL, classifier], samples)

    def evaluation(self) -> list[Step]:
        """All samples, and the real images of the train part, against the held-out part."""
        judged = [(REAL, 0, self.part("train"))]
        judged += [(c.name, seed, self.samples(c, seed)) for c in CONFIGURATIONS for seed in self.settings.seeds]
        reference, judge = self.part("heldout"), self.checkpoint("features")
        return [
            make_step(
                f"evaluate-{name.replace(' ', '-')}-seed{seed}",
                f"python evaluations/evaluator.py {quoted(reference)} {quoted(images)} "
                f"--features {quoted(judge)} --json {quoted(self.metrics(name, seed))}",
                [reference, images, judge],
                self.metrics(name, seed),
            )
            for name, seed, images in judged
        ]


def make_step(name: str, command: str, inputs: list[Path], output: Path) -> Step:
    """A step from a command line. What scripts made is not made again with other flags or files unless removed."""
    words = tuple(shlex.split(command))
    traces = [Path(words[words.index("--trace") + 1])] if "--trace" in words else []
    return Step(name, words, tuple(inputs), (output, *traces), precious="scripts/" in command)


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))
