"""Deterministic batches: the same seed, epoch and data give the same numbers, resumed or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from secateur.data.augment import Augment, augmented
from secateur.data.images import ImageSet
from secateur.errors import InputError

Batch = tuple[Tensor, Tensor]


class EpochSampler(Sampler[int]):
    """Places in an endless stream: ``epoch * len + row``.

    The epoch travels inside the place, so whoever fetches the images needs no state of its own.
    """

    def __init__(self, size: int, *, shuffle: bool, seed: int) -> None:
        self.size = size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.size
        if not self.shuffle:
            return iter(range(start, start + self.size))
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        return iter((order + start).tolist())


class _Stream(Dataset[Any]):
    """Fetches whole batches by their places in the stream."""

    def __init__(self, images: ImageSet, augment: Augment | None, seed: int) -> None:
        self.images = images
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, places: list[int]) -> Batch:
        size = len(self.images)
        rows = torch.tensor(places) % size
        images, labels = self.images.raw(rows)
        if self.augment is not None:
            epoch = places[0] // size
            images = augmented(images, rows, self.augment, seed=self.seed, epoch=epoch)
        return self.images.normalised(images), labels


def batches(
    dataset: ImageSet,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    augment: Augment | None = None,
    drop_last: bool = False,
) -> DataLoader[Any]:
    """Cut ``dataset`` into batches of (float32 images [N, C, H, W], int64 labels [N]).

    Nothing here reads or moves a global random state: the order is a function of (seed, epoch)
    and each image's augmentation of (seed, epoch, row). The epoch is 0 until :func:`set_epoch`.

    Args:
        dataset: the images.
        batch_size: images in a batch; the last one may be smaller.
        shuffle: a new order each epoch, instead of the dataset's.
        seed: of order and augmentation.
        augment: how images change, for training; None leaves them alone.
        drop_last: leave a smaller last batch out (batch norm cannot train on one image).

    Raises:
        InputError: ``batch_size`` is below 1, or ``drop_last`` would leave nothing.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, but got {batch_size}")
    if drop_last and batch_size > len(dataset):
        raise InputError(
            f"batch_size must be at most {len(dataset)} (the images there are) "
            f"with drop_last, but got {batch_size}"
        )
    sampler = EpochSampler(len(dataset), shuffle=shuffle, seed=seed)
    return DataLoader(
        _Stream(dataset, augment, seed),
        batch_sampler=BatchSampler(sampler, batch_size, drop_last),
        collate_fn=_whole,
        # Its own generator: an iterator without one would draw from the global state.
        generator=torch.Generator().manual_seed(seed),
    )


def set_epoch(loader: DataLoader[Any], epoch: int) -> None:
    """Choose the epoch that ``loader``'s next pass gives.

    A loader of another make (without an epoch-aware sampler) is left as it is.
    """
    # accelerate's loader counts epochs itself, and would put the sampler back to its own.
    for holder in (loader, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)):
        choose = getattr(holder, "set_epoch", None)
        if choose is not None:
            choose(epoch)


def _whole(batch: Any) -> Any:
    return batch
