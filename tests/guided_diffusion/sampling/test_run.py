"""Sampling runs: labels and noise of each sample, the whole run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from guided_diffusion import logger
from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.configs import DiffusionConfig, SamplingConfig
from guided_diffusion.config.create import build_diffusion
from guided_diffusion.errors import InputError
from guided_diffusion.runs import run_directory
from guided_diffusion.sampling import setup
from guided_diffusion.sampling.image_grid import save_grid
from guided_diffusion.sampling.noise import LabelPlan, PerSampleNoise, stream
from guided_diffusion.sampling.run import Batch, SampleRun, to_uint8
from guided_diffusion.system import processes
from tests.support.helpers import read_npz, tree

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quiet_logger(tmp_path_factory):
    with logger.scoped_configure(dir=str(tmp_path_factory.mktemp("log")), format_strs=[]):
        yield


class TestNoise:
    def draw(self, indices, seed=0, ahead=False):
        noise = PerSampleNoise(seed, indices, CPU, ahead)
        steps = [noise(torch.zeros(len(indices), 3, 4, 4)) for _ in range(20)]
        return noise.choose(10), noise.normal((3, 4, 4)), *steps

    @pytest.mark.parametrize("ahead", [False, True])
    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(0, 2**40), min_size=1, max_size=6, unique=True), st.integers(0, 2**70))
    def test_a_sample_does_not_depend_on_its_batch(self, ahead, indices, seed):
        together = self.draw(indices, seed, ahead)
        for position, index in enumerate(indices):
            for whole, alone in zip(together, self.draw([index], seed, ahead), strict=True):
                assert torch.equal(whole[position], alone[0])

    def test_of_the_cpu_it_is_the_generators_own_numbers(self):
        noise = PerSampleNoise(5, range(3), CPU)
        own = [torch.Generator().manual_seed(generator.initial_seed()) for generator in noise.generators]
        for _ in range(4):
            drawn = [torch.randn(3, 4, 4, generator=generator) for generator in own]
            assert torch.equal(noise.normal((3, 4, 4)), torch.stack(drawn))

    @pytest.mark.parametrize(("side", "wanted"), [(8, [1, *[16] * 3]), (256, [1, *[2] * 20]), (1024, [1] * 41)])
    def test_ahead_it_draws_for_several_steps_at_once_whatever_the_batch(self, side, wanted, monkeypatch):
        asked = []

        def count(shape, **options):
            asked.append(shape[0])
            return torch.zeros(shape)

        monkeypatch.setattr(torch, "randn", count)
        noise = PerSampleNoise(0, [4], CPU, ahead=True)
        for _ in range(41):
            assert noise.normal((3, side, side)).shape == (1, 3, side, side)
        assert asked == wanted

    def test_ahead_no_step_is_drawn_twice(self):
        rows = torch.stack(self.draw([3], ahead=True)[1:]).flatten(1)
        correlations = torch.corrcoef(rows) - torch.eye(len(rows))
        assert correlations.abs().max() < 0.6 and abs(rows.mean()) < 0.1 and abs(rows.std() - 1) < 0.1

    def test_run_json_names_the_stream_of_cuda(self):
        assert stream(CPU) == {} and stream(torch.device("cuda:1")) == {"noise_stream": "cuda 2"}

    def test_samples_seeds_and_steps_differ(self):
        noise = PerSampleNoise(0, range(4), CPU)
        draws = [noise.normal((64,)), noise.normal((64,)), PerSampleNoise(1, range(4), CPU).normal((64,))]
        rows = torch.cat(draws)
        correlations = torch.corrcoef(rows) - torch.eye(len(rows))
        assert correlations.abs().max() < 0.6

    def test_it_is_standard_normal(self):
        values = PerSampleNoise(3, range(400), CPU).normal((100,))
        assert values.dtype is torch.float32
        assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02
        assert abs(values.mean(dim=1).std() * 10 - 1) < 0.15, "samples must be independent of one another"

    def test_calling_it_keeps_dtype_and_shape(self):
        drawn = PerSampleNoise(0, range(2), CPU)(torch.zeros(2, 1, 5, 5, dtype=torch.float64))
        assert drawn.shape == (2, 1, 5, 5) and drawn.dtype is torch.float64

    def test_global_generators_are_left_alone(self):
        torch.manual_seed(0)
        expected = torch.randn(3)
        torch.manual_seed(0)
        self.draw(range(3))
        assert torch.equal(torch.randn(3), expected)


class TestLabels:
    def labels(self, plan, indices, seed=0):
        return plan.labels(indices, PerSampleNoise(seed, indices, CPU))

    def test_all_classes(self):
        labels = self.labels(LabelPlan("", False, Classes(5)), range(200))
        assert labels.dtype is torch.int64 and labels.shape == (200,)
        assert labels.bincount(minlength=5).min() > 20

    def test_chosen_classes(self):
        assert set(self.labels(LabelPlan("7,3", False, Classes(10)), range(50)).tolist()) == {3, 7}

    def test_balanced_takes_turns_across_batches(self):
        plan = LabelPlan("4,1,2", True, Classes(5))
        parts = [self.labels(plan, range(first, first + 4)) for first in (0, 4)]
        assert torch.cat(parts).tolist() == [4, 1, 2, 4, 1, 2, 4, 1]

    def test_balanced_and_random_share_their_noise(self):
        drawn = []
        for balanced in (False, True):
            noise = PerSampleNoise(0, range(3), CPU)
            LabelPlan("", balanced, Classes(10)).labels(range(3), noise)
            drawn.append(noise.normal((4,)))
        assert torch.equal(*drawn)

    @pytest.mark.parametrize("batch", [1, 3, 7])
    def test_any_batch_size(self, batch):
        plan = LabelPlan("", False, Classes(1000))
        parts = [self.labels(plan, range(first, min(first + batch, 20))) for first in range(0, 20, batch)]
        assert torch.equal(torch.cat(parts), self.labels(plan, range(20)))

    @pytest.mark.parametrize("text", ["10", "-1", "0,99", "a", "1;2", "1,,2", "1.5", " ,"])
    def test_refused(self, text):
        with pytest.raises(InputError, match="--classes: found .* expected"):
            LabelPlan(text, False, Classes(10))


class TestQuantisation:
    def test_as_the_contract_says(self):
        values = np.concatenate([np.linspace(-1.5, 1.5, 3 * 2000, dtype=np.float32), np.float32([-1, 0, 1])])
        images = torch.from_numpy(values).reshape(1, 3, -1, 1)
        expected = np.trunc(np.clip((values + np.float32(1)) * np.float32(127.5), 0, 255)).astype(np.uint8)
        assert np.array_equal(to_uint8(images).numpy(), expected.reshape(1, 3, -1, 1).transpose(0, 2, 3, 1))

    def test_truncates_and_clamps(self):
        images = torch.tensor([-7.0, -1.0, -0.9999, 0.0, 0.9999, 1.0, 7.0]).reshape(1, 1, 1, -1)
        found = to_uint8(images)
        assert found.dtype is torch.uint8 and found.is_contiguous()
        assert found.flatten().tolist() == [0, 0, 0, 127, 254, 255, 255]


class TestSampleRun:
    def plan(self, directory: Path, **changes) -> SampleRun:
        options = {"num_samples": 7, "batch_size": 3, "shape": (3, 4, 5), "seed": 0, "flags": {"seed": 0}}
        return SampleRun(directory=directory, **options | changes)

    @staticmethod
    def draw(batch: Batch) -> torch.Tensor:
        return batch.noise.normal((3, 4, 5)) / 2

    def test_files_and_contents(self, tmp_path):
        path = self.plan(tmp_path, labels=LabelPlan("", False, Classes(10))).generate(self.draw)
        assert path == tmp_path / "samples_7x4x5x3.npz"
        arrays = read_npz(path)
        assert {name: (a.dtype, a.shape) for name, a in arrays.items()} == {
            "arr_0": (np.uint8, (7, 4, 5, 3)),
            "arr_1": (np.int64, (7,)),
        }
        assert sorted(p.name for p in tmp_path.iterdir()) == ["run.json", "samples_7x4x5x3.npz", "status.json"]
        noise = PerSampleNoise(0, range(7), CPU)
        assert np.array_equal(arrays["arr_1"], noise.choose(10))
        assert np.array_equal(arrays["arr_0"], to_uint8(noise.normal((3, 4, 5)) / 2))

    def test_without_labels_there_is_no_arr_1(self, tmp_path):
        assert list(read_npz(self.plan(tmp_path).generate(self.draw))) == ["arr_0"]

    def test_interrupted_and_continued(self, tmp_path):
        expected = read_npz(self.plan(tmp_path / "whole").generate(self.draw))
        seen = []

        def dies_in_second_batch(batch):
            seen.append(batch.indices)
            if len(seen) == 2:
                raise KeyboardInterrupt
            return self.draw(batch)

        run = self.plan(tmp_path / "cut")
        with pytest.raises(KeyboardInterrupt):
            run.generate(dies_in_second_batch)
        path = run.generate(lambda batch: dies_in_second_batch(batch))
        assert seen == [range(0, 3), range(3, 6), range(3, 6), range(6, 7)], "the first batch is not made again"
        assert np.array_equal(read_npz(path)["arr_0"], expected["arr_0"])

    @pytest.mark.parametrize("second, batch_size, made", [(10, 3, [(7, 9), (9, 10)]), (11, 4, [(7, 8), (8, 11)])])
    def test_raising_the_number_makes_only_the_new_ones(self, tmp_path, second, batch_size, made):
        few = read_npz(self.plan(tmp_path).generate(self.draw))["arr_0"]
        seen = []

        def draw(batch):
            seen.append((batch.indices.start, batch.indices.stop))
            return self.draw(batch)

        changes = {"num_samples": second, "batch_size": batch_size}
        many = read_npz(self.plan(tmp_path, **changes).generate(draw))["arr_0"]
        assert seen == made and np.array_equal(many[:7], few)
        fresh = read_npz(self.plan(tmp_path / "fresh", **changes).generate(self.draw))["arr_0"]
        assert np.array_equal(many, fresh)

    def test_fewer_are_the_first_of_many(self, tmp_path):
        many = read_npz(self.plan(tmp_path).generate(self.draw))["arr_0"]
        few = read_npz(self.plan(tmp_path, num_samples=4).generate(None))["arr_0"]
        assert np.array_equal(few, many[:4])

    def test_another_batch_size_keeps_what_is_there(self, tmp_path):
        expected = read_npz(self.plan(tmp_path / "whole").generate(self.draw))
        seen = []

        def dies_in_second_batch(batch):
            seen.append((batch.indices.start, batch.indices.stop))
            if len(seen) == 2:
                raise KeyboardInterrupt
            return self.draw(batch)

        with pytest.raises(KeyboardInterrupt):
            self.plan(tmp_path / "cut").generate(dies_in_second_batch)
        path = self.plan(tmp_path / "cut", batch_size=4).generate(dies_in_second_batch)
        assert seen == [(0, 3), (3, 6), (3, 4), (4, 7)]
        assert np.array_equal(read_npz(path)["arr_0"], expected["arr_0"])

    @pytest.mark.parametrize("kept", [True, False])
    def test_raising_the_number_keeps_the_extras(self, tmp_path, kept):
        """An extras file that another run has written over is not taken for this run's."""

        def sample(folder, count):
            batches, path = [], tmp_path / f"{folder}.npz"

            def draw(batch):
                batches.append(batch.indices)
                return self.draw(batch)

            self.plan(tmp_path / folder, num_samples=count, extras_path=path).generate(
                draw, extras=lambda: {"number": np.array(batches[-1]), "first": np.array(batches[-1])[:1]}
            )
            return read_npz(path), batches

        sample("run", 7)
        if not kept:
            np.savez(tmp_path / "run.npz", number=np.zeros(7, int), first=np.zeros(3, int))
        extras, batches = sample("run", 9)
        assert extras["number"].tolist() == list(range(9))
        assert extras["first"].tolist() == ([0, 3, 6, 7] if kept else [0, 3, 6])
        assert batches == ([range(7, 9)] if kept else [range(0, 3), range(3, 6), range(6, 9)])

    def test_a_changed_checkpoint_is_named(self, tmp_path):
        weights = tmp_path / "model.pt"
        weights.write_bytes(b"one")
        flags = {"flags": {"model_path": str(weights)}}
        self.plan(tmp_path / "run", **flags).generate(self.draw)
        weights.write_bytes(b"two")
        with pytest.raises(InputError, match=r"--model_path .*model\.pt has other contents .*sha256"):
            self.plan(tmp_path / "run", num_samples=9, **flags).generate(self.draw)

    def test_what_kills_left_behind_is_removed(self, tmp_path):
        (tmp_path / "parts").mkdir()
        killed = f"{processes.machine_digest()}-{2**22 + 1}-12ab34cd.tmp"
        for name in (f"parts/.part-000000003.npz.{killed}", f".samples_7x4x5x3.npz.{killed}"):
            (tmp_path / name).write_bytes(b"half")
        run_directory.claim(tmp_path, pytest.fail)
        self.plan(tmp_path).generate(self.draw)
        run_directory.release()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["run.json", "samples_7x4x5x3.npz", "status.json"]

    def test_a_finished_file_is_never_touched(self, tmp_path):
        self.plan(tmp_path).generate(self.draw)
        before = tree(tmp_path)

        def refuse(batch):
            raise AssertionError("nothing was left to make")

        self.plan(tmp_path).generate(refuse)
        with pytest.raises(InputError, match="--seed 1"):
            self.plan(tmp_path, seed=1, flags={"seed": 1}).generate(self.draw)
        assert tree(tmp_path) == before

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_sample_that_is_not_finite_is_named(self, tmp_path, value):
        def draw(batch):
            images = self.draw(batch)
            if 4 in batch.indices:
                images[batch.indices.index(4), 0, 0, 0] = value
            return images

        with pytest.raises(InputError, match=f"sample 4: found {value} in the finished image"):
            self.plan(tmp_path).generate(draw)
        assert not list(tmp_path.glob("samples*")) and not (tmp_path / "nonfinite.json").exists()
        assert len(list((tmp_path / "parts").iterdir())) == 1, "the first batch is kept"

    def test_extras_go_to_their_own_file(self, tmp_path):
        taken = iter(range(3))
        path = self.plan(tmp_path, extras_path=tmp_path / "deep" / "trace.npz").generate(
            self.draw, extras=lambda: {"scale": np.full((3 if next(taken) < 2 else 1, 2), 0.5, np.float32)}
        )
        assert list(read_npz(path)) == ["arr_0"]
        trace = read_npz(tmp_path / "deep" / "trace.npz")
        assert trace["scale"].shape == (7, 2) and trace["scale"].dtype == np.float32

    def test_extras_may_have_fewer_rows_than_samples(self, tmp_path):
        lengths = iter((2, 1, 0))
        self.plan(tmp_path, extras_path=tmp_path / "trace.npz").generate(
            self.draw, extras=lambda: {"map": np.full((next(lengths), 2, 5), 0.5, np.float32)}
        )
        assert read_npz(tmp_path / "trace.npz")["map"].shape == (3, 2, 5)

    def test_grid_holds_the_first_64(self, tmp_path):
        def draw(batch):
            return torch.stack([torch.full((3, 4, 5), (i % 256) / 127.5 - 1) for i in batch.indices])

        self.plan(tmp_path, num_samples=70, batch_size=9, save_images=True).generate(draw)
        with Image.open(tmp_path / "samples_70x4x5x3.png") as grid:
            pixels = np.asarray(grid)
        assert pixels.shape == (32, 40, 3)
        tiles = pixels.reshape(8, 4, 8, 5, 3).swapaxes(1, 2).reshape(64, -1)
        expected = read_npz(tmp_path / "samples_70x4x5x3.npz")["arr_0"][:64].reshape(64, -1)
        assert np.array_equal(tiles, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_pads_with_black(tmp_path, channels):
    images = np.full((10, 2, 3, channels), 200, np.uint8)
    save_grid(images, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.mode == {1: "L", 3: "RGB"}[channels]
        pixels = np.asarray(grid).reshape(4, 24, -1)
    assert (pixels[:2] == 200).all() and (pixels[2:, :6] == 200).all() and (pixels[2:, 6:] == 0).all()


def test_grid_with_captions(tmp_path):
    """Below images from 32 pixels on: the classes' names, and whatever the font has not got as a question mark."""
    images = np.full((3, 32, 40, 3), 100, np.uint8)
    save_grid(images, tmp_path / "grid.png", 2, captions=["cat", "17", "\N{SNOWMAN}"])
    with Image.open(tmp_path / "grid.png") as grid:
        pixels = np.asarray(grid).reshape(2, 44, 2, 40, 3).swapaxes(1, 2).reshape(4, 44, 40, 3)
    assert (pixels[:3, :32] == 100).all() and not pixels[3].any()
    strips = pixels[:3, 32:]
    assert all(strip.max() > 200 and (strip == 0).mean() > 0.5 for strip in strips)
    assert not np.array_equal(strips[0], strips[1])
    save_grid(images[:, :8, :8], tmp_path / "small.png", 2, captions=["cat", "17", "x"])
    with Image.open(tmp_path / "small.png") as grid:
        assert grid.size == (16, 16), "too small for words"


def test_the_grids_captions_are_the_classes(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("guided_diffusion.sampling.run.save_grid", lambda *_, captions: written.append(captions))
    samples = TestSampleRun()
    options = {"save_images": True, "labels": LabelPlan("", True, Classes(4, ("cat", "dog")))}
    path = samples.plan(tmp_path, **options).generate(samples.draw)
    labels = read_npz(path)["arr_1"]
    assert written == [[("cat", "dog")[label] if label < 2 else str(label) for label in labels]]


@pytest.mark.parametrize(
    ("schedule", "respacing", "flags", "last", "warned"),
    [
        ("cosine", "10", {"sampler": "dpmpp2m"}, 999, True),
        ("cosine", "25", {"use_ddim": True}, 999, True),
        ("cosine", "", {"sampler": "heun"}, 999, True),
        ("cosine", "ddim10", {"sampler": "dpmpp2m"}, 999, False),
        ("cosine", "10", {"sampler": "dpmpp2m", "dynamic_threshold": 0.995}, 999, False),
        ("cosine", "10", {"sampler": "dpmpp2m"}, 900, False),
        ("cosine", "10", {"sampler": "dpmpp2m"}, -1, False),
        ("cosine", "10", {}, 999, False),
        ("cosine", "10", {"sampler": "ddpm"}, 999, False),
        ("linear", "10", {"sampler": "dpmpp2m"}, 999, False),
    ],
)
def test_a_start_at_which_guidance_ruins_images(monkeypatch, schedule, respacing, flags, last, warned):
    said: list[str] = []
    monkeypatch.setattr(logger, "warn", said.append)
    process = build_diffusion(DiffusionConfig(noise_schedule=schedule, timestep_respacing=respacing))
    setup.warn_of_noisy_start(SamplingConfig(**flags), process, [t for t in process.timestep_map if t <= last])
    assert len(said) == warned
    if said:
        assert "begins at t = 999, where x_t = 5e-05 x_0" in said[0] and "times 20,291" in said[0]
