"""Small convolutional networks, each faithful to the structure of a known family.

``NETWORKS`` maps a name to a :class:`Network`: a factory of the model and a
factory of example inputs (``inputs(batch)``, float64). Few channels and small
images, so that each runs in float64 in well under a second. Attention and
recurrent networks stand in ``attention_networks`` and are merged in here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from attention_networks import ATTENTION_NETWORKS
from torch import Tensor, nn


class Network(NamedTuple):
    """How to build a model and an example of its inputs at a batch size."""

    factory: Callable[[], nn.Module]
    inputs: Callable[[int], Any]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and running statistic a random sensible value, in place.

    Zero-initialised heads, layer scales and fresh batch-norm statistics would
    make a check vacuous. Weights keep the scale of their fan-in; scales stay
    positive and away from zero; buffers that are tables (rotary frequencies,
    position indices) stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> Tensor:
        return (
            torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) * (high - low) + low
        )

    def normal(tensor: Tensor, scale: float) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * scale

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "table" not in name and "embed" not in name:
                fan_in = parameter[0].numel()
                parameter.copy_(normal(parameter, fan_in**-0.5))
            elif parameter.dim() >= 2 or name.endswith("bias"):
                parameter.copy_(normal(parameter, 0.3))
            else:
                parameter.copy_(uniform(parameter, 0.5, 1.5))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(normal(buffer, 0.3))
            elif name.endswith("running_var"):
                buffer.copy_(uniform(buffer, 0.5, 1.5))
    return model


def images(*shape: int) -> Callable[[int], Any]:
    """Return a factory of one-tuple inputs of the given shape without the batch."""

    def make(batch: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(sum(shape) + batch)
        return (torch.randn(batch, *shape, generator=generator, dtype=torch.float64),)

    return make


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch norm and (unless None) an activation, "same" padding."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class VGG(nn.Module):
    """VGG-16-BN: 13 convolutions, pooled to 2 x 2, three dense layers."""

    def __init__(
        self,
        widths: tuple[int, ...] = (6, 6, 8, 8, 10, 10, 10, 12, 12, 12, 12, 12, 12),
        hidden: tuple[int, int] = (16, 14),
        classes: int = 5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for index, width in enumerate(widths):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            if index in (1, 3, 6, 9, 12):
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(channels * 4, hidden[0]),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden[1], classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.avgpool(self.features(x)), 1)
        return self.classifier(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut is option A (subsample and pad) or B (1x1)."""

    def __init__(self, inputs: int, outputs: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.option = option
        self.projects = stride != 1 or inputs != outputs
        self.extra = (outputs - inputs) // 2
        if self.projects and option == "B":
            self.shortcut = conv_bn(inputs, outputs, 1, stride, activation=None)

    def skip(self, x: Tensor) -> Tensor:
        if not self.projects:
            return x
        if self.option == "B":
            return self.shortcut(x)
        x = x[:, :, ::2, ::2]
        extra = self.extra
        if self.option == "A-shape":
            extra = (self.conv1.weight.shape[0] - x.shape[1]) // 2
        return F.pad(x, (0, 0, 0, 0, extra, extra), "constant", 0)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.skip(x))


class ResNet(nn.Module):
    """CIFAR ResNet: three stages of basic blocks."""

    def __init__(self, option: str = "A", widths: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        for index, width in enumerate(widths, 1):
            stride = 1 if index == 1 else 2
            stage = nn.Sequential(
                BasicBlock(inputs, width, stride, option), BasicBlock(width, width, 1, option)
            )
            self.add_module(f"layer{index}", stage)
            inputs = width
        self.linear = nn.Linear(inputs, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size(3))
        return self.linear(x.view(x.size(0), -1))


class Bottleneck(nn.Module):
    """1x1, 3x3 (maybe grouped), 1x1, with a projection where the shape changes."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.reduce = conv_bn(inputs, middle, 1)
        self.spatial = conv_bn(middle, middle, 3, stride, groups)
        self.expand = conv_bn(middle, outputs, 1, activation=None)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = conv_bn(inputs, outputs, 1, stride, activation=None)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.expand(self.spatial(self.reduce(x)))
        out += identity
        return self.relu(out)


class BottleneckResNet(nn.Module):
    """ResNet-50-like (or ResNeXt-like with groups): stem, max pool, two stages."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.layer1 = nn.Sequential(
            Bottleneck(8, 8, 16, 1, groups), Bottleneck(16, 8, 16, 1, groups)
        )
        self.layer2 = nn.Sequential(
            Bottleneck(16, 12, 24, 2, groups), Bottleneck(24, 12, 24, 1, groups)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.layer2(self.layer1(self.stem(x))))
        return self.fc(torch.flatten(x, 1))


