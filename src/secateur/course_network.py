"""The network on which a course project compared five ways of pruning."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CourseCNN(nn.Module):
    """Four 3x3 convolutions and two dense layers: 592,933 parameters for five classes.

    Every second convolution is without padding, so 25 pixels become 23, 11, 9 and 4.
    """

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in (32, 64):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Dropout(0.25),
            ]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(64 * 4 * 4, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, 25, 25] to logits [N, classes]."""
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


def course_cnn(classes: int = 5) -> CourseCNN:
    """Build the course project's network, for images of 3 x 25 x 25."""
    return CourseCNN(classes)
