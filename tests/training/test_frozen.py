"""Zeros that stay zero, whatever the optimiser does with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.checked import digest
from secateur.errors import InputError
from secateur.finetune import finetune
from secateur.training import Frozen, StepHook, TrainSettings

OPTIMIZERS = [
    {"optimizer": "adam"},
    {"optimizer": "adam", "weight_decay": 0.1},
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.1},
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1, "nesterov": True, "clip": 0.5},
]


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 3))


def data() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(80, 6, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=8)


def halves(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        name: torch.rand(parameter.shape, generator=generator) < 0.5
        for name, parameter in model.named_parameters()
        if name in ("0.weight", "3.weight", "3.bias")
    }


def settings(**over: object) -> TrainSettings:
    # 10 batches an epoch: 100 steps.
    return TrainSettings(**{"epochs": 10, "lr": 0.05, "schedule": "constant", **over})


@pytest.mark.parametrize("over", OPTIMIZERS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("when", [0, 30])
def test_zeros_are_exact_through_a_hundred_steps(over: dict[str, object], when: int) -> None:
    """At 30, momentum and Adam's moments already push the weights that are masked then."""
    model, steps = network(), list[int]()
    masks = halves(model)
    begun = {name: value.clone() for name, value in model.named_parameters()}

    def look(now: nn.Module, step: int, current: object) -> dict[str, Tensor] | None:
        parameters = dict(now.named_parameters())
        if step == when:
            return masks
        if step > when:
            steps.append(step)
            for name, mask in masks.items():
                gone = parameters[name].detach()[~mask]
                assert torch.equal(gone, torch.zeros_like(gone))
                assert not bool(torch.signbit(gone).any())
        return None

    finetune(model, data(), data(), settings(**over), hook=StepHook(look, until=when))
    assert steps == list(range(when + 1, 101))
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        assert not bool(parameters[name][~mask].any())
        # A unit that nobody reads any more learns nothing, so not quite all have moved.
        assert float((parameters[name][mask] != begun[name][mask]).float().mean()) > 0.8


def test_masks_that_change_after_the_hook_said_it_was_done_are_refused() -> None:
    """Else the best epoch could be one from before them, and its weights not masked at all."""
    model = network()
    masks = halves(model)
    hook = StepHook(lambda now, step, current: masks if step == 30 else None, until=29)
    with pytest.raises(InputError, match=r"until=29.*step 30"):
        finetune(model, data(), data(), settings(), hook=hook)


def test_without_the_second_clearing_moments_would_move_a_masked_weight() -> None:
    """What the tests above would miss if nothing pushed: here it does."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    batch, labels = next(iter(data()))
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()
    masks = {"0.weight": torch.zeros(12, 6, dtype=torch.bool)}
    frozen = Frozen(model, masks)
    weight = model[0].weight
    frozen.before_step()
    assert not bool(weight.grad.any())
    optimizer.step()
    assert bool(weight.any())
    frozen.after_step()
    assert not bool(weight.any())


def test_masks_alone_and_masks_of_the_call_are_the_same() -> None:
    left, right = network(), network()
    masks = halves(left)
    finetune(left, data(), data(), settings(epochs=2), masks=masks)
    hook = StepHook(lambda model, step, current: masks if step == 0 else None)
    finetune(right, data(), data(), settings(epochs=2), hook=hook)
    for name, value in left.state_dict().items():
        assert torch.equal(value, right.state_dict()[name])


def test_removed_weights_do_not_count_in_the_clipped_norm() -> None:
    """The kept gradients are scaled by their own norm: compared with a step by hand."""
    model = network()
    masks = halves(model)
    by_hand = {name: value.detach().clone() for name, value in model.named_parameters()}
    for name, mask in masks.items():
        by_hand[name] *= mask
    copy = network()
    copy.load_state_dict({**copy.state_dict(), **by_hand})
    batch, labels = next(iter(data()))
    copy.train()
    nn.functional.cross_entropy(copy(batch), labels).backward()
    slopes = {name: p.grad * masks.get(name, 1) for name, p in copy.named_parameters()}
    norm = sum(float((slope**2).sum()) for slope in slopes.values()) ** 0.5
    assert norm > 0.1
    one = DataLoader(TensorDataset(batch, labels), batch_size=8)
    asked = TrainSettings(epochs=1, lr=0.5, optimizer="sgd", momentum=0, schedule="constant",
                          clip=0.1)  # fmt: skip
    finetune(model, one, one, asked, masks=masks)
    for name, parameter in model.named_parameters():
        expected = by_hand[name] - 0.5 * slopes[name] * 0.1 / norm
        assert torch.allclose(parameter, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"1.wait": torch.ones(12, dtype=torch.bool)}, "'1.wait', which is no parameter"),
        ({"0.bias": torch.ones(3, dtype=torch.bool)}, r"must be bool of shape \(12,\), but got"),
        ({"0.bias": torch.ones(12)}, "torch.float32"),
    ],
)
def test_masks_that_do_not_fit(masks: dict[str, Tensor], message: str) -> None:
    model = network()
    before = digest(model.state_dict())
    with pytest.raises(InputError, match=message):
        finetune(model, data(), data(), settings(), masks=masks)
    assert digest(model.state_dict()) == before


def test_a_digest_tells_names_shapes_and_values_apart() -> None:
    one = {"a": torch.tensor([1.0, 2.0])}
    assert digest(one) == digest({"a": torch.tensor([1.0, 2.0])})
    others = [
        {"b": one["a"]},
        {"a": one["a"].reshape(2, 1)},
        {"a": torch.tensor([1.0, 3.0])},
        {"a": one["a"].view(torch.int32)},
    ]
    assert len({digest(entry) for entry in [one, *others]}) == 5
