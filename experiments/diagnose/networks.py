"""The networks that a diagnosis is about, from its flags."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from experiments.diagnose.flags import DiagnoseConfig
from guidance_methods.pairs import without_labels
from guidance_methods.terms import shared_classes, warn_of_training
from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig, RunConfig
from guided_diffusion.config.create import build_classifier, build_model
from guided_diffusion.config.flags import ParsedFlags, architecture_from
from guided_diffusion.distributed import collectives
from guided_diffusion.errors import InputError
from guided_diffusion.io.checkpoint_flags import CLASSIFIER
from guided_diffusion.io.reading import hash_file
from guided_diffusion.models.inference import Frozen
from guided_diffusion.sampling import setup


class Subject:
    """The networks that the flags name, checked; `build` loads them.

    :raises InputError: a checkpoint that is missing, contradicts the flags, or does not go with the others.
    """

    def __init__(self, parsed: ParsedFlags):
        asked = parsed.make(DiagnoseConfig)
        self.path, self.cond_path = asked.model_path, asked.cond_model_path
        self.model, self.diffusion = setup.model_configs(parsed, self.path, ModelConfig)
        self.cond_model = self._conditional() if self.cond_path else None
        self.paths = collectives.from_rank_0(lambda: _named(parsed.values["classifier_path"]))
        self.classifiers: dict[str, ClassifierConfig] = {}
        known = []
        if self.cond_model:
            count = self.cond_model[0].num_classes
            known = [(f"--cond_model_path {self.cond_path}", Classes.of_checkpoint(self.cond_path, count))]
        for name, path in self.paths.items():
            saved = setup.checkpoint_config("classifier_path", path, CLASSIFIER)
            config = self.classifiers[name] = architecture_from(parsed, ClassifierConfig, saved, path)
            warn_of_training(self.diffusion, saved or {}, path, noisy=True)
            setup.check_same(setup.IMAGE_FLAGS, asdict(self.model), self.path, asdict(config), path)
            known.append((f"--classifier_path {path}", Classes.of_checkpoint(path, config.num_classes)))
        self.classes = shared_classes(known)

    def _conditional(self) -> tuple[ModelConfig, DiffusionConfig]:
        if self.model.class_cond:
            raise InputError(
                f"--model_path {self.path}: found a model with classes, expected one without, beside --cond_model_path"
            )
        named = "cond_model_path", self.cond_path
        model, diffusion, is_told = setup.second_model_configs(*named, self.model, self.diffusion)
        if is_told and not model.class_cond:
            raise InputError(f"--cond_model_path {self.cond_path}: found a model without classes, expected one with")
        setup.check_same_process(self.model, self.diffusion, self.path, model, diffusion, self.cond_path)
        return replace(model, class_cond=True, use_fp16=self.model.use_fp16), diffusion

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of every checkpoint, by flag or by the classifier's name."""
        files = {"--model_path": self.path, "--cond_model_path": self.cond_path, **self.paths}
        return collectives.from_rank_0(lambda: {name: hash_file(path) for name, path in files.items() if path})

    def build(self, run: RunConfig) -> tuple[Callable | None, Callable | None, dict[str, Frozen]]:
        """Return the model, the conditional one (None where there is none) and the classifiers."""
        model = cond_model = None
        if not self.model.class_cond:
            build = partial(build_model, self.model, self.diffusion)
            model = without_labels(setup.load_frozen(build, self.path, self.model.use_fp16, run))
        if self.cond_model is not None:
            build = partial(build_model, *self.cond_model)
            cond_model = setup.load_frozen(build, self.cond_path, self.model.use_fp16, run)
        classifiers = {
            name: setup.load_frozen(
                partial(build_classifier, config), self.paths[name], config.classifier_use_fp16, run
            )
            for name, config in self.classifiers.items()
        }  # fmt: skip
        return model, cond_model, classifiers


def _pair(word: str) -> tuple[str, str]:
    """Return the name, if any, and the file of [NAME=]FILE; the file's path may have "=" in it."""
    name, sign, path = word.partition("=")
    return (name, path) if sign and os.sep not in name and not os.path.exists(word) else ("", word)


def _named(words: list[str]) -> dict[str, str]:
    """Return the classifiers' files by name: the one given, else the file's, or its folder's where that tells more."""
    found: dict[str, str] = {}
    pairs = [_pair(word) for word in words]
    stems = Counter(Path(path).stem for _, path in pairs)
    for name, path in pairs:
        file = setup.trained_file("classifier_path", path)
        told = Path(path).stem
        if stems[told] > 1 or told.startswith("model") or os.path.isdir(path):
            told = Path(file).absolute().parent.name
        name = name or told
        if name in found:
            raise InputError(f"--classifier_path {path}: found a second {name}, expected NAME=FILE with other names")
        found[name] = file
    return found
