"""Relevance at every weighted layer, against Zennit, which shares no code with it."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from networks import randomise
from passes import ours, worst
from torch import Tensor, nn

from secateur.relevance import Settings

if importlib.util.find_spec("zennit") is None or importlib.util.find_spec("torchvision") is None:
    pytest.skip("Zennit, the oracle, is not installed", allow_module_level=True)

from zennits_passes import ZENNIT_RULES, Sum, zennits

RULES = sorted(ZENNIT_RULES)


class Block(nn.Module):
    """A basic residual block; its sum is a module of Zennit's, so that its rule applies."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        short = [nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)]
        self.short = nn.Sequential(*short) if stride > 1 else nn.Identity()
        self.sum = Sum()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(self.sum(torch.stack([self.short(x), y], dim=-1)))


class AddBlock(Block):
    """The same block with a plain, in-place addition."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.short(x)
        return self.relu(y)


def resnet(block: type[Block]) -> nn.Module:
    stem = [nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True)]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5)]
    return nn.Sequential(*stem, nn.MaxPool2d(2), block(6, 6, 1), block(6, 10, 2), *end)


def vgg(norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, width in ((3, 6), (6, 8), (8, 10)):
        layers.append(nn.Conv2d(inputs, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    end = [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(90, 12), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, *end, nn.Linear(12, 5))


def image(size: int = 16) -> Tensor:
    return torch.randn(3, 3, size, size, dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch-norm"])
def test_a_vgg_has_zennits_relevance(rule: str, norm: bool) -> None:
    model = randomise(vgg(norm).double()).eval()
    torch.manual_seed(0)
    x = image()
    found, _ = ours(model, x, Settings(rule=rule))
    assert worst(found, zennits(model, x, rule)) < 1e-9


@pytest.mark.parametrize("rule", RULES)
def test_a_resnet_has_zennits_relevance(rule: str) -> None:
    plain = randomise(resnet(AddBlock).double()).eval()
    summed = resnet(Block).double().eval()
    summed.load_state_dict(plain.state_dict())
    torch.manual_seed(0)
    x = image()
    found, _ = ours(plain, x, Settings(rule=rule))
    assert worst(found, zennits(summed, x, rule)) < 1e-9


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, 2, 1, groups=2),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.ConvTranspose2d(4, 6, 3, 2),
        nn.ConvTranspose2d(4, 6, 3, 2, groups=2),
        nn.Conv2d(4, 6, 3, dilation=2, padding=2),
    ],
    ids=["grouped", "depthwise", "transposed", "transposed grouped", "dilated"],
)
def test_layers_of_signed_inputs_have_zennits_relevance(rule: str, layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = randomise(model.double()).eval()
    torch.manual_seed(0)
    x = image(9)
    found, _ = ours(model, x, Settings(rule=rule))
    assert worst(found, zennits(model, x, rule)) < 1e-9


def test_large_matrices_are_worked_on_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomise(vgg(True).double()).eval()
    torch.manual_seed(0)
    x = image()
    whole, _ = ours(model, x, Settings())
    monkeypatch.setattr("secateur.relevance.contraction.BLOCK", 100)
    assert worst(ours(model, x, Settings())[0], whole) < 1e-12


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn", "resnet18", "resnet50"])
@pytest.mark.parametrize("rule", ["alpha-beta", "z-plus"])
def test_torchvisions_networks_have_zennits_relevance(name: str, rule: str) -> None:
    from zoo.torchvision_shim import import_torchvision

    models = import_torchvision().models
    from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer

    torch.manual_seed(0)
    model = randomise(models.get_model(name, weights=None)).eval()
    x = torch.randn(2, 3, 64, 64)
    found, _ = ours(model, x, Settings(rule=rule))
    canonizers = (ResNetBottleneckCanonizer(), ResNetBasicBlockCanonizer())
    assert worst(found, zennits(model, x, rule, *canonizers)) < 1e-4
