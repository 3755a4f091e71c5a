"""Random flips, shifts, turns and crops that depend on nothing but (seed, epoch, row).

Symbols: N images of C x H x W. A place p of the output, in coordinates from -1 to 1, takes its
value from the place A p + b of the input; A [2, 2] turns, mirrors and enlarges, b [2] shifts. Each
random number is a hash of (seed, epoch, row, which draw), so no generator has a state that a
resumed run would have to restore, and a batch is the same however the rows were grouped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from secateur.errors import InputError

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Augment:
    """What may happen to a training image.

    Attributes:
        flip: mirror left and right, half of the time.
        shift: largest shift as a share of each side; whole pixels, what comes in is black.
        rotate: largest turn to either side, in degrees.
        flip_vertical: mirror top and bottom, half of the time.
        crop: smallest share of each side that a crop shows; what is left of the image after the
            other changes is cut out somewhere and enlarged to the full size. 1 crops nothing.
    """

    flip: bool = True
    shift: float = 0.125
    rotate: float = 0.0
    flip_vertical: bool = False
    crop: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.shift <= 1:
            raise InputError(f"shift must be in [0, 1], but got {self.shift}")
        if not 0 <= self.rotate <= 180:
            raise InputError(f"rotate must be in [0, 180] degrees, but got {self.rotate}")
        if not 0 < self.crop <= 1:
            raise InputError(f"crop must be in (0, 1], but got {self.crop}")


def augmented(images: Tensor, rows: Tensor, augment: Augment, *, seed: int, epoch: int) -> Tensor:
    """Return ``images`` [N, C, H, W] changed as (seed, epoch, row) decides; ``rows`` is [N]."""
    height, width = images.shape[-2:]
    affine = transforms(rows, augment, (height, width), seed=seed, epoch=epoch)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    # Whole-pixel moves stay exact; only turns and crops need values between pixels.
    mode = "bilinear" if augment.rotate or augment.crop < 1 else "nearest"
    return functional.grid_sample(images, grid, mode=mode, align_corners=False)


def transforms(
    rows: Tensor, augment: Augment, size: tuple[int, int], *, seed: int, epoch: int
) -> Tensor:
    """Draw one [A | b] per row: float32 [N, 2, 3]."""
    height, width = size

    def draw(which: int) -> Tensor:
        return torch.from_numpy(uniform(rows.numpy(), seed=seed, epoch=epoch, which=which))

    def pixels(which: int, side: int) -> Tensor:
        most = math.floor(augment.shift * side)
        return torch.floor(draw(which) * (2 * most + 1)) - most

    def mirrored(which: int, asked: bool) -> Tensor:
        return 1.0 - 2.0 * (draw(which) < 0.5) if asked else torch.ones(len(rows))

    across_by, down_by = mirrored(0, augment.flip), mirrored(4, augment.flip_vertical)
    angle = (2 * draw(3) - 1) * math.radians(augment.rotate)
    cos, sin = torch.cos(angle), torch.sin(angle)
    turn = torch.stack(
        [
            torch.stack([cos * across_by, -sin * height / width * down_by], 1),
            torch.stack([sin * across_by * width / height, cos * down_by], 1),
        ],
        1,
    )
    move = torch.stack([2 * pixels(1, width) / width, 2 * pixels(2, height) / height], 1)
    if augment.crop < 1:
        # The crop shows the places s p + c of the changed image, s its share of the side.
        share = augment.crop + (1 - augment.crop) * draw(5)
        centre = (1 - share)[:, None] * (2 * torch.stack([draw(6), draw(7)], 1) - 1)
        move = move + (turn @ centre[:, :, None])[:, :, 0]
        turn = turn * share[:, None, None]
    return torch.cat([turn, move[:, :, None]], 2).float()


def uniform(
    rows: npt.NDArray[np.int64], *, seed: int, epoch: int, which: int
) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per row, the same for the same (seed, epoch, row, which)."""
    words = _mix(rows.astype(np.uint64))
    for part in (which, epoch, seed):
        words = _mix(words + np.uint64(part % 2**64))
    numbers: npt.NDArray[np.float64] = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def _mix(words: Words) -> Words:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014); wraps around on purpose."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = words ^ (words >> np.uint64(31))
    return mixed
