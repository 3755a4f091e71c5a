import numpy as np
import pytest
import torch

from secateur.data.augment import Augment, augmented, transforms, uniform
from secateur.errors import InputError

ROWS = torch.arange(64)


def slow(image: torch.Tensor, flip: bool, right: int, down: int) -> torch.Tensor:
    """Mirror, then take each pixel from (right, down) further on; outside is black."""
    height, width = image.shape[1:]
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_x = (width - 1 - x if flip else x) + right
            from_y = y + down
            if 0 <= from_x < width and 0 <= from_y < height:
                result[:, y, x] = image[:, from_y, from_x]
    return result


def test_flips_and_shifts_equal_the_slow_way() -> None:
    images = torch.rand(64, 2, 6, 10)
    augment = Augment(flip=True, shift=0.25)
    got = augmented(images, ROWS, augment, seed=3, epoch=2)
    drawn = transforms(ROWS, augment, (6, 10), seed=3, epoch=2)
    right = (drawn[:, 0, 2] * 10 / 2).round().int().tolist()
    down = (drawn[:, 1, 2] * 6 / 2).round().int().tolist()
    assert set(right) == {-2, -1, 0, 1, 2}
    assert set(down) == {-1, 0, 1}
    for row in range(64):
        flip = bool(drawn[row, 0, 0] < 0)
        assert torch.equal(got[row], slow(images[row], flip, right[row], down[row]))


def test_about_half_are_mirrored() -> None:
    drawn = transforms(torch.arange(4000), Augment(shift=0), (8, 8), seed=0, epoch=0)
    assert 0.45 < float((drawn[:, 0, 0] < 0).float().mean()) < 0.55


def test_a_turn_moves_a_point_as_trigonometry_says() -> None:
    image = torch.zeros(1, 1, 41, 61)
    image[0, 0, 20, 30 + 16] = 1.0  # 16 pixels to the right of the centre
    augment = Augment(flip=False, shift=0, rotate=60)
    for row in range(8):
        rows = torch.tensor([row])
        angle = (2 * float(uniform(rows.numpy(), seed=0, epoch=0, which=3)[0]) - 1) * np.pi / 3
        turned = augmented(image, rows, augment, seed=0, epoch=0)[0, 0]
        y, x = divmod(int(turned.argmax()), 61)
        # The output at p shows the input at A p, so the point goes to A^-1 (16, 0).
        assert abs(x - (30 + 16 * np.cos(angle))) <= 1
        assert abs(y - (20 - 16 * np.sin(angle))) <= 1


def test_top_and_bottom_are_mirrored_about_half_of_the_time() -> None:
    images = torch.rand(64, 2, 5, 7)
    augment = Augment(flip=False, shift=0, flip_vertical=True)
    got = augmented(images, ROWS, augment, seed=2, epoch=1)
    mirrored = [bool(torch.equal(got[row], images[row].flip(1))) for row in range(64)]
    as_it_was = [bool(torch.equal(got[row], images[row])) for row in range(64)]
    assert [a != b for a, b in zip(mirrored, as_it_was, strict=True)] == [True] * 64
    assert 20 < sum(mirrored) < 44


def test_a_crop_shows_a_part_of_the_image_enlarged() -> None:
    # Brightness is the place itself, so each pixel of the crop tells where it came from.
    height, width = 40, 60
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    images = torch.stack([x, y])[None].expand(64, 2, height, width)
    augment = Augment(flip=False, shift=0, crop=0.5)
    got = augmented(images, ROWS, augment, seed=0, epoch=0)
    inner = got[:, :, 5:-5, 5:-5]  # at the very edge, half of a value comes from outside
    step_x = (inner[:, 0, :, 1:] - inner[:, 0, :, :-1]).flatten(1)
    step_y = (inner[:, 1, 1:] - inner[:, 1, :-1]).flatten(1)
    shares = step_x.mean(1)
    assert torch.allclose(step_x, shares[:, None].expand_as(step_x), atol=1e-3)
    assert torch.allclose(step_y, shares[:, None].expand_as(step_y), atol=1e-3)
    assert 0.5 <= shares.min() < 0.56
    assert 0.94 < shares.max() <= 1
    left, right = got[:, 0, 20, 1] - 1.5 * shares, got[:, 0, 20, -2] + 1.5 * shares
    assert bool((left >= -0.01).all())
    assert bool((right <= width + 0.01).all())
    assert bool((left < 1).any())
    assert bool((right > width - 1).any())


def test_a_crop_is_cut_from_what_the_other_changes_left() -> None:
    images = torch.rand(64, 1, 9, 9)
    plain = transforms(ROWS, Augment(flip=False, shift=0, crop=0.6), (9, 9), seed=0, epoch=0)
    both = transforms(ROWS, Augment(rotate=30, shift=0.3, crop=0.6), (9, 9), seed=0, epoch=0)
    first = transforms(ROWS, Augment(rotate=30, shift=0.3), (9, 9), seed=0, epoch=0)
    point = torch.tensor([0.3, -0.7, 1.0])
    for row in range(len(images)):
        inside = plain[row] @ point
        expected = first[row] @ torch.tensor([*inside.tolist(), 1.0])
        assert torch.allclose(both[row] @ point, expected, atol=1e-6)


def test_no_augmentation_asked_changes_nothing() -> None:
    images = torch.rand(5, 3, 7, 9)
    augment = Augment(flip=False, shift=0, rotate=0)
    assert torch.equal(augmented(images, torch.arange(5), augment, seed=1, epoch=1), images)


def test_an_image_changes_the_same_way_in_any_company() -> None:
    images = torch.rand(64, 1, 8, 8)
    augment = Augment(rotate=15)
    together = augmented(images, ROWS, augment, seed=0, epoch=5)
    alone = augmented(images[9:12], ROWS[9:12], augment, seed=0, epoch=5)
    assert torch.equal(together[9:12], alone)


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"which": 1}])
def test_each_part_of_the_key_gives_other_numbers(other: dict[str, int]) -> None:
    rows = np.arange(100)
    key = {"seed": 0, "epoch": 0, "which": 0}
    assert not (uniform(rows, **key) == uniform(rows, **(key | other))).any()


def test_numbers_are_uniform() -> None:
    numbers = uniform(np.arange(100_000), seed=7, epoch=3, which=2)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert abs(counts - 5000).max() < 350  # five standard deviations of a binomial count
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"shift": 1.5}, "shift must be"),
        ({"rotate": -1}, "rotate must be"),
        ({"crop": 0}, "crop must be"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augment(**setting)
