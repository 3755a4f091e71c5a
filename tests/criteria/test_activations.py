"""Activation criteria against plain forward hooks and numpy, unit by unit."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, build
from torch import Tensor, nn

import secateur
from secateur.calibration import logits_of
from secateur.criteria.elements import element_scores
from secateur.errors import InputError

Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """A convolution with norm and ReLU, a strided and a grouped one, flattened into a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 3, 3, stride=2, padding=1)
        self.fc = nn.Linear(12, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)), inplace=True)
        x = F.relu(self.b(x)).flatten(1)
        return self.head(F.relu(self.fc(x)))


# The module whose input a group's units are, and the units of its 12 columns in the flat one.
READER = {"a": "b", "b": "fc", "fc": "head"}
SIZE = {"a": 4, "b": 3, "fc": 5}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Net().double().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_(std=0.3)
        model.norm.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture
def batches() -> list[Batch]:
    torch.manual_seed(1)
    return [
        (torch.randn(n, 2, 4, 4, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in (4, 5, 2)
    ]


def inputs_of(model: nn.Module, name: str, x: Tensor) -> np.ndarray:
    """Return what the module ``name`` is called with, by a plain hook."""
    seen: list[Tensor] = []
    module = model.get_submodule(name)
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen[0].numpy()


def by_unit(group: str, values: np.ndarray) -> np.ndarray:
    """Return [samples, units, elements] of what the reader of ``group`` is called with."""
    return values.reshape(len(values), SIZE[group], -1)


def all_inputs(model: nn.Module, group: str, batches: list[Batch]) -> np.ndarray:
    whole = [inputs_of(model, READER[group], x) for x, _ in batches]
    return by_unit(group, np.concatenate(whole))


def entropies(values: np.ndarray, bins: int) -> list[float]:
    found = []
    for unit in values.mean(2).T:
        shares = np.histogram(unit, bins)[0] / len(unit)
        found.append(-sum(p * math.log(p) for p in shares if p > 0))
    return found


SLOW: dict[str, tuple[str, dict[str, object], Callable[[np.ndarray], object]]] = {
    "l2": ("activation_norm", {}, lambda v: np.sqrt((v**2).mean((0, 2)))),
    "l1": ("activation_norm", {"norm": "l1"}, lambda v: np.abs(v).mean((0, 2))),
    "apoz": ("apoz", {}, lambda v: 1 - (v == 0).mean((0, 2))),
    "threshold": ("apoz", {"threshold": 0.3}, lambda v: (np.abs(v) > 0.3).mean((0, 2))),
    "entropy": ("entropy", {"bins": 7}, lambda v: entropies(v, 7)),
}


@pytest.mark.parametrize("case", SLOW)
def test_statistics_are_those_of_numpy(model: nn.Module, batches: list[Batch], case: str) -> None:
    name, options, slow = SLOW[case]
    graph = secateur.trace(model, batches[0][0])
    found = secateur.score(graph, name, batches, options=options)
    assert set(found) == set(SIZE)
    for group in SIZE:
        wanted = slow(all_inputs(model, group, batches))
        np.testing.assert_allclose(found[group].numpy(), wanted, rtol=1e-10)


def test_wanda_is_weights_times_norms(model: nn.Module, batches: list[Batch]) -> None:
    graph = secateur.trace(model, batches[0][0])
    found = secateur.score(graph, "wanda", batches)
    elements = element_scores(model, "wanda", batches)
    for group, reader in READER.items():
        values = all_inputs(model, group, batches)
        weight = np.abs(model.get_submodule(reader).weight.detach().numpy())
        norms = np.sqrt((values**2).sum((0, 2)))
        if group == "b":  # four columns a unit, each with a norm of its own
            norms = np.sqrt((values**2).sum(0)).reshape(-1)
        wanted = weight * norms.reshape(1, -1, *[1] * (weight.ndim - 2))
        np.testing.assert_allclose(elements[f"{reader}.weight"].numpy(), wanted, rtol=1e-10)
        sums = wanted.sum((0, *range(2, weight.ndim))).reshape(SIZE[group], -1).sum(1)
        np.testing.assert_allclose(found[group].numpy(), sums, rtol=1e-10)
    # The first layer reads no units, but its single weights count.
    images = np.concatenate([x.numpy() for x, _ in batches])
    norms = np.sqrt((images**2).sum((0, 2, 3)))
    wanted = np.abs(model.a.weight.detach().numpy()) * norms.reshape(1, 2, 1, 1)
    np.testing.assert_allclose(elements["a.weight"].numpy(), wanted, rtol=1e-10)
    assert not elements["a.bias"].any()
    assert {n: v.shape for n, v in elements.items()} == {
        n: p.shape for n, p in model.named_parameters()
    }


def test_wanda_of_grouped_and_transposed_convolutions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ReLU(), nn.Conv2d(6, 6, 1, groups=6),
    )  # fmt: skip
    model = model.double().eval()
    batch = (torch.randn(3, 2, 8, 8, dtype=torch.float64), torch.zeros(3, dtype=torch.long))
    elements = element_scores(model, "wanda", [batch])
    for layer, outputs, inputs in ((2, 2, 3), (6, 1, 1)):
        x = inputs_of(model, str(layer), batch[0])
        weight = model[layer].weight.detach().numpy()
        for out in range(len(weight)):
            for i in range(inputs):
                channel = out // outputs * inputs + i
                norm = np.sqrt((x[:, channel] ** 2).sum())
                np.testing.assert_allclose(
                    elements[f"{layer}.weight"][out, i].numpy(),
                    np.abs(weight[out, i]) * norm,
                    rtol=1e-10,
                )
    x = inputs_of(model, "4", batch[0])
    norms = np.sqrt((x**2).sum((0, 2, 3)))
    wanted = np.abs(model[4].weight.detach().numpy()) * norms.reshape(4, 1, 1, 1)
    np.testing.assert_allclose(elements["4.weight"].numpy(), wanted, rtol=1e-10)


class Stack(nn.Module):
    """Each row goes to the expert that its first number names; experts without rows do not run."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 4, 2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        result = x.new_zeros(len(x), 2)
        for expert in x[:, 0].long().unique().tolist():
            rows = x[:, 0] == expert
            result[rows] = x[rows] @ self.experts[expert]
        return result


def test_wanda_tells_weights_that_only_some_batches_read() -> None:
    torch.manual_seed(0)
    model, x = Stack(), torch.randn(6, 4, dtype=torch.float64)
    x[:, 0] = torch.tensor([0, 2, 0, 1, 2, 2])
    batches = [(x[:3], torch.zeros(3)), (x[3:], torch.zeros(3))]
    found = element_scores(model, "wanda", batches)["experts"]
    for expert, weight in enumerate(model.experts.detach()):
        norms = x[x[:, 0] == expert].square().sum(0).sqrt()
        torch.testing.assert_close(found[expert], weight.abs() * norms[:, None])


def test_wanda_takes_one_norm_of_all_that_a_weight_reads() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 3, bias=False).double()
    model, x = nn.Sequential(layer, nn.Tanh(), layer), torch.randn(5, 3, dtype=torch.float64)
    found = element_scores(model, "wanda", [(x, torch.zeros(5))])["0.weight"]
    read = torch.cat([x, torch.tanh(layer(x))]).detach()
    torch.testing.assert_close(found, layer.weight.detach().abs() * read.square().sum(0).sqrt())


def test_taylor_is_activation_times_gradient_sample_by_sample(
    model: nn.Module, batches: list[Batch]
) -> None:
    graph = secateur.trace(model, batches[0][0])
    found = secateur.score(graph, "taylor_activation", batches)
    for group, reader in READER.items():
        totals, count = np.zeros(SIZE[group]), 0
        for x, labels in batches:
            for sample, label in zip(x, labels, strict=True):
                held: list[Tensor] = []

                def swap(_: nn.Module, args: tuple[Tensor], held: list[Tensor] = held) -> Tensor:
                    held.append(args[0].detach().requires_grad_())
                    return held[0]

                hook = model.get_submodule(reader).register_forward_pre_hook(swap)
                loss = F.cross_entropy(model(sample[None]), label[None])
                hook.remove()
                (grad,) = torch.autograd.grad(loss, held)
                products = by_unit(group, (held[0].detach() * grad).numpy())
                totals += np.abs(products[0].mean(1))
                count += 1
        np.testing.assert_allclose(found[group].numpy(), totals / count, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    "name", ["activation_norm", "apoz", "wanda", "entropy", "taylor_activation"]
)
@pytest.mark.parametrize("network", ["flatten", "torch_encoder", "lstm", "resnext"])
def test_how_samples_are_batched_does_not_matter(name: str, network: str) -> None:
    model = build(network)
    draw = torch.Generator().manual_seed(3)
    shape = NETWORKS[network].inputs(1)[0].shape[1:]
    x = torch.randn(7, *shape, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, 2, (7,), generator=draw)
    graph = secateur.trace(model, x[:2])

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        logits = logits_of(outputs)
        return F.cross_entropy(logits.reshape(len(logits), -1), labels)

    whole = secateur.score(graph, name, [(x, labels)], loss=loss)
    parts = [(x[:3], labels[:3]), (x[3:4], labels[3:4]), (x[4:], labels[4:])]
    split = secateur.score(graph, name, parts, loss=loss)
    assert whole.keys() == split.keys()
    for group, values in whole.items():
        torch.testing.assert_close(split[group], values, rtol=1e-9, atol=1e-14)


def norm_of(values: np.ndarray) -> np.ndarray:
    """Root mean square of [..., units, elements] over all but the units."""
    return np.sqrt((values**2).mean((*range(values.ndim - 2), -1)))


def test_heads_neurons_and_embeddings_of_bert() -> None:
    model = build("bert")
    (ids,) = NETWORKS["bert"].inputs(3)
    graph = secateur.trace(model, ids)
    found = secateur.score(graph, "activation_norm", [(ids, torch.zeros(3, dtype=torch.long))])

    def read(name: str) -> np.ndarray:
        return inputs_of(model, name, ids)

    mixed = read("layers.0.dense").reshape(3, 7, 3, 4)  # [batch, token, head, head dimension]
    np.testing.assert_allclose(found["layers.0.query:head"], norm_of(mixed), rtol=1e-10)
    by_dim = norm_of(mixed.swapaxes(2, 3))
    np.testing.assert_allclose(found["layers.0.value:head_dim"], by_dim, rtol=1e-10)
    neurons = read("layers.1.output")[..., None]
    np.testing.assert_allclose(found["layers.1.intermediate"], norm_of(neurons), rtol=1e-10)
    # The queries meet the keys in a product without a weight.
    query = model.layers[0].query
    with torch.no_grad():
        queries = query(torch.from_numpy(read("layers.0.query"))).numpy().reshape(3, 7, 3, 4)
    by_dim = norm_of(queries.swapaxes(2, 3))
    np.testing.assert_allclose(found["layers.0.query:head_dim"], by_dim, rtol=1e-10)
    # Nine weights read the residual stream, each after its norm.
    readers = [f"layers.{n}.{m}" for n in (0, 1) for m in ("query", "key", "value", "intermediate")]
    wanted = sum(norm_of(read(name)[..., None]) for name in (*readers, "classifier"))
    np.testing.assert_allclose(found["word_embedding"], wanted, rtol=1e-10)


def test_key_and_value_heads_of_llama() -> None:
    model = build("llama")
    (ids,) = NETWORKS["llama"].inputs(3)
    graph = secateur.trace(model, ids)
    batch = (ids, torch.zeros(3, dtype=torch.long))
    norms = secateur.score(graph, "activation_norm", [batch], loss=lambda o, _: o.mean())
    mixed = inputs_of(model, "layers.0.o_proj", ids).reshape(-1, 2, 2, 6)
    name = "layers.0.q_proj:kv_head"
    assert graph.by_name[name].kind == "kv_head"
    wanted = norm_of(mixed.reshape(-1, 2, 12))
    np.testing.assert_allclose(norms[name], wanted, rtol=1e-10)
    found = secateur.score(graph, "wanda", [batch])
    weight = np.abs(model.layers[0].o_proj.weight.detach().numpy())
    each = weight.sum(0) * np.sqrt((mixed.reshape(-1, 24) ** 2).sum(0))
    np.testing.assert_allclose(found[name], each.reshape(2, 12).sum(1), rtol=1e-10)


def test_wanda_where_queries_meet_keys() -> None:
    model = build("bert")
    (ids,) = NETWORKS["bert"].inputs(3)
    graph = secateur.trace(model, ids)
    found = secateur.score(graph, "wanda", [(ids, torch.zeros(3, dtype=torch.long))])
    layer, x = model.layers[0], torch.from_numpy(inputs_of(model, "layers.0.query", ids))
    with torch.no_grad():
        query, key = (m(x).numpy().reshape(3, 7, 3, 4) for m in (layer.query, layer.key))
    squares = (query**2).sum(1) * (key**2).sum(1)  # [batch, head, head dimension]
    wanted = np.sqrt(squares.sum((0, 1)))
    # The product runs head by head, all heads in one batch; a unit has one norm over all of them.
    np.testing.assert_allclose(found["layers.0.query:head_dim"], wanted, rtol=1e-10)


def test_apoz_leaves_out_what_is_never_zero() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()
    x = torch.randn(20, 4)
    graph = secateur.trace(model, x)
    batch = (x, torch.zeros(20, dtype=torch.long))
    assert set(secateur.score(graph, "apoz", [batch])) == {"2"}
    assert set(secateur.score(graph, "apoz", [batch], options={"threshold": 0.1})) == {"0", "2"}


def test_aggregation_is_over_places() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(torch.relu(h)) + self.c(torch.tanh(h))

    torch.manual_seed(0)
    model, x = Two().double().eval(), torch.randn(9, 3, dtype=torch.float64)
    graph = secateur.trace(model, x)
    places = [norm_of(inputs_of(model, name, x)[..., None]) for name in ("b", "c")]
    ways = {"sum": sum(places), "mean": sum(places) / 2, "first": places[0]}
    ways["max"] = np.maximum(*places)
    for aggregation, wanted in ways.items():
        found = secateur.score(
            graph, "activation_norm", [(x, torch.zeros(9))], aggregation=aggregation
        )
        np.testing.assert_allclose(found["a"], wanted, rtol=1e-10)


def test_bad_options_are_refused(model: nn.Module, batches: list[Batch]) -> None:
    graph = secateur.trace(model, batches[0][0])
    for name, options, words in (
        ("activation_norm", {"norm": "l3"}, "norm must be one of l1, l2, but got 'l3'"),
        ("apoz", {"threshold": -1.0}, "threshold must be at least 0, but got -1.0"),
        ("entropy", {"bins": 1}, "bins must be at least 2, but got 1"),
    ):
        with pytest.raises(InputError, match=words):
            secateur.score(graph, name, batches, options=options)
