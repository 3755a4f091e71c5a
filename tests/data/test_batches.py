import random

import numpy as np
import pytest
import torch

from secateur.data import Augment, ImageSet, batches, set_epoch
from secateur.data.images import MemoryStore
from secateur.errors import InputError


@pytest.fixture
def images() -> ImageSet:
    pixels = torch.randint(0, 256, (23, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return ImageSet(
        MemoryStore(pixels.to(torch.uint8)),
        torch.arange(23),
        torch.arange(23),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
    )


def everything(loader: object) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(loader)  # type: ignore[call-overload]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def test_batches_equal_single_items(images: ImageSet) -> None:
    loader = batches(images, 10)
    assert [len(labels) for _, labels in loader] == [10, 10, 3]
    assert len(loader) == 3
    inputs, labels = everything(loader)
    for row in range(len(images)):
        pixels, label = images[row]
        assert torch.equal(inputs[row], pixels)
        assert labels[row] == label


def test_normalisation_is_the_written_one(images: ImageSet) -> None:
    raw = images.store.fetch(torch.arange(23)).double() / 255
    mean = torch.tensor([0.4, 0.5, 0.6]).double().view(1, 3, 1, 1)
    std = torch.tensor([0.2, 0.3, 0.4]).double().view(1, 3, 1, 1)
    inputs, _ = everything(batches(images, 8))
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs.double(), (raw - mean) / std, rtol=1e-5, atol=1e-6)


def test_shuffling_gives_each_image_once_and_a_new_order_per_epoch(images: ImageSet) -> None:
    loader = batches(images, 5, shuffle=True, seed=1)
    orders = []
    for epoch in (0, 1, 2):
        set_epoch(loader, epoch)
        orders.append(everything(loader)[1].tolist())
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert everything(batches(images, 5, shuffle=True, seed=2))[1].tolist() != orders[0]


@pytest.mark.parametrize("augment", [None, Augment(flip=True, shift=0.25, rotate=10)])
def test_a_resumed_epoch_is_the_same(images: ImageSet, augment: Augment | None) -> None:
    through = batches(images, 5, shuffle=True, seed=4, augment=augment)
    for epoch in range(4):
        set_epoch(through, epoch)
        wanted = everything(through)
    resumed = batches(images, 5, shuffle=True, seed=4, augment=augment)
    set_epoch(resumed, 3)
    got = everything(resumed)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


def test_augmentation_differs_between_epochs_and_needs_no_shuffling(images: ImageSet) -> None:
    loader = batches(images, 23, augment=Augment())
    first, labels = everything(loader)
    set_epoch(loader, 1)
    second, _ = everything(loader)
    assert labels.tolist() == list(range(23))
    assert not torch.equal(first, second)


def test_augmentation_does_not_depend_on_the_batch_size(images: ImageSet) -> None:
    small = everything(batches(images, 4, augment=Augment(rotate=10)))[0]
    assert torch.equal(small, everything(batches(images, 23, augment=Augment(rotate=10)))[0])


def test_no_global_random_state_is_read_or_moved(images: ImageSet) -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = everything(batches(images, 4, shuffle=True, augment=Augment()))[0]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(
            everything(batches(images, 4, shuffle=True, augment=Augment()))[0], first
        )


def test_a_batch_does_not_change_the_images(images: ImageSet) -> None:
    first = everything(batches(images, 4))[0]
    first.zero_()
    assert float(everything(batches(images, 4))[0].abs().sum()) > 0


def test_drop_last_leaves_the_smaller_batch_out(images: ImageSet) -> None:
    assert [len(y) for _, y in batches(images, 10, drop_last=True)] == [10, 10]


def test_prepared_by_accelerate_it_still_follows_the_epoch(images: ImageSet) -> None:
    from accelerate import Accelerator

    loader = batches(images, 5, shuffle=True, seed=1)
    set_epoch(loader, 2)
    wanted = everything(loader)[1]
    prepared = Accelerator(cpu=True).prepare(batches(images, 5, shuffle=True, seed=1))
    set_epoch(prepared, 2)
    assert torch.equal(everything(prepared)[1], wanted)


def test_bad_arguments_are_refused(images: ImageSet) -> None:
    with pytest.raises(InputError, match="batch_size must be at least 1, but got 0"):
        batches(images, 0)
    with pytest.raises(InputError, match="batch_size must be at most 23"):
        batches(images, 24, drop_last=True)
