"""VGG-16 as the source of the relevance study has it: ImageNet's layout, and a longer head."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class Vgg16(nn.Module):
    def __init__(self, classes: int = 10, dropout: float = 0.25, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for planned in WIDTHS:
            if not planned:
                layers.append(nn.MaxPool2d(2))
                continue
            after = max(1, round(planned * width))
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            before = after
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(7)
        sizes = [before * 49, *(round(size * width) for size in (4096, 4096, 1000, 500)), classes]
        head: list[nn.Module] = []
        for place, (size, further) in enumerate(pairwise(sizes)):
            head.append(nn.Linear(size, further))
            if place < len(sizes) - 2:
                head += [nn.ReLU(), nn.Dropout(dropout)]
        self.classifier = nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


def build(classes: int = 10, width: float = 1.0) -> Vgg16:
    return Vgg16(classes, width=width)
