"""Inference mode and attention kernels, chosen by the caller or by the network itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import secateur


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.c(x.mean((2, 3)))


class Decorated(Convolutions):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 8, 8)


def made(kind: type[nn.Module]) -> Any:
    torch.manual_seed(0)
    return kind().eval()


def test_a_call_inside_inference_mode_gives_what_it_gives_outside() -> None:
    wanted = secateur.prune(made(Convolutions), image(), sparsity=0.5)
    with torch.inference_mode():
        found = secateur.prune(made(Convolutions), image(), sparsity=0.5)
        assert torch.is_inference_mode_enabled()
    assert found.plan == wanted.plan
    assert found.check.ok
    for a, b in zip(found.model.parameters(), wanted.model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.requires_grad
        assert not a.is_inference()


def test_what_was_cut_inside_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        found = secateur.prune(made(Convolutions), image(), sparsity=0.5)
    found.model(image()).sum().backward()
    assert all(p.grad is not None for p in found.model.parameters())


def test_a_forward_in_inference_mode_has_the_groups_of_one_outside() -> None:
    graph = secateur.trace(made(Decorated), image())
    assert {g.name: g.size for g in graph.groups} == {"a": 8, "b": 6}
    assert secateur.prune(made(Decorated), image(), sparsity=0.5).check.ok


@pytest.mark.parametrize("criterion", ["l2", "taylor", "hessian", "activation_norm", "lrp"])
def test_a_network_made_in_inference_mode_is_scored_like_another(criterion: str) -> None:
    data = [(image(), torch.tensor([0, 4]))]
    wanted = secateur.score(secateur.trace(made(Convolutions), image()), criterion, data)
    with torch.inference_mode():
        model, batches = made(Convolutions), [(image(), torch.tensor([0, 4]))]
        found = secateur.score(secateur.trace(model, image()), criterion, batches)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    outside = secateur.score(secateur.trace(model, image()), criterion, batches)
    assert all(torch.equal(outside[name], wanted[name]) for name in wanted)


def test_every_step_works_inside_inference_mode() -> None:
    with torch.inference_mode():
        model, x = made(Convolutions), image()
        graph = secateur.trace(model, x)
        plan = secateur.allocate(graph, secateur.score(graph, "l1"), sparsity=0.5)
        pruned = secateur.cut(model, plan)
        torch.testing.assert_close(secateur.mask(model, plan)(x), pruned(x))
        assert secateur.verify(model, pruned, plan, x).ok
        better = secateur.recover(model, pruned, plan, [(x, None)])
    assert better.layers
    assert not any(p.is_inference() for p in better.model.parameters())


class Attention(nn.Module):
    """Chooses the kernel of its attention itself; the norm and the softmax need mask points."""

    def __init__(self, kernel: Any = None) -> None:
        super().__init__()
        self.kernel = kernel
        self.q, self.k, self.v = (nn.Linear(12, 24) for _ in range(3))
        self.norm, self.out, self.head = nn.LayerNorm(6), nn.Linear(24, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.kernel is None:
            x = F.scaled_dot_product_attention(q, k, v, scale=0.3)
        else:
            with sdpa_kernel(self.kernel):
                x = F.scaled_dot_product_attention(q, k, v, scale=0.3)
        return self.head(self.out(x.transpose(1, 2).flatten(2)))


KERNELS = [
    SDPBackend.MATH,
    SDPBackend.FLASH_ATTENTION,
    [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_a_network_that_chooses_its_kernel_is_cut_like_one_that_does_not(kernel: Any) -> None:
    torch.manual_seed(0)
    plain = Attention().eval()
    chooses = Attention(kernel).eval()
    chooses.load_state_dict(plain.state_dict())
    x = torch.randn(2, 6, 12)
    wanted = secateur.prune(plain, x, sparsity=0.4)
    found = secateur.prune(chooses, x, sparsity=0.4)
    assert found.plan == wanted.plan
    assert found.check.ok
    masked = secateur.mask(plain, wanted.plan)(x)
    torch.testing.assert_close(found.model(x), masked, rtol=1e-4, atol=1e-6)


def test_the_fused_kernel_of_multi_head_attention_is_not_the_reference() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
            self.head = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                x = self.attention(x, x, x, need_weights=False)[0]
            return self.head(x)

    torch.manual_seed(0)
    x = torch.randn(2, 6, 16)
    assert secateur.prune(Fused().eval(), x, sparsity=0.5).check.ok
