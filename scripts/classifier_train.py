"""Train a noise-aware classifier, with --ect by entropy-constraint training (Eq. 11-12 of the paper).

--dlsm_weight trains its gradient too, by denoising likelihood score matching (Chao et al. 2022).

    mpiexec -n 8 python scripts/classifier_train.py --ect --data_dir train/ --val_data_dir val/ \\
        --image_size 256 --batch_size 32 --anneal_lr --classifier_use_fp16

The same command with the same --log_dir resumes from the newest checkpoint there.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from functools import partial

from ed_dpm_patches import ect_terms
from ed_dpm_patches.config import EctConfig, ect_weight
from guidance_methods import dlsm
from guidance_methods.dlsm_flags import DlsmConfig, read_denoising
from guided_diffusion.config.configs import (
    ClassifierConfig,
    ClassifierTrainConfig,
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    RunConfig,
)
from guided_diffusion.config.create import build_classifier, build_diffusion
from guided_diffusion.config.flags import Parser
from guided_diffusion.data.datasets import find_images
from guided_diffusion.data.image_labels import read_labels
from guided_diffusion.data.order import resumable_batches
from guided_diffusion.data.seeding import Purpose
from guided_diffusion.distributed import collectives, shutdown
from guided_diffusion.errors import InputError, counted
from guided_diffusion.models.mixed_precision import amp_dtype
from guided_diffusion.runs import logger
from guided_diffusion.sampling import setup
from guided_diffusion.training.classifier_loop import HIGHER_IS_BETTER, ClassifierTrainLoop, evaluate_plainly
from guided_diffusion.training.setup import Training


def main() -> None:
    own = (DataConfig, ClassifierTrainConfig, EctConfig, DlsmConfig, ClassifierConfig, DiffusionConfig, RunConfig)
    parsed = Parser(__doc__, *own, ModelConfig).parse()
    train, diffusion_config = parsed.make(ClassifierTrainConfig), parsed.make(DiffusionConfig)
    if diffusion_config.timestep_respacing:
        raise InputError("--timestep_respacing: the classifier is trained on all timesteps; expected none")
    training = Training(parsed, train, class_cond=True)
    config = dataclasses.replace(parsed.make(ClassifierConfig), num_classes=training.classes.count)
    weight = ect_weight(parsed)
    denoising, identity = read_denoising(parsed, config, diffusion_config)
    loss = f"ECT with weight {weight}" if weight else "plain cross entropy"
    if denoising and denoising.weight:
        loss += f", denoising likelihood score matching with weight {denoising.weight:g}"
    logger.log(f"{counted(config.num_classes, 'classes')}; {loss}")
    size, channels = config.image_size, config.in_channels
    dataset = training.open_dataset(training.files, training.labels, size, channels, train.random_crop)
    val_dataset = None
    if train.val_data_dir:
        val_files = find_images(train.val_data_dir, flag="val_data_dir")
        val_labels = read_labels(val_files, training.data.labels, training.classes.names)
        val_dataset = training.open_dataset(val_files, val_labels, size, channels)
    # Where the rate falls until the last iteration, every step depends on when that is.
    changeable = () if train.anneal_lr else {"iterations"}
    identity |= parsed.resolve(EctConfig) | {"ect": weight > 0}
    run = training.find_run(config, dataset, changeable, **identity)
    if train.keep_best:
        run = run.keeping_best(train.keep_best, _logged_in_validation(train, config.num_classes, denoising is not None))
    purpose = "guide with (--classifier_path)" if train.noised else "judge with (the evaluator's --features)"
    if training.is_complete(run, "--iterations", train.iterations, purpose):
        return
    setup.warn_of_unused_amp(parsed, config.classifier_use_fp16, parsed.values.get("use_fp16", False))
    dtype = amp_dtype(config.classifier_use_fp16, parsed.make(RunConfig).amp_dtype, "training", collectives.dev())
    with ExitStack() as workers:
        read = partial(resumable_batches, batch_size=train.batch_size, seed=run.seed)
        data = workers.enter_context(read(dataset, first_step=run.first_step, workers=training.data.data_workers))
        val_data = None
        if val_dataset is not None:
            used = -(-(run.first_step - run.began) // train.eval_interval)
            purposes = {"order": Purpose.VALIDATION_ORDER, "augmentation": Purpose.VALIDATION_AUGMENTATION}
            val_data = workers.enter_context(read(val_dataset, first_step=used, **purposes))
        loop = ClassifierTrainLoop(
            model=build_classifier(config).to(collectives.dev()),
            diffusion=build_diffusion(diffusion_config),
            data=data,
            val_data=val_data,
            config=train,
            loss_terms=partial(ect_terms, weight=weight),
            evaluate=denoising or evaluate_plainly,
            statistics={"ideal_scale": dlsm.ideal_scale} if denoising else {},
            dtype=dtype,
            run=run,
        )
        setup.save_config(run.flags)
        loop.run_loop()
    training.conclude(purpose)


def _logged_in_validation(train: ClassifierTrainConfig, num_classes: int, denoising: bool) -> dict[str, bool]:
    """Return the names by which a best checkpoint can be chosen, and whether higher is better."""
    if not train.val_data_dir:
        raise InputError(f"--keep_best {train.keep_best}: found without --val_data_dir, expected both")
    known = HIGHER_IS_BETTER | (dlsm.HIGHER_IS_BETTER if denoising else {})
    return {f"val_{name}": higher for name, higher in known.items() if name != "acc@5" or num_classes > 5}


if __name__ == "__main__":
    shutdown.run_main(main)
