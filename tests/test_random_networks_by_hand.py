"""Random networks against a dense network masked by hand, which shares no code with a proof.

The blocks are those in which a removed channel is zero for whoever reads it; for some the
generator itself knows what is free, so coupling too much fails, too.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from test_random_networks import Drawn
from torch import Tensor, nn

import secateur

FREE = ("stem", "conv", "BatchNorm2d", "InstanceNorm2d", "tanh", "gelu", "silu", "add", "linear",
        "pool", "gate", "sum")  # fmt: skip


class Plain(Drawn):
    """Blocks without means or softmax over channels."""

    def _grow(self) -> None:
        blocks = [
            self._conv, self._norm, self._act, self._add_two, self._permute, self._pool,
            self._mul_gate, self._shuffle, self._cat, self._flatten, self._linear,
            self._layer_norm,
        ]  # fmt: skip
        self.draw.choice(blocks)()


class Known(Plain):
    """Blocks of which the generator knows what is free, most of the time."""

    def _grow(self) -> None:
        blocks = [self._conv, self._act, self._add_two, self._permute, self._pool, self._mul_gate]
        self.draw.choice(blocks)()

    def known_units(self) -> int | None:
        """Return how many units are free; None where a block may couple, or nobody reads one."""
        used: set[int] = {i for i in range(len(self.shapes)) if i not in self.read}
        kinds: list[int] = [0]
        sizes: dict[int, int] = {}
        for number, line in enumerate(self.story, 1):
            word, *rest = line.split(": ")[1].split(" -> ")[0].split()
            if word not in FREE or (word == "conv" and rest[-1] != "1"):
                return None
            reads = rest[:1] if word == "conv" else rest
            used.update(int(i) for i in reads if i.isdigit())
            if word in ("stem", "conv", "linear"):
                kinds.append(number)
                sizes[number] = self.shapes[number][0]
            elif word == "sum":
                break
            else:
                kinds.append(kinds[int(rest[0])])
            if word == "add":
                one, other = kinds[int(rest[0])], kinds[int(rest[1])]
                kinds = [one if kind == other else kind for kind in kinds]
        if len(used | {0}) < len(self.shapes):
            return None
        return sum(sizes[kind] for kind in set(kinds) - {0})


def build(seed: int) -> Plain:
    torch.manual_seed(seed)
    model = Plain(seed, 2 + seed % 9).double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor) * 0.5)
    return model


class KeptNorm(nn.Module):
    """A group or layer norm whose mean and variance are those of the kept channels."""

    def __init__(self, norm: nn.GroupNorm | nn.LayerNorm, gone: Sequence[int]) -> None:
        super().__init__()
        self.norm = norm
        parts = norm.num_groups if isinstance(norm, nn.GroupNorm) else 1
        self.kept = [
            [i for i in part.tolist() if i not in gone]
            for part in torch.arange(len(norm.weight)).chunk(parts)
        ]

    def forward(self, x: Tensor) -> Tensor:
        dim = 1 if isinstance(self.norm, nn.GroupNorm) else -1
        x = x.movedim(dim, -1)
        over = tuple(range(1, x.dim())) if dim == 1 else (-1,)
        out = torch.zeros_like(x)
        for kept in filter(None, self.kept):
            part = x[..., kept]
            away = part - part.mean(over, keepdim=True)
            part = away / (away.square().mean(over, keepdim=True) + self.norm.eps).sqrt()
            out[..., kept] = part * self.norm.weight[kept] + self.norm.bias[kept]
        return out.movedim(-1, dim)


def masked_by_hand(model: Plain, plan: secateur.Plan) -> Plain:
    """Zero what weights read of removed channels; norms take in the others alone."""
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            gone = list(plan.cuts.get(name, {}).get(1, ()))
            if parameter.dim() > 1 and gone:
                parameter[:, gone] = 0
    for name, layer in model.layers.items():
        if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
            gone = plan.cuts.get(f"layers.{name}.weight", {}).get(0, ())
            reference.layers[name] = KeptNorm(layer, gone)
    return reference


def compare(seed: int) -> int:
    """Hold half of every group of one network to the reference; return the comparisons."""
    model = build(seed)
    shown = f"seed {seed}: {model.story}"
    graph = secateur.trace(model, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    if not graph.groups:
        return 0
    plan = secateur.allocate(graph, secateur.score(graph, "random", seed=seed), sparsity=0.5)
    made = 0
    for training in (False, True):
        for shape in ((2, 3, 4, 4), (3, 3, 4, 4), (2, 3, 8, 8), (2, 3, 8, 12)):
            x = torch.randn(shape, dtype=torch.float64)
            pruned = secateur.cut(model, plan).train(training)
            found = attempt(masked_by_hand(model, plan).train(training), x)
            if found is not None:
                error = (pruned(x) - found).abs().max() / found.abs().max()
                assert error <= 1e-9, f"{shown}, train {training}, {shape}: {error}"
                made += 1
    return made


def attempt(model: nn.Module, x: Tensor) -> Tensor | None:
    try:
        return model(x)
    except (RuntimeError, ValueError):  # the dense network takes one size only
        return None


def run(seeds: Sequence[int]) -> None:
    made = [compare(seed) for seed in seeds]
    assert sum(count > 4 for count in made) > len(seeds) // 4


def test_random_networks_are_cut_as_masked_by_hand() -> None:
    run(range(25))


def test_what_the_generator_knows_to_be_free_is_in_groups() -> None:
    x, held = torch.randn(2, 3, 4, 4), 0
    for seed in range(40):
        model = Known(seed, 5).eval()
        known = model.known_units()
        if known is not None:
            groups = secateur.trace(model, x).groups
            assert sum(group.size for group in groups) == known, f"seed {seed}: {model.story}"
            held += 1
    assert held > 8


@pytest.mark.slow
def test_more_random_networks_are_cut_as_masked_by_hand() -> None:
    first = int(torch.empty((), dtype=torch.int64).random_(0, 2**31))
    print(f"seeds {first} to {first + 99}")
    run(range(first, first + 100))