class DenseLayer(nn.Module):
    """Norm, 1x1, norm, 3x3; reads the concatenation of all earlier outputs."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1)), inplace=True))
        return self.conv2(F.relu(self.norm2(x), inplace=True))


class DenseNet(nn.Module):
    """Two dense blocks with a halving transition between them."""

    def __init__(self, growth: int = 4, blocks: tuple[int, int] = (3, 3)) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        channels = 8
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for index, depth in enumerate(blocks):
            layers = [DenseLayer(channels + i * growth, growth) for i in range(depth)]
            self.blocks.append(nn.ModuleList(layers))
            channels += depth * growth
            if index + 1 < len(blocks):
                half = channels // 2
                transition = nn.Sequential(
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(channels, half, 1, bias=False),
                    nn.AvgPool2d(2),
                )
                self.transitions.append(transition)
                channels = half
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            features = [x]
            for layer in block:
                features.append(layer(features))
            x = torch.cat(features, 1)
            if index < len(self.transitions):
                x = self.transitions[index](x)
        x = F.adaptive_avg_pool2d(F.relu(self.norm(x)), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class SqueezeExcite(nn.Module):
    """Channel gates computed from the global mean by two 1x1 convolutions."""

    def __init__(
        self,
        channels: int,
        squeeze: int,
        activation: Callable[[], nn.Module],
        gate: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, channels, 1)
        self.activation = activation()
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        return self.gate(self.fc2(self.activation(self.fc1(scale)))) * x


class InvertedResidual(nn.Module):
    """Expand, depthwise, (squeeze-excite,) project; residual where shapes agree."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        stride: int = 1,
        activation: Callable[[], nn.Module] = nn.ReLU6,
        squeeze: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers.append(conv_bn(inputs, hidden, 1, activation=activation))
        layers.append(conv_bn(hidden, hidden, 3, stride, hidden, activation))
        if squeeze is not None:
            layers.append(squeeze(hidden))
        layers.append(conv_bn(hidden, outputs, 1, activation=None))
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Inverted residuals with linear bottlenecks; the first block does not expand."""

    def __init__(self, hidden: tuple[int, ...] = (8, 24, 30, 36)) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn(3, 8, 3, 2, activation=nn.ReLU6),
            InvertedResidual(8, hidden[0], 6),
            InvertedResidual(6, hidden[1], 10, 2),
            InvertedResidual(10, hidden[2], 10),
            InvertedResidual(10, hidden[3], 12, 2),
            conv_bn(12, 32, 1, activation=nn.ReLU6),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


def mobilenet_v3() -> nn.Module:
    """MobileNetV3: hard swish, squeeze-excite with a hard sigmoid, a dense head."""

    def squeeze(channels: int) -> nn.Module:
        return SqueezeExcite(channels, 6, nn.ReLU, nn.Hardsigmoid)

    return nn.Sequential(
        conv_bn(3, 8, 3, 2, activation=nn.Hardswish),
        InvertedResidual(8, 8, 8, activation=nn.ReLU, squeeze=squeeze),
        InvertedResidual(8, 24, 12, 2, nn.Hardswish, squeeze),
        InvertedResidual(12, 28, 12, 1, nn.Hardswish),
        conv_bn(12, 30, 1, activation=nn.Hardswish),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(30, 20),
        nn.Hardswish(),
        nn.Dropout(0.2),
        nn.Linear(20, 5),
    )


def efficientnet() -> nn.Module:
    """EfficientNet: SiLU everywhere, squeeze-excite in every block."""

    def squeeze(channels: int) -> nn.Module:
        return SqueezeExcite(channels, 4, nn.SiLU, nn.Sigmoid)

    return nn.Sequential(
        conv_bn(3, 8, 3, 2, activation=nn.SiLU),
        InvertedResidual(8, 8, 6, 1, nn.SiLU, squeeze),
        InvertedResidual(6, 24, 10, 2, nn.SiLU, squeeze),
        InvertedResidual(10, 30, 10, 1, nn.SiLU, squeeze),
        conv_bn(10, 32, 1, activation=nn.SiLU),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32, 5),
    )


class ShuffleUnit(nn.Module):
    """ShuffleNetV2 unit: half of the channels pass, the other half convolve, then shuffle."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half = outputs // 2
        branch_inputs = inputs if stride > 1 else half
        if stride > 1:
            self.branch1 = nn.Sequential(
                conv_bn(inputs, inputs, 3, stride, inputs, None), conv_bn(inputs, half, 1)
            )
        self.branch2 = nn.Sequential(
            conv_bn(branch_inputs, half, 1),
            conv_bn(half, half, 3, stride, half, None),
            conv_bn(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            left, right = x.chunk(2, dim=1)
            out = torch.cat((left, self.branch2(right)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        batch, channels, height, width = out.size()
        out = out.view(batch, 2, channels // 2, height, width)
        return out.transpose(1, 2).contiguous().view(batch, channels, height, width)


def shufflenet_v2() -> nn.Module:
    """ShuffleNetV2 with one downsampling and two plain units in each stage."""
    return nn.Sequential(
        conv_bn(3, 8, 3, 2),
        ShuffleUnit(8, 16, 2),
        ShuffleUnit(16, 16, 1),
        ShuffleUnit(16, 16, 1),
        ShuffleUnit(16, 24, 2),
        ShuffleUnit(24, 24, 1),
        conv_bn(24, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


class Inception(nn.Module):
    """Four parallel branches, concatenated over channels."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        a, b, c, d = widths
        self.branch1 = conv_bn(inputs, a, 1)
        self.branch2 = nn.Sequential(conv_bn(inputs, b, 1), conv_bn(b, b))
        self.branch3 = nn.Sequential(conv_bn(inputs, c, 1), conv_bn(c, c, 5))
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, 1, padding=1, ceil_mode=True), conv_bn(inputs, d, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


def googlenet() -> nn.Module:
    """GoogLeNet: a stem and three inception modules."""
    return nn.Sequential(
        conv_bn(3, 8, 7, 2),
        Inception(8, (4, 6, 4, 2)),
        Inception(16, (6, 8, 4, 6)),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Inception(24, (4, 4, 6, 6)),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(20, 5),
    )


class RegBlock(nn.Module):
    """RegNetY block: grouped 3x3 with squeeze-excite inside a bottleneck."""

    def __init__(self, inputs: int, outputs: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.proj = None
        if stride != 1 or inputs != outputs:
            self.proj = conv_bn(inputs, outputs, 1, stride, activation=None)
        self.a = conv_bn(inputs, outputs, 1)
        self.b = conv_bn(outputs, outputs, 3, stride, outputs // group_width)
        self.se = SqueezeExcite(outputs, 4, nn.ReLU, nn.Sigmoid)
        self.c = conv_bn(outputs, outputs, 1, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.proj is None else self.proj(x)
        return F.relu(identity + self.c(self.se(self.b(self.a(x)))))


def regnet() -> nn.Module:
    """RegNetY with groups of four channels."""
    return nn.Sequential(
        conv_bn(3, 8, 3, 2),
        RegBlock(8, 16, 2, 4),
        RegBlock(16, 16, 1, 4),
        RegBlock(16, 24, 2, 4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


class UNet(nn.Module):
    """Two levels down and up; skips are concatenated; ``up`` is "transpose" or "interpolate"."""

    def __init__(self, up: str = "transpose") -> None:
        super().__init__()
        self.down1 = nn.Sequential(conv_bn(3, 6), conv_bn(6, 8))
        self.down2 = nn.Sequential(conv_bn(8, 10), conv_bn(10, 12))
        self.middle = nn.Sequential(conv_bn(12, 16), conv_bn(16, 16))
        self.up = up
        if up == "transpose":
            self.lift2: nn.Module = nn.ConvTranspose2d(16, 10, 2, stride=2)
            self.lift1: nn.Module = nn.ConvTranspose2d(12, 8, 2, stride=2)
        else:
            self.lift2 = nn.Conv2d(16, 10, 1)
            self.lift1 = nn.Conv2d(12, 8, 1)
        self.merge2 = nn.Sequential(conv_bn(22, 12), conv_bn(12, 12))
        self.merge1 = nn.Sequential(conv_bn(16, 8), conv_bn(8, 8))
        self.head = nn.Conv2d(8, 2, 1)

    def raised(self, x: Tensor, lift: nn.Module, skip: Tensor) -> Tensor:
        if self.up == "interpolate":
            x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([skip, lift(x)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.middle(F.max_pool2d(second, 2))
        x = self.merge2(self.raised(x, self.lift2, second))
        x = self.merge1(self.raised(x, self.lift1, first))
        return self.head(x)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of an image, by permutation."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return x.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, layer norm, two dense layers, layer scale, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(3 * channels, channels)
        self.layer_scale = nn.Parameter(torch.ones(channels, 1, 1) * 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.project(F.gelu(self.expand(y))).permute(0, 3, 1, 2)
        return x + self.layer_scale * y


def convnext() -> nn.Module:
    """ConvNeXt: patch stem, two stages, norm before the head."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4),
        LayerNorm2d(8),
        ConvNeXtBlock(8),
        ConvNeXtBlock(8),
        LayerNorm2d(8),
        nn.Conv2d(8, 12, 2, 2),
        ConvNeXtBlock(12),
        nn.AdaptiveAvgPool2d(1),
        LayerNorm2d(12),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def cnn3d() -> nn.Module:
    """A video network: 3-D convolutions, batch norm, pooling, a transposed convolution."""
    return nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1),
        nn.BatchNorm3d(6),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(6, 8, 3, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.ConvTranspose3d(8, 6, 2, stride=2),
        nn.ELU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


class Residual1d(nn.Module):
    """Dilated 1-D convolutions with a residual, as in temporal networks."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, channels, 3, dilation=dilation)
        self.norm = nn.BatchNorm1d(channels)
        self.second = nn.Conv1d(channels, channels, 1)
        self.reach = 2 * dilation

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm(self.first(F.pad(x, (self.reach, 0)))), 0.1)
        return x + self.second(y)


def cnn1d() -> nn.Module:
    """A causal network over a sequence of samples."""
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, padding=2),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        Residual1d(8, 1),
        Residual1d(8, 2),
        nn.AvgPool1d(2),
        nn.Conv1d(8, 12, 3),
        nn.Tanh(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


def group_norm() -> nn.Module:
    """Group norm: whole groups and channels within groups can go."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.GroupNorm(3, 12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, 2, 1),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.Conv2d(16, 10, 1),
        nn.GroupNorm(1, 10),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 4),
    )


def instance_norm() -> nn.Module:
    """Instance norm, with and without affine weights and running statistics."""
    return nn.Sequential(
        nn.ReflectionPad2d(1),
        nn.Conv2d(3, 8, 3),
        nn.InstanceNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 10, 3, 2, 1),
        nn.InstanceNorm2d(10, affine=True),
        nn.ReLU(),
        nn.Conv2d(10, 8, 3, padding=1),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        nn.Softplus(),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(8, 3, 3, padding=1),
    )


def grouped_transpose() -> nn.Module:
    """A decoder of grouped and depthwise transposed convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 18, 4, 2, 1, groups=3),
        nn.BatchNorm2d(18),
        nn.ReLU(),
        nn.Conv2d(18, 12, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 12, 2, 2, groups=12),
        nn.ReLU(),
        nn.Conv2d(12, 2, 1),
    )


class SuperResolution(nn.Module):
    """Residual body, then pixel shuffle from four times the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body1 = nn.Conv2d(8, 8, 3, padding=1)
        self.body2 = nn.Conv2d(8, 8, 3, padding=1)
        self.lift = nn.Conv2d(8, 24, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.tail = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        x = x + self.body2(F.relu(self.body1(x))) * 0.1
        return self.tail(F.relu(self.shuffle(self.lift(x))))


def prelu() -> nn.Module:
    """PReLU with one slope for all channels, and with one for each."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.PReLU(),
        nn.Conv2d(8, 10, 3, 2, 1),
        nn.BatchNorm2d(10),
        nn.PReLU(10),
        nn.Conv2d(10, 12, 3, padding=1),
        nn.PReLU(12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 6),
        nn.PReLU(6),
        nn.Linear(6, 4),
    )


class FlattenNet(nn.Module):
    """LeNet-like: several positions of each channel reach the dense layers, by ``view``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.conv2 = nn.Conv2d(6, 9, 3)
        self.norm = nn.BatchNorm1d(9 * 9)
        self.fc1 = nn.Linear(9 * 9, 14)
        self.fc2 = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(torch.relu(self.conv2(x)), 2)
        x = self.norm(x.view(x.size(0), -1))
        return F.log_softmax(self.fc2(F.relu(self.fc1(x))), dim=1)


class GatedNet(nn.Module):
    """Gated linear units: half of the channels gate the other half, by chunk and by ``glu``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 20, 3, padding=1)
        self.conv3 = nn.Conv2d(10, 12, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv1(x).chunk(2, dim=1)
        x = value * torch.sigmoid(gate)
        x = F.glu(self.conv2(x), dim=1)
        x = self.conv3(x)
        x = torch.tanh(x[:, :6]) * F.relu(x[:, 6:])
        return self.fc(x.mean((2, 3)))


class TwoInputs(nn.Module):
    """An image and a vector as inputs; a dict with a nested tuple as output."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(conv_bn(3, 8, 3, 2), conv_bn(8, 10))
        self.vector = nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 10))
        self.joint = nn.Linear(20, 9)
        self.score = nn.Linear(9, 4)
        self.box = nn.Linear(9, 2)

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, Any]:
        seen = self.image(image).mean((2, 3))
        told = self.vector(vector)
        joint = F.relu(self.joint(torch.cat([seen * torch.sigmoid(told), told], dim=1)))
        return {"scores": self.score(joint), "rest": (self.box(joint), joint.sum(1))}


def two_inputs(batch: int) -> dict[str, Tensor]:
    """Example inputs of :class:`TwoInputs`, by name."""
    generator = torch.Generator().manual_seed(batch)
    return {
        "image": torch.randn(batch, 3, 12, 12, generator=generator, dtype=torch.float64),
        "vector": torch.randn(batch, 7, generator=generator, dtype=torch.float64),
    }


class TiedNet(nn.Module):
    """One convolution run at two places, and two modules that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 10, 3, padding=1)
        self.right = nn.Conv2d(8, 10, 3, padding=1)
        self.right.weight = self.left.weight
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.shared(F.relu(self.shared(x))))
        x = torch.cat([F.relu(self.left(x)), torch.tanh(self.right(-x))], dim=1)
        return self.head(x.amax((2, 3)))


NETWORKS: dict[str, Network] = {
    "vgg16_bn": Network(VGG, images(3, 32, 32)),
    "resnet_option_a": Network(lambda: ResNet("A"), images(3, 16, 16)),
    "resnet_option_a_shape": Network(lambda: ResNet("A-shape"), images(3, 16, 16)),
    "resnet_basic": Network(lambda: ResNet("B"), images(3, 16, 16)),
    "resnet_bottleneck": Network(BottleneckResNet, images(3, 24, 24)),
    "resnext": Network(lambda: BottleneckResNet(groups=4), images(3, 24, 24)),
    "densenet": Network(DenseNet, images(3, 12, 12)),
    "mobilenet_v2": Network(MobileNetV2, images(3, 24, 24)),
    "mobilenet_v3": Network(mobilenet_v3, images(3, 24, 24)),
    "efficientnet": Network(efficientnet, images(3, 24, 24)),
    "shufflenet_v2": Network(shufflenet_v2, images(3, 24, 24)),
    "googlenet": Network(googlenet, images(3, 20, 20)),
    "regnet": Network(regnet, images(3, 24, 24)),
    "unet": Network(UNet, images(3, 16, 16)),
    "unet_interpolate": Network(lambda: UNet("interpolate"), images(3, 16, 16)),
    "convnext": Network(convnext, images(3, 32, 32)),
    "cnn3d": Network(cnn3d, images(2, 6, 8, 8)),
    "cnn1d": Network(cnn1d, images(2, 24)),
    "group_norm": Network(group_norm, images(3, 12, 12)),
    "instance_norm": Network(instance_norm, images(3, 12, 12)),
    "grouped_transpose": Network(grouped_transpose, images(3, 6, 6)),
    "pixel_shuffle": Network(SuperResolution, images(3, 8, 8)),
    "prelu": Network(prelu, images(3, 12, 12)),
    "flatten": Network(FlattenNet, images(1, 18, 18)),
    "glu": Network(GatedNet, images(3, 10, 10)),
    "two_inputs": Network(TwoInputs, two_inputs),
    "tied": Network(TiedNet, images(3, 10, 10)),
    **{name: Network(*pair) for name, pair in ATTENTION_NETWORKS.items()},
}


def build(name: str, seed: int = 0) -> nn.Module:
    """Build a network of the registry in float64, randomised, in eval mode."""
    torch.manual_seed(seed)
    return randomise(NETWORKS[name].factory().double().eval(), seed)
