"""Residual blocks: what is found, that a factor is the branch's, and that nothing is left."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from networks import NETWORKS, build, randomise
from torch import Tensor, nn
from torch.nn import functional as F

import secateur
from secateur.errors import InputError, PlanError
from secateur.finetune import TrainSettings
from secateur.models import cifar_resnet
from secateur.sparse_training import remove_blocks, residual_blocks, select_structures
from secateur.sparse_training.absent import removable
from secateur.sparse_training.blocks import Block, block_readers
from secateur.sparse_training.factors import fold, scaled
from secateur.sparse_training.proximal import soft_threshold

IMAGE = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
TOKENS = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)).double()


def resnet20() -> nn.Module:
    torch.manual_seed(0)
    return randomise(cifar_resnet(20, 5).double().eval())


def encoder(first: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True, norm_first=first)
    return randomise(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval())


@contextmanager
def branches_times(model: nn.Module, blocks: dict[str, Block], factor: float) -> Iterator[None]:
    """Multiply what the branches' last layers give: the reference, written without the graph."""

    def times(_: nn.Module, __: object, result: Tensor | tuple) -> Tensor | tuple:
        return (result[0] * factor, result[1]) if isinstance(result, tuple) else result * factor

    found = dict(model.named_modules())
    # The attention of PyTorch reads its last layer's weights and never calls it.
    owners = [b.end[0].rpartition(".")[0].removesuffix(".out_proj") for b in blocks.values()]
    handles = [found[owner].register_forward_hook(times) for owner in owners]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()


def found(model: nn.Module, x: Tensor) -> dict[str, Block]:
    return {block.name: block for block in residual_blocks(secateur.trace(model, x)).found}


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_blocks_of_a_resnet() -> None:
    blocks = found(resnet20(), IMAGE)
    assert list(blocks) == [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range(3)]
    assert blocks["layer2.0"].end == ("layer2.0.bn2.weight", "layer2.0.bn2.bias")
    assert blocks["layer2.0"].modules == tuple(
        f"layer2.0.{name}" for name in ("conv1", "bn1", "conv2", "bn2")
    )
    assert blocks["layer2.0"].params == 9 * 16 * 32 + 9 * 32 * 32 + 4 * 32


def test_the_blocks_of_a_transformer() -> None:
    blocks = found(encoder(), TOKENS)
    assert list(blocks) == [
        f"layers.{layer}.{part}" for layer in (0, 1) for part in ("self_attn", "linear2")
    ]
    assert blocks["layers.0.self_attn"].modules == ("layers.0.norm1", "layers.0.self_attn")
    assert blocks["layers.0.linear2"].modules == tuple(
        f"layers.0.{name}" for name in ("norm2", "linear1", "linear2")
    )
    # After the sum, a norm belongs to all that follows.
    post = found(encoder(first=False), TOKENS)
    assert post["layers.1.self_attn"].modules == ("layers.1.self_attn",)


@pytest.mark.parametrize(
    ("make", "x"),
    [(resnet20, IMAGE), (encoder, TOKENS), (lambda: encoder(first=False), TOKENS)],
    ids=["resnet", "pre-norm", "post-norm"],
)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
class TestAgainstAMaskedReference:
    def test_a_factor_multiplies_the_branch(
        self, make: Callable[[], nn.Module], x: Tensor, training: bool
    ) -> None:
        model = make()
        graph = secateur.trace(model, x)
        blocks = found(model, x)
        places = {name: block_readers(graph, block) for name, block in blocks.items()}
        factors = {name: torch.full((1,), 0.37, dtype=torch.float64) for name in blocks}
        model.train(training)
        plain = model(x)
        with branches_times(model, blocks, 0.37):
            wanted = model(x)
        by_call = torch.func.functional_call(model, scaled(model, places, factors), (x,))
        fold(model, places, factors)
        for result in (by_call, model(x)):
            assert torch.allclose(
                result, wanted, rtol=0, atol=1e-9 * wanted.detach().abs().max().item()
            )
        assert not torch.allclose(plain, wanted, rtol=1e-3)

    def test_without_the_branches_it_computes_the_same(
        self, make: Callable[[], nn.Module], x: Tensor, training: bool
    ) -> None:
        model = make()
        blocks = found(model, x)
        gone = dict(list(blocks.items())[1::2])
        small = remove_blocks(model, tuple(gone.values()), x)
        assert type(small) is type(model)
        assert params(small) == params(model) - sum(block.params for block in gone.values())
        before, after = (secateur.trace(net, x).cost() for net in (model, small))
        assert after.params == params(small)
        assert after.macs < before.macs
        held = {name for name, _ in small.named_parameters()}
        for block in gone.values():
            assert not any(name.startswith(f"{m}.") for name in held for m in block.modules)
        model.train(training)
        small.train(training)
        for inputs in (x, x[:2]):
            with branches_times(model, gone, 0.0):
                wanted = model(inputs)
            result = small(inputs)
            assert torch.allclose(
                result, wanted, rtol=0, atol=1e-10 * wanted.detach().abs().max().item()
            )
            assert not torch.allclose(model(inputs), wanted, rtol=1e-3)
        small(x).square().sum().backward()
        assert all(p.grad is not None for p in small.parameters())


