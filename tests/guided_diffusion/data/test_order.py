"""Training's data order and draws: functions of the seed and the step, from any step on."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from itertools import islice

import numpy as np
import pytest
import torch

from guided_diffusion.data.order import resumable_batches
from guided_diffusion.data.seeding import Purpose, seed_globals
from guided_diffusion.errors import InputError
from guided_diffusion.image_datasets import ImageDataset, find_images, open_dataset
from tests.support.helpers import make_images


class Numbers(ImageDataset):
    """Items that say which they are, and what the first draw for them is."""

    def __init__(self, count: int):
        self.local_images = range(count)

    def __getitem__(self, index: int):
        return np.float32(random.random()), {"y": np.int64(index)}


def take(count: int, images: int = 11, batch_size: int = 2, seed: int = 0, **place) -> list[tuple[list, list]]:
    """The first batches: indices and draws."""
    with resumable_batches(Numbers(images), batch_size, seed, **place) as batches:
        return [(extra["y"].tolist(), draws.tolist()) for draws, extra in islice(batches, count)]


def test_any_step_can_be_the_first():
    whole = take(14)
    for first in (1, 4, 5, 12):  # an epoch has 5 steps
        assert take(14 - first, first_step=first) == whole[first:]


def test_the_number_of_readers_changes_nothing():
    assert take(12, workers=3) == take(12)


def test_an_epoch_has_every_image_once_and_epochs_differ():
    indices = [batch for batch, _ in take(10, images=10)]
    epochs = [sum(indices[:5], []), sum(indices[5:], [])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]
    assert [batch for batch, _ in take(10, images=10, seed=1)] != indices


def test_ranks_share_out_the_batch_of_one_process():
    whole = take(6, batch_size=4)
    shares = [take(6, rank=rank, world_size=2) for rank in (0, 1)]
    joined = [
        (first + second, first_draws + second_draws)
        for (first, first_draws), (second, second_draws) in zip(*shares, strict=True)
    ]
    assert joined == whole


def test_an_image_is_drawn_for_anew_in_each_epoch():
    draws = [dict(zip(*batch, strict=True)) for batch in take(2, images=4, batch_size=4)]
    assert all(draws[0][index] != draws[1][index] for index in range(4)) and len(set(draws[0].values())) == 4


def test_validation_has_an_order_of_its_own():
    purposes = {"order": Purpose.VALIDATION_ORDER, "augmentation": Purpose.VALIDATION_AUGMENTATION}
    assert take(5, **purposes) != take(5)


def test_global_generators_are_left_alone():
    before = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist())
    take(3)
    after = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist())
    assert after[0] == before[0] and torch.equal(after[1], before[1]) and after[2] == before[2]


def test_a_damaged_image_is_named(tmp_path):
    folder = make_images(tmp_path / "images")
    (folder / "c1_2.png").write_bytes(b"no image")
    dataset = open_dataset(find_images(str(folder)), 24, resolution=8)
    with resumable_batches(dataset, 24, 0) as batches, pytest.raises(InputError, match="c1_2.png: cannot be read"):
        next(batches)


def test_signals_do_not_end_the_worker_and_the_block_does():
    before = set(multiprocessing.active_children())
    with resumable_batches(Numbers(100), 2, 0) as batches:
        first = [next(batches)[1]["y"].tolist() for _ in range(2)]
        (worker,) = set(multiprocessing.active_children()) - before
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker.pid, number)
        time.sleep(0.2)
        rest = [next(batches)[1]["y"].tolist() for _ in range(8)]
        assert worker.is_alive()
    assert first + rest == [batch for batch, _ in take(10, images=100)]
    worker.join(timeout=30)
    assert not worker.is_alive()


def test_draws_depend_on_seed_purpose_rank_and_step():
    def draws(*place) -> tuple:
        seed_globals(*place)
        return random.random(), float(np.random.random()), float(torch.rand(()))

    place = (7, Purpose.STEP, 1, 12)
    expected = draws(*place)
    assert draws(*place) == expected
    others = [(8, *place[1:]), (7, Purpose.VALIDATION_STEP, 1, 12), (7, Purpose.STEP, 0, 12), (7, Purpose.STEP, 1, 13)]
    for other in others:
        assert all(ours != theirs for ours, theirs in zip(expected, draws(*other), strict=True))


def test_large_seeds_are_seeds_too():
    assert take(3, seed=2**40) != take(3, seed=2**40 + 1)
