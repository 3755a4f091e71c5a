"""Scores by relevance: what they are read from, and what they must not depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exactness import differences, snapshot
from networks import NETWORKS, build
from torch import Tensor, nn

import secateur
from secateur.errors import InputError
from secateur.graph.copies import map_tensors
from secateur.relevance.maps import STATISTICS

MIXED = ("vgg16_bn", "resnet_bottleneck", "mobilenet_v3", "bert", "vit", "llama",
         "torch_attention", "swin")  # fmt: skip


def relevance(graph: secateur.Graph, batches: Any, **options: Any) -> dict[str, Tensor]:
    return secateur.score(graph, "lrp", batches, options=options)


def part(inputs: Any, start: int, stop: int) -> Any:
    return map_tensors(inputs, lambda t: t[start:stop])


def far(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).abs().max() / one[k].abs().max()) for k in one)


def dense() -> tuple[secateur.Graph, Tensor]:
    """The network that ``tests/relevance`` works out by hand."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -1.0], [1.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, -1.0]))
        model[2].weight.copy_(torch.tensor([[2.0, -0.5], [-1.0, 0.25]]))
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    return secateur.trace(model, x), x


def test_a_neuron_scores_its_relevance_where_it_is_read() -> None:
    graph, x = dense()
    (scores,) = relevance(graph, [(x, None)], epsilon=1e-13).values()
    assert scores.tolist() == pytest.approx([2, -1])


def test_a_label_starts_from_its_own_logit() -> None:
    # -0.5 = -1 x 1 + 0.25 x 2: alpha times the positive second, -beta times the first
    graph, x = dense()
    (scores,) = relevance(graph, [(x, torch.tensor([1]))], target="label", epsilon=1e-13).values()
    assert scores.tolist() == pytest.approx([0.5, -1])


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("statistic", ["mean", "max_abs"])
def test_scores_do_not_depend_on_how_samples_are_put_into_batches(
    name: str, statistic: str
) -> None:
    model, inputs = build(name), NETWORKS[name].inputs(4)
    graph = secateur.trace(model, NETWORKS[name].inputs(2))
    before = snapshot(model)
    whole = relevance(graph, [(inputs, None)], statistic=statistic)
    batches = [(part(inputs, 1, 4), None), (part(inputs, 0, 1), None)]
    split = relevance(graph, batches, statistic=statistic)
    assert set(whole) == {group.name for group in graph.groups}
    assert far(whole, split) < 1e-8
    assert not differences(before, snapshot(model))


def test_every_statistic_is_one_of_the_map() -> None:
    model, inputs = build("resnet_basic"), NETWORKS["resnet_basic"].inputs(3)
    graph = secateur.trace(model, inputs)
    found = {s: relevance(graph, [(inputs, None)], statistic=s) for s in STATISTICS}
    for name in found["mean"]:
        one = {s: scores[name] for s, scores in found.items()}
        spread = len(next(g.slots for g in graph.groups if g.name == name))
        assert spread
        assert bool((one["min"] <= one["mean"] + 1e-12).all())
        assert bool((one["mean"] <= one["max"] + 1e-12).all())
        assert bool((one["min_abs"] <= one["mean_abs"] + 1e-12).all())
        assert bool((one["mean_abs"] <= one["max_abs"] + 1e-12).all())


@pytest.mark.parametrize("rule", ["alpha-beta", "epsilon", "gamma", "z-plus"])
@pytest.mark.parametrize("name", ["bert", "vit"])
def test_heads_and_neurons_of_transformers_are_scored(name: str, rule: str) -> None:
    model, inputs = build(name), NETWORKS[name].inputs(3)
    graph = secateur.trace(model, inputs)
    scores = relevance(graph, [(inputs, None)], rule=rule)
    assert {"head", "neuron"} <= {graph.by_name[group].kind for group in scores}
    assert all(bool(torch.isfinite(s).all()) and float(s.std()) > 0 for s in scores.values())
    again = relevance(graph, [(inputs, None)], rule=rule)
    assert all(torch.equal(scores[group], again[group]) for group in scores)


def test_an_expert_scores_half_of_what_it_adds_to_the_logit() -> None:
    """The other half belongs to its gate; at a sum each summand has its part."""
    model, (x,) = build("moe_stacked"), NETWORKS["moe_stacked"].inputs(3)
    graph = secateur.trace(model, x)
    (experts,) = [group.name for group in graph.groups if group.kind == "expert"]
    found = relevance(graph, [(x, None)], rule="epsilon", epsilon=1e-13)
    with torch.no_grad():
        y = model.norm(model.embed(x)).flatten(0, 1)
        best, chosen = model.router(y).softmax(-1).topk(2, dim=-1)
        gates = torch.zeros(len(y), 4, dtype=y.dtype)
        gates.scatter_(1, chosen, best / best.sum(-1, keepdim=True))
        outputs = (nn.functional.silu(y @ model.rise) @ model.fall).transpose(0, 1)
        weight = model.head.weight[model(x).argmax(-1).flatten()]
        wanted = (gates[:, :, None] * outputs * weight[:, None]).mean((0, 2)) / 2
    torch.testing.assert_close(found[experts], wanted, rtol=1e-8, atol=1e-12)


def test_tokens_that_attention_is_masked_from_change_nothing() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.head(self.layer(x, src_key_padding_mask=padding)[:, 0])

    torch.manual_seed(0)
    model = Masked().double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[:, 3:] = True
    graph = secateur.trace(model, (x, padding))
    other = x.clone()
    other[:, 3:] = torch.randn(2, 2, 8, dtype=torch.float64)
    one = relevance(graph, [((x, padding), None)])
    two = relevance(graph, [((other, padding), None)])
    assert far(one, two) < 1e-9


def test_unknown_options_are_refused_before_any_pass() -> None:
    graph, x = dense()
    with pytest.raises(InputError, match="median"):
        relevance(graph, [(x, None)], statistic="median")
    with pytest.raises(InputError, match="deep"):
        relevance(graph, [(x, None)], rule="deep")
    with pytest.raises(InputError, match="at least one batch"):
        relevance(graph, [])


def test_recurrent_networks_are_refused_with_the_operation() -> None:
    graph = secateur.trace(build("lstm"), NETWORKS["lstm"].inputs(2))
    with pytest.raises(InputError, match=r"aten\.\w+ in core"):
        relevance(graph, [(NETWORKS["lstm"].inputs(2), None)])