def test_macs_fall_by_the_convolutions_of_the_branches() -> None:
    model = resnet20()
    blocks = found(model, IMAGE)
    small = remove_blocks(model, (blocks["layer1.1"], blocks["layer3.0"]), IMAGE)
    before, after = (secateur.trace(net, IMAGE).cost().macs for net in (model, small))
    assert before - after == 2 * 9 * 16 * 16 * 256 + (9 * 32 * 64 + 9 * 64 * 64) * 16


def test_another_resolution_and_a_lone_image() -> None:
    model = resnet20()
    blocks = found(model, IMAGE)
    small = remove_blocks(model, tuple(blocks.values()), IMAGE)
    wide = torch.randn(1, 3, 23, 24, dtype=torch.float64)
    with branches_times(model, blocks, 0.0):
        wanted = model(wide)
    assert torch.allclose(small(wide), wanted, atol=1e-10)


def test_saved_and_loaded_cut_and_proven(tmp_path: Path) -> None:
    model = resnet20()
    blocks = found(model, IMAGE)
    small = remove_blocks(model, (blocks["layer2.0"], blocks["layer2.1"]), IMAGE)
    outcome = secateur.prune(small, IMAGE, sparsity=0.5)
    assert outcome.check.ok
    assert outcome.check.changed
    assert {"layer2.0.conv1.weight", "layer2.1.conv1.weight"}.isdisjoint(outcome.plan.cuts)
    # The stream behind the missing blocks can still be cut, with the zeros that join it.
    assert outcome.model.layer2[2].conv2.weight.shape[0] == 16
    secateur.save(outcome.model, tmp_path)
    loaded = secateur.load(tmp_path)
    assert torch.equal(loaded(IMAGE), outcome.model(IMAGE))


def test_first_cut_and_then_without_the_blocks() -> None:
    model = resnet20()
    blocks = found(model, IMAGE)
    pruned = secateur.prune(model, IMAGE, sparsity=0.5).model
    small = remove_blocks(pruned, tuple(blocks.values()), IMAGE)
    with branches_times(pruned, blocks, 0.0):
        wanted = pruned(IMAGE)
    assert torch.allclose(small(IMAGE), wanted, atol=1e-10)


REMOVABLE = {
    "resnet_option_a": 6, "resnet_basic": 6, "resnet_bottleneck": 4, "resnext": 4,
    "mobilenet_v2": 1, "mobilenet_v3": 2, "efficientnet": 1, "regnet": 3, "convnext": 3,
    "bert": 4, "vit": 4, "llama": 4, "swin": 6, "gpt2": 4, "densenet": 0, "vgg16_bn": 0, "unet": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", REMOVABLE)
def test_networks_of_many_kinds(name: str) -> None:
    """``remove_blocks`` itself compares with the branches at zero; here is what it finds."""
    model, inputs = build(name), NETWORKS[name].inputs(2)
    graph = secateur.trace(model, inputs)
    blocks = removable(graph, residual_blocks(graph))
    assert len(blocks.found) == REMOVABLE[name]
    if blocks.found:
        small = remove_blocks(model, blocks.found, inputs)
        assert secateur.trace(small, inputs).cost().params == params(small)
        assert params(small) == params(model) - sum(block.params for block in blocks.found)
        model.train()
        small.train()(*inputs)


class InPlace(nn.Module):
    """As torchvision writes it: sums and activations in place, one ReLU for both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding="same")
        self.relu = nn.ReLU(inplace=True)
        self.project = nn.Conv2d(3, 6, 1, 2)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.relu(self.conv1(x)))
        y += self.project(x)
        return self.head(self.relu(y).mean((2, 3)))


def test_sums_in_place() -> None:
    model = InPlace().double()
    (block,) = residual_blocks(secateur.trace(model, IMAGE)).found
    assert block.modules == ("conv1", "conv2")
    small = remove_blocks(model, (block,), IMAGE)
    wanted = model.head(torch.relu(model.project(IMAGE)).mean((2, 3)))
    assert torch.allclose(small(IMAGE), wanted, atol=1e-12)


class Gated(nn.Module):
    """A gate on the branch's output: one factor before it would be no factor of the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.gate = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return x + y * torch.sigmoid(self.gate(y))


class Shared(nn.Module):
    """One layer, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer(x)
        return x + self.layer(torch.relu(x))


class Asks(nn.Module):
    """Code that asks the branch's layer for its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x.to(self.layer.weight.dtype))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Gated, r"what its branch gives \(aten\.\w+\) is read elsewhere"),
        (Shared, r"layer\.\w+ is used more than once"),
        (Asks, r"the model's code fails without: 'Absent' object has no attribute 'weight'"),
    ],
)
def test_what_cannot_go_says_why(kind: type[nn.Module], reason: str) -> None:
    model = kind().double()
    graph = secateur.trace(model, TOKENS)
    blocks = removable(graph, residual_blocks(graph))
    assert blocks.found == ()
    once = TrainSettings(epochs=1)
    data = [(TOKENS, torch.zeros(3, 16, dtype=torch.int64))]
    with pytest.raises(InputError, match=f"a residual branch that can go, but got .*{reason}"):
        select_structures(graph, data, once, blocks=0.1)
    with pytest.raises((InputError, PlanError), match=reason):
        select_structures(graph, data, once, blocks=dict.fromkeys(("(the model)", "layer"), 0.1)
                          if kind is not Asks else {"layer": 0.1})  # fmt: skip


