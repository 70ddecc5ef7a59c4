"""What upstream's scripts and forks assign on its modules acts on the code that runs, though that is elsewhere."""

from __future__ import annotations

from itertools import repeat
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from guided_diffusion import (
    dist_util,
    gaussian_diffusion,
    image_datasets,
    logger,
    nn,
    resample,
    respace,
    script_util,
    train_util,
    unet,
)
from guided_diffusion.runs import logger as inner_logger
from guided_diffusion.training.timestep_samplers import UniformSampler
from tests.support.helpers import make_images

STEPS = 100


class Net(torch.nn.Module):
    """Predicts eps as a multiple of x_t."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, t):
        return self.weight * x


@pytest.fixture
def assign(monkeypatch):
    """Assigns to a module as a script does; undone after the test. What replaces a function counts its calls."""

    def do(module, name: str, value=None):
        original = getattr(module, name)
        value = Mock(side_effect=original) if value is None else value
        monkeypatch.setattr(module, name, value)
        return value

    return do


@pytest.fixture
def loop(tmp_path):
    """Builds a `TrainLoop` that trains a single step and logs into a folder of the test."""

    def build(**options) -> train_util.TrainLoop:
        images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        defaults = {"batch_size": 2, "microbatch": -1, "lr": 1e-3, "ema_rate": "0.9", "log_interval": 1,
                    "save_interval": 1, "resume_checkpoint": ""}  # fmt: skip
        diffusion = script_util.create_gaussian_diffusion(steps=STEPS)
        data = repeat((images, {}))
        return train_util.TrainLoop(model=Net(), diffusion=diffusion, data=data, **defaults | options)

    with logger.scoped_configure(str(tmp_path), ["json"]):
        yield build


@pytest.fixture
def checkpoint(tmp_path) -> str:
    path = tmp_path / "model000005.pt"
    torch.save(Net().state_dict(), path)
    return str(path)


class TestTrainUtil:
    def test_which_checkpoint_is_resumed(self, assign, loop, checkpoint):
        assign(train_util, "find_resume_checkpoint", lambda: checkpoint)
        assert loop().resume_step == 5

    def test_at_which_step(self, assign, loop, checkpoint):
        assign(train_util, "parse_resume_step_from_filename", lambda name: 7)
        assert loop(resume_checkpoint=checkpoint).resume_step == 7

    def test_which_average_is_loaded(self, assign, loop, checkpoint, tmp_path):
        torch.save({"weight": torch.tensor([3.0])}, tmp_path / "other.pt")
        assign(train_util, "find_ema_checkpoint", lambda main, step, rate: str(tmp_path / "other.pt"))
        assert loop(resume_checkpoint=checkpoint).ema_params[0][0].item() == 3.0

    def test_where_checkpoints_go(self, assign, loop, tmp_path):
        assign(train_util, "get_blob_logdir", lambda: str(tmp_path / "blob"))
        loop().save()
        assert {path.name for path in (tmp_path / "blob").iterdir()} == {
            "model000000.pt", "ema_0.9_000000.pt", "opt000000.pt",
        }  # fmt: skip

    @pytest.mark.parametrize("name", ["log_loss_dict", "update_ema"])
    def test_what_a_step_does(self, assign, loop, name):
        hook = assign(train_util, name)
        loop(lr_anneal_steps=1).run_loop()
        hook.assert_called_once()

    def test_the_loss_scale_to_begin_with(self, assign, loop):
        assign(train_util, "INITIAL_LOG_LOSS_SCALE", 3.0)
        assert loop(use_fp16=True).mp_trainer.scaler.get_scale() == 8.0

    def test_the_sampler_unless_one_is_given(self, assign, loop):
        hook = assign(train_util, "UniformSampler", Mock(side_effect=UniformSampler))
        loop()
        hook.assert_called_once()


class TestDistUtil:
    def test_the_most_gpus_that_are_used(self, assign, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 16)
        for name, value in (("RANK", 13), ("WORLD_SIZE", 16), ("LOCAL_RANK", 13)):
            monkeypatch.setenv(name, str(value))
        assert dist_util.dev() == torch.device("cuda", 13)
        assign(dist_util, "GPUS_PER_NODE", 4)
        assert dist_util.dev() == torch.device("cuda", 1)

    def test_nothing_is_retried(self, assign):
        """Upstream reads the number nowhere either."""
        assign(dist_util, "SETUP_RETRY_COUNT", 5)
        assert dist_util.SETUP_RETRY_COUNT == 5

    @pytest.mark.parametrize("name", ["dev", "sync_params", "load_state_dict"])
    def test_what_training_calls(self, assign, loop, checkpoint, name):
        hook = assign(dist_util, name)
        loop(resume_checkpoint=checkpoint)
        hook.assert_called()


class TestLogger:
    def test_the_current_one(self, monkeypatch):
        mine, default = (Mock(output_formats=[]) for _ in range(2))
        monkeypatch.setattr(logger.Logger, "CURRENT", mine)
        monkeypatch.setattr(logger.Logger, "DEFAULT", default)
        inner_logger.log("a line")
        mine.log.assert_called_once_with("a line", level=logger.INFO)
        logger.reset()
        mine.close.assert_called_once()
        assert logger.get_current() is inner_logger.get_current() is default

    @pytest.mark.parametrize("name", ["logkv", "logkv_mean", "dumpkvs", "log"])
    def test_what_training_logs(self, assign, loop, name):
        hook = assign(logger, name)
        loop(lr_anneal_steps=1).run_loop()
        hook.assert_called()

    def test_the_formats(self, assign, tmp_path):
        hook = assign(logger, "make_output_format")
        with logger.scoped_configure(str(tmp_path), ["json"]):
            hook.assert_called_once()


class TestNetworks:
    @staticmethod
    def build(**flags):
        flags = {"image_size": 64, "num_channels": 32, "num_res_blocks": 1, "class_cond": True} | flags
        return script_util.create_model_and_diffusion(**script_util.model_and_diffusion_defaults() | flags)

    def test_the_number_of_classes(self, assign):
        assign(script_util, "NUM_CLASSES", 7)
        assert self.build()[0].label_emb.num_embeddings == 7
        classifier, _ = script_util.create_classifier_and_diffusion(
            **script_util.classifier_and_diffusion_defaults() | {"classifier_width": 64, "classifier_depth": 1}
        )
        assert classifier.out[-1].c_proj.out_channels == 7

    @pytest.mark.parametrize(
        "name", ["create_model", "create_gaussian_diffusion", "space_timesteps", "SpacedDiffusion"]
    )
    def test_what_is_built(self, assign, name):
        hook = assign(script_util, name)
        self.build()
        hook.assert_called()

    def test_the_network(self, assign):
        hook = assign(script_util, "UNetModel", Mock(side_effect=unet.UNetModel))
        self.build()
        hook.assert_called()

    @pytest.mark.parametrize("name", ["normalization", "conv_nd", "ResBlock", "AttentionBlock", "zero_module"])
    def test_layers(self, assign, name):
        hook = Mock(side_effect=getattr(unet, name))
        assign(unet, name, hook)
        self.build()
        hook.assert_called()

    def test_the_embedding_of_timesteps(self, assign):
        model, _ = self.build()
        hook = assign(unet, "timestep_embedding")
        model(torch.zeros(1, 3, 64, 64), torch.zeros(1), torch.zeros(1, dtype=torch.long))
        hook.assert_called_once()

    def test_group_norm(self, assign):
        hook = assign(nn, "GroupNorm32")
        nn.normalization(32)
        hook.assert_called_once()


class TestProcess:
    def test_the_betas(self, assign):
        hook = assign(gaussian_diffusion, "get_named_beta_schedule")
        script_util.create_gaussian_diffusion(steps=STEPS)
        hook.assert_called_once_with("linear", STEPS)

    def test_the_wrapped_model(self, assign):
        wrapped = Mock()

        class Wrapped(respace._WrappedModel):
            def __call__(self, *args, **kwargs):
                wrapped()
                return super().__call__(*args, **kwargs)

        assign(respace, "_WrappedModel", Wrapped)
        diffusion = script_util.create_gaussian_diffusion(steps=STEPS, timestep_respacing="5")
        diffusion.p_mean_variance(Net(), torch.zeros(1, 3, 4, 4), torch.zeros(1, dtype=torch.long))
        wrapped.assert_called_once()

    def test_a_sampler_of_timesteps(self, assign):
        hook = assign(resample, "UniformSampler")
        resample.create_named_schedule_sampler("uniform", SimpleNamespace(num_timesteps=STEPS))
        hook.assert_called_once()


@pytest.mark.parametrize("name", ["center_crop_arr", "random_crop_arr"])
def test_crops(assign, tmp_path, name):
    make_images(tmp_path, 1, 1, 16)
    hook = assign(image_datasets, name)
    paths = [str(path) for path in tmp_path.iterdir()]
    image_datasets.ImageDataset(8, paths, random_crop=name == "random_crop_arr")[0]
    hook.assert_called_once()
