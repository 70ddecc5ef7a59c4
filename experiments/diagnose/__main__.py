"""Measure on labelled images, without sampling, whether a classifier is good enough to guide, and at which scale.

    ed-dpm diagnose --model_path runs/uncond/model.pt --classifier_path runs/plain/model.pt runs/ect/model.pt \\
        --data_dir heldout --out runs/diagnose

Writes diagnose.html, its figures with their CSVs, and diagnose.json. After an interruption the same command resumes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.diagnose.diagnosis import Parts, conclude, named_rules
from experiments.diagnose.flags import DiagnoseConfig, parse
from experiments.diagnose.images import LabelledImages, open_images
from experiments.diagnose.measures import Measurement
from experiments.diagnose.networks import Subject
from experiments.diagnose.report import write_report
from experiments.steps import claim
from guidance_methods.config import check_not_rescaled, is_rescaled
from guided_diffusion.config.configs import ReadingConfig, RunConfig
from guided_diffusion.config.create import build_diffusion
from guided_diffusion.distributed import collectives, shutdown
from guided_diffusion.distributed.progress import Progress
from guided_diffusion.distributed.stop_signals import terminating
from guided_diffusion.runs import logger
from guided_diffusion.sampling import setup

# Flags that do not change what is measured, or files known by their content.
_INDIFFERENT = ("model_path", "cond_model_path", "data_dir", "out", "batch_size", "replicates", "rules", "labels")


def main() -> None:
    parsed = parse(__doc__)
    asked, run = parsed.make(DiagnoseConfig), parsed.make(RunConfig)
    out = setup.begin(dataclasses.replace(run, log_dir=asked.out or run.log_dir))
    parsed = setup.choose_files(parsed, "model_path", "cond_model_path")
    subject = Subject(parsed)
    asked = parsed.make(DiagnoseConfig)
    images = open_images(asked, parsed.make(ReadingConfig).reading, run.seed, subject.model, subject.classes)
    rules = named_rules(asked.rules, subject.diffusion.diffusion_steps)
    if "timestep" in rules and is_rescaled(subject.diffusion):
        if "rules" in parsed.values:
            check_not_rescaled(subject.diffusion, "--rules timestep")
        del rules["timestep"]
    purpose = parsed.resolve(DiagnoseConfig, subject.model, *subject.classifiers.values(), subject.diffusion)
    purpose = {name: value for name, value in purpose.items() if name not in _INDIFFERENT}
    purpose |= {
        "seed": run.seed, "amp_dtype": run.amp_dtype, "images": images.fingerprint, "networks": subject.digests(),
        "rules": {name: repr(rule) for name, rule in rules.items()},
    }  # fmt: skip
    diffusion = build_diffusion(subject.diffusion)
    model, cond_model, classifiers = subject.build(run)
    measurement = Measurement(model, classifiers, diffusion, rules, cond_model, asked.levels, run.seed)
    collectives.from_rank_0(lambda: claim(out / "diagnosed.json", purpose))  # once all that is asked for can be done
    parts = Parts(out / "parts", len(images))
    _measure(measurement, images, parts, asked.batch_size, out)
    if collectives.get_rank() == 0:
        result = conclude(measurement, parts.read(), subject.classes.count, asked.replicates) | {"run": purpose}
        page = write_report(result, out, [_about(asked, subject)])
        for sentence in result["verdict"]:
            logger.log(sentence)
        logger.log(f"page: {page}")
    collectives.barrier()


def _measure(measurement: Measurement, images: LabelledImages, parts: Parts, batch_size: int, out: Path) -> None:
    """Measure the batches that are missing, every world-size-th on this rank."""
    missing = collectives.from_rank_0(lambda: parts.missing(batch_size))
    rank, world_size = collectives.get_rank(), collectives.get_world_size()
    left = sum(map(len, missing))
    kept = "what is measured is kept: the same command resumes"
    with Progress(len(images), "images", initial=len(images) - left, directory=out) as progress, terminating(kept):
        for turn in range(0, len(missing), world_size):
            if turn + rank < len(missing):
                batch = missing[turn + rank]
                pixels, labels = (value.to(collectives.dev()) for value in images.read(batch))
                parts.write(batch, measurement.measure(pixels, labels, [images.numbers[i] for i in batch]))
            progress.update(sum(map(len, missing[turn : turn + world_size])))
        collectives.barrier()
    progress.finish()


def _about(asked: DiagnoseConfig, subject: Subject) -> str:
    classifiers = ", ".join(f"{name} = {path}" for name, path in subject.paths.items())
    pair = f" and {subject.cond_path}" if subject.cond_path else ""
    return f"Diffusion model {subject.path}{pair}; classifiers {classifiers}; images {asked.data_dir}."


if __name__ == "__main__":
    shutdown.run_main(main)