class Stack(nn.Module):
    """Three residual layers and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 12)) for _ in range(3)
        )
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def task() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(6):
        labels = torch.randint(0, 3, (16,), generator=generator)
        inputs = 0.3 * torch.randn(16, 8, generator=generator)
        inputs[:, 0] += labels
        found.append((inputs, labels))
    return found


def test_one_step_of_a_blocks_factor_by_hand() -> None:
    torch.manual_seed(0)
    net, data = Stack(), task()[:1]
    twin, factor = copy.deepcopy(net), torch.ones(1, requires_grad=True)
    x, labels = data[0]
    hidden = torch.relu(twin.first(x))
    hidden = hidden + twin.blocks[0](hidden)
    hidden = hidden + factor * twin.blocks[1](hidden)
    hidden = hidden + twin.blocks[2](hidden)
    F.cross_entropy(twin.head(hidden), labels).backward()
    assert factor.grad is not None
    assert twin.blocks[1][2].bias.grad is not None
    moved = soft_threshold(1 - 0.05 * factor.grad, 0.05 * 0.3)
    once = TrainSettings(epochs=1, lr=0.05, optimizer="sgd", schedule="constant", momentum=0.0)
    selected = select_structures(secateur.trace(net, x), data, once, blocks={"blocks.1": 0.3})
    assert selected.blocks == {"blocks.1": pytest.approx(float(moved), abs=1e-6)}
    bias = (twin.blocks[1][2].bias - 0.05 * twin.blocks[1][2].bias.grad) * moved
    assert torch.allclose(net.blocks[1][2].bias, bias, atol=1e-6)
    assert selected.gone == ()
    assert selected.factors == {}


def test_whole_blocks_go_and_the_task_is_learnt() -> None:
    torch.manual_seed(0)
    net, data = Stack(), task()
    graph = secateur.trace(net, data[0][0])
    settings = TrainSettings(epochs=40, lr=0.03, optimizer="sgd", schedule="constant")
    selected = select_structures(graph, data, settings, strength=0.002, blocks=0.2)
    assert set(selected.blocks) == {"blocks.0", "blocks.1", "blocks.2"}
    assert selected.gone
    assert {block.name for block in selected.gone} == {
        name for name, factor in selected.blocks.items() if factor == 0
    }
    small = remove_blocks(net, selected.gone, data[0][0])
    x = torch.cat([inputs for inputs, _ in data])
    labels = torch.cat([answer for _, answer in data])
    assert torch.allclose(small(x), net(x), atol=1e-5)
    assert (small(x).argmax(1) == labels).float().mean() > 0.9
    assert params(small) == params(net) - 262 * len(selected.gone)


def test_unknown_blocks_and_neither_are_refused() -> None:
    net, data = Stack(), task()
    graph = secateur.trace(net, data[0][0])
    once = TrainSettings(epochs=1)
    with pytest.raises(InputError, match=r"blocks must be one of blocks\.0.*but got 'blocks\.7'"):
        select_structures(graph, data, once, blocks={"blocks.7": 0.1})
    with pytest.raises(InputError, match="strength or blocks must be given"):
        select_structures(graph, data, once)
    with pytest.raises(InputError, match=r"blocks must be above 0 and finite, but got -1\.0"):
        select_structures(graph, data, once, blocks=-1.0)
