"""Training batches whose order depends only on the seed and the step, so that a run can start at any step."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from guided_diffusion.data.datasets import Batch, ImageDataset, WorkerItems, batches_of, collate_or_error
from guided_diffusion.data.seeding import Purpose, seed_sequence
from guided_diffusion.distributed import collectives

Item = tuple[int, int]  # epoch, index


@contextmanager
def resumable_batches(
    dataset: ImageDataset,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    order: Purpose = Purpose.ORDER,
    augmentation: Purpose = Purpose.AUGMENTATION,
    workers: int = 1,
) -> Iterator[Iterator[Batch]]:
    """Yield endless batches like those of `load_data`, from any step on, read ahead by worker processes.

    The order of an epoch's images is drawn for (seed, epoch). Each step takes the next batch_size * world_size of
    them and each rank a batch of these; an incomplete rest is dropped. An image's crop and flip are drawn for (seed,
    epoch, image). So every global batch is the same for any number of processes.

    The end of the with-block ends the workers. `next` raises InputError naming an image that cannot be read.

    :param dataset: of all images, the same on every rank.
    :param batch_size: per process; batch_size * world_size must not exceed the number of images.
    :param first_step: number of the step, from 0, of the first batch.
    :param rank, world_size: None: those of this process.
    :param workers: number of reading processes; it does not change the batches.
    """
    rank = collectives.get_rank() if rank is None else rank
    global_batch = batch_size * (collectives.get_world_size() if world_size is None else world_size)
    closing = multiprocessing.RawValue("b", 0)
    loader = DataLoader(
        _SeededItems(dataset, seed, augmentation),
        batch_sampler=_items_by_step(len(dataset), batch_size, global_batch, seed, first_step, rank, order),
        num_workers=workers,
        collate_fn=collate_or_error,
        worker_init_fn=partial(_outlive_signals, closing),
        generator=torch.Generator(),  # otherwise it would draw from the global generator
    )
    batches = batches_of(loader)
    try:
        yield batches
    finally:
        closing.value = 1
        batches.close()


def _items_by_step(
    images: int, batch_size: int, global_batch: int, seed: int, first_step: int, rank: int, purpose: Purpose
) -> Iterator[list[Item]]:
    """Yield for each step the items of this rank's batch."""
    epoch, step_of_epoch = divmod(first_step, images // global_batch)
    while True:
        order = np.random.Generator(np.random.PCG64(seed_sequence(seed, purpose, epoch))).permutation(images)
        for start in range(step_of_epoch * global_batch, images - global_batch + 1, global_batch):
            mine = order[start + rank * batch_size : start + (rank + 1) * batch_size]
            yield [(epoch, index) for index in mine.tolist()]
        epoch, step_of_epoch = epoch + 1, 0


class _SeededItems(WorkerItems):
    """Items whose crop and flip are seeded by their epoch and index."""

    def __init__(self, dataset: ImageDataset, seed: int, purpose: Purpose):
        super().__init__(dataset)
        self._seed, self._purpose = seed, purpose

    def __getitem__(self, item: Item) -> Any:
        random.seed(int(seed_sequence(self._seed, self._purpose, *item).generate_state(1, np.uint64)[0]))
        return super().__getitem__(item[1])


def _outlive_signals(closing: Any, _worker: int) -> None:
    """Let a worker ignore the signals that stop a training, which reach its whole process group, until `closing`."""

    def terminate(*_: object) -> None:
        if closing.value:
            os._exit(0)

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
