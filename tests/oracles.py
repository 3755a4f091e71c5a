"""Networks pruned by hand: each weight indexed explicitly, no axis algebra anywhere.

An :class:`Oracle` names a small network, what to remove from it (an anchor
slot and the positions that go there), every edit of every weight that this
implies (:class:`Edit`), written out by a person who read the network, and a
forward pass written with plain functions over a state dict. Dropping all edits
gives the pruned weights; zeroing only the ``read`` ones gives the masked
reference, so that an oracle is checked against itself before it judges others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from attention_networks import Bert, Llama, MoE, Swin, pixels, tokens
from networks import VGG, MobileNetV2, ResNet, ShuffleUnit, conv_bn, images, randomise
from torch import Tensor, nn

State = dict[str, Tensor]


class Edit(NamedTuple):
    """Positions of one dimension of one weight that go; ``read`` where a removed unit is read."""

    name: str
    dim: int
    positions: tuple[int, ...]
    read: bool = False


@dataclass(frozen=True)
class Oracle:
    """One network and one removal, followed by hand.

    ``anchors`` says what is removed: (weight, dimension, positions), one for
    each group meant. ``forward`` computes the outputs from a state dict;
    ``sizes`` are the numbers of the pruned network's own code (pads, heads).
    ``scaled`` weights carry the factor that restores the dense attention scale
    in so many of their leading rows. ``masks`` is False where a norm runs over cut
    units, since zeroing is no reference there.
    """

    factory: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    anchors: tuple[tuple[str, int, tuple[int, ...]], ...]
    edits: tuple[Edit, ...]
    forward: Callable[..., Tensor]
    dense_sizes: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    scaled: dict[str, tuple[int, float]] = field(default_factory=dict)
    masks: bool = True


def model_of(oracle: Oracle, seed: int = 0) -> nn.Module:
    """Build the oracle's dense network in float64, randomised, in eval mode."""
    return randomise(oracle.factory().double().eval(), seed)


def state_of(model: nn.Module) -> State:
    """Return every parameter and buffer (unsaved ones, too) by its first name, detached."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def dropped(state: State, edits: Sequence[Edit]) -> State:
    """Return the state without the positions of the edits."""
    result = dict(state)
    for edit in edits:
        size = result[edit.name].shape[edit.dim]
        assert len(set(edit.positions)) == len(edit.positions) < size, edit
        kept = [i for i in range(size) if i not in edit.positions]
        result[edit.name] = result[edit.name].index_select(edit.dim, torch.tensor(kept))
    return result


def blanked(state: State, edits: Sequence[Edit]) -> State:
    """Return the state with zeros where removed units are read: the masked reference."""
    result = dict(state)
    for edit in edits:
        if edit.read:
            result[edit.name] = result[edit.name].index_fill(
                edit.dim, torch.tensor(edit.positions), 0.0
            )
    return result


def norm_edits(name: str, positions: Sequence[int], running: bool = True) -> tuple[Edit, ...]:
    """Return the edits of a norm layer's scale, shift and (batch norm) statistics."""
    parts = ["weight", "bias", *(["running_mean", "running_var"] if running else [])]
    return tuple(Edit(f"{name}.{part}", 0, tuple(positions)) for part in parts)


def linear_edits(name: str, positions: Sequence[int]) -> tuple[Edit, ...]:
    """Return the edits of the outputs of a layer with weight and bias."""
    return (
        Edit(f"{name}.weight", 0, tuple(positions)),
        Edit(f"{name}.bias", 0, tuple(positions)),
    )


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    """Batch norm with its running statistics."""
    return F.batch_norm(
        x,
        state[f"{name}.running_mean"],
        state[f"{name}.running_var"],
        state[f"{name}.weight"],
        state[f"{name}.bias"],
    )


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """Dense layer, with a bias where the state has one."""
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def layer_norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer norm over the last dimension."""
    weight = state[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, state[f"{name}.bias"], eps)


# --- VGG: a chain, with 2 x 2 positions of each last channel in the flattened vector


def vgg_forward(state: State, x: Tensor) -> Tensor:
    """Compute the small VGG-16-BN from its weights."""
    index = 0
    for convolution in range(13):
        weight, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
        x = F.relu(batch_norm(state, f"features.{index + 1}", F.conv2d(x, weight, bias, 1, 1)))
        index += 3
        if convolution in (1, 3, 6, 9, 12):
            x = F.max_pool2d(x, 2)
            index += 1
    x = F.adaptive_avg_pool2d(x, (2, 2)).flatten(1)
    x = F.relu(linear(state, "classifier.0", x))
    x = F.relu(linear(state, "classifier.3", x))
    return linear(state, "classifier.6", x)


VGG_ORACLE = Oracle(
    VGG,
    images(3, 32, 32),
    anchors=(
        ("features.0.weight", 0, (1, 4)),
        ("features.40.weight", 0, (0, 3, 11)),
        ("classifier.0.weight", 0, (2, 15)),
    ),
    edits=(
        *linear_edits("features.0", (1, 4)),
        *norm_edits("features.1", (1, 4)),
        Edit("features.3.weight", 1, (1, 4), read=True),
        *linear_edits("features.40", (0, 3, 11)),
        *norm_edits("features.41", (0, 3, 11)),
        # Channel c occupies columns 4c to 4c + 3 of the flattened vector.
        Edit("classifier.0.weight", 1, (0, 1, 2, 3, 12, 13, 14, 15, 44, 45, 46, 47), read=True),
        *linear_edits("classifier.0", (2, 15)),
        Edit("classifier.3.weight", 1, (2, 15), read=True),
    ),
    forward=vgg_forward,
)


# --- ResNet with option-A shortcuts: subsample, pad the channels before and after


def option_a_forward(state: State, x: Tensor) -> Tensor:
    """Compute the small CIFAR ResNet; stages 2 and 3 pad by 4 and by 8 on each side."""
    x = F.relu(batch_norm(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=1)))
    for stage in (1, 2, 3):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, state[f"{name}.conv1.weight"], None, stride, 1)
            y = F.relu(batch_norm(state, f"{name}.bn1", y))
            y = F.conv2d(y, state[f"{name}.conv2.weight"], None, 1, 1)
            y = batch_norm(state, f"{name}.bn2", y)
            if stride == 2:
                pad = 4 * (stage - 1)
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))
            x = F.relu(x + y)
    return linear(state, "linear", x.mean((2, 3)))


OPTION_A_INNER = Oracle(
    ResNet,
    images(3, 16, 16),
    anchors=(
        ("layer1.0.conv1.weight", 0, (0, 6)),
        ("layer2.0.conv1.weight", 0, (3, 4, 15)),
    ),
    edits=(
        Edit("layer1.0.conv1.weight", 0, (0, 6)),
        *norm_edits("layer1.0.bn1", (0, 6)),
        Edit("layer1.0.conv2.weight", 1, (0, 6), read=True),
        Edit("layer2.0.conv1.weight", 0, (3, 4, 15)),
        *norm_edits("layer2.0.bn1", (3, 4, 15)),
        Edit("layer2.0.conv2.weight", 1, (3, 4, 15), read=True),
    ),
    forward=option_a_forward,
)

# A stream channel of stage 1 is channel c + 4 of stage 2 and c + 12 of stage 3: the pads stay.
FIRST, SECOND, THIRD = (1, 5), (5, 9), (13, 17)
OPTION_A_STREAM = Oracle(
    ResNet,
    images(3, 16, 16),
    anchors=(("conv1.weight", 0, FIRST),),
    edits=(
        Edit("conv1.weight", 0, FIRST),
        *norm_edits("bn1", FIRST),
        *(
            edit
            for stage, gone, inputs in ((1, FIRST, FIRST), (2, SECOND, FIRST), (3, THIRD, SECOND))
            for block in (0, 1)
            for edit in (
                Edit(f"layer{stage}.{block}.conv1.weight", 1, gone if block else inputs, read=True),
                Edit(f"layer{stage}.{block}.conv2.weight", 0, gone),
                *norm_edits(f"layer{stage}.{block}.bn2", gone),
            )
        ),
        Edit("linear.weight", 1, THIRD, read=True),
    ),
    forward=option_a_forward,
)


# --- MobileNetV2: expansion, depthwise, projection, residual


def mobilenet_forward(state: State, x: Tensor) -> Tensor:
    """Compute the small MobileNetV2; a depthwise layer has as many groups as channels."""

    def layer(name: str, x: Tensor, stride: int = 1, act: bool = True) -> Tensor:
        weight = state[f"{name}.0.weight"]
        depthwise = weight.shape[1] == 1
        groups = weight.shape[0] if depthwise else 1
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        x = batch_norm(state, f"{name}.1", x)
        return F.relu6(x) if act else x

    x = layer("features.0", x, 2)
    x = layer("features.1.conv.0", x)
    x = layer("features.1.conv.1", x, act=False)
    for index, stride, residual in ((2, 2, False), (3, 1, True), (4, 2, False)):
        y = layer(f"features.{index}.conv.0", x)
        y = layer(f"features.{index}.conv.1", y, stride)
        y = layer(f"features.{index}.conv.2", y, act=False)
        x = x + y if residual else y
    x = layer("features.5", x)
    return linear(state, "classifier.1", x.mean((2, 3)))


def conv_bn_edits(name: str, positions: Sequence[int]) -> tuple[Edit, ...]:
    """Return the edits of the outputs of a ``conv_bn`` block without bias."""
    return (
        Edit(f"{name}.0.weight", 0, tuple(positions)),
        *norm_edits(f"{name}.1", positions),
    )


MOBILENET_ORACLE = Oracle(
    MobileNetV2,
    images(3, 24, 24),
    anchors=(
        ("features.0.0.weight", 0, (7,)),
        ("features.3.conv.0.0.weight", 0, (0, 8, 29)),
        ("features.2.conv.2.0.weight", 0, (2, 3)),
    ),
    edits=(
        # The first block has no expansion: the stem's channels go through its depthwise layer.
        *conv_bn_edits("features.0", (7,)),
        *conv_bn_edits("features.1.conv.0", (7,)),
        Edit("features.1.conv.1.0.weight", 1, (7,), read=True),
        # Hidden channels of the residual block.
        *conv_bn_edits("features.3.conv.0", (0, 8, 29)),
        *conv_bn_edits("features.3.conv.1", (0, 8, 29)),
        Edit("features.3.conv.2.0.weight", 1, (0, 8, 29), read=True),
        # The residual stream: written by blocks 2 and 3, read by blocks 3 and 4.
        *conv_bn_edits("features.2.conv.2", (2, 3)),
        *conv_bn_edits("features.3.conv.2", (2, 3)),
        Edit("features.3.conv.0.0.weight", 1, (2, 3), read=True),
        Edit("features.4.conv.0.0.weight", 1, (2, 3), read=True),
    ),
    forward=mobilenet_forward,
)


# --- ShuffleNetV2: after the shuffle, channel 2 i + j comes from channel i of half j


def shuffle_net() -> nn.Module:
    """Build a stem, a downsampling unit, a plain unit, a last convolution and a head."""
    return nn.Sequential(
        conv_bn(3, 8),
        ShuffleUnit(8, 16, 2),
        ShuffleUnit(16, 16, 1),
        conv_bn(16, 10, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 4),
    )


def shuffle_forward(state: State, x: Tensor) -> Tensor:
    """Compute the shuffle network; the halves are what the weights say."""

    def layer(name: str, x: Tensor, stride: int = 1, act: bool = True) -> Tensor:
        weight = state[f"{name}.0.weight"]
        groups = weight.shape[0] if weight.shape[1] == 1 else 1
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        x = batch_norm(state, f"{name}.1", x)
        return F.relu(x) if act else x

    def shuffled(left: Tensor, right: Tensor) -> Tensor:
        return torch.stack([left, right], dim=2).flatten(1, 2)

    x = layer("0", x)
    left = layer("1.branch1.1", layer("1.branch1.0", x, 2, False))
    right = layer("1.branch2.2", layer("1.branch2.1", layer("1.branch2.0", x), 2, False))
    x = shuffled(left, right)
    taken = state["2.branch2.0.0.weight"].shape[1]
    left, right = x[:, : x.shape[1] - taken], x[:, x.shape[1] - taken :]
    right = layer("2.branch2.2", layer("2.branch2.1", layer("2.branch2.0", right), 1, False))
    x = layer("3", shuffled(left, right))
    return linear(state, "6", x.mean((2, 3)))


SHUFFLE_ORACLE = Oracle(
    shuffle_net,
    images(3, 12, 12),
    # Channel 1 of each branch reaches the passing half of unit 2, channel 6 its other half.
    anchors=(
        ("1.branch1.1.0.weight", 0, (1, 6)),
        ("1.branch2.0.0.weight", 0, (0, 7)),
    ),
    edits=(
        *conv_bn_edits("1.branch1.1", (1, 6)),
        *conv_bn_edits("1.branch2.2", (1, 6)),
        *conv_bn_edits("1.branch2.0", (0, 7)),
        *conv_bn_edits("1.branch2.1", (0, 7)),
        Edit("1.branch2.2.0.weight", 1, (0, 7), read=True),
        # Shuffled, they are channels 2, 3 (passing) and 12, 13 (4, 5 of the other half).
        Edit("2.branch2.0.0.weight", 1, (4, 5), read=True),
        # The next view pairs the passing channels 2, 3 with outputs 2, 3 of the branch.
        *conv_bn_edits("2.branch2.2", (2, 3)),
        Edit("3.0.weight", 1, (4, 5, 6, 7), read=True),
    ),
    forward=shuffle_forward,
)


# --- BERT: heads and head dimensions


def bert_forward(state: State, ids: Tensor, heads: int, scale: float) -> Tensor:
    """Compute the small BERT with the number of heads and the scale given."""
    x = state["word_embedding.weight"][ids] + state["position_embedding.weight"][: ids.shape[1]]
    x = layer_norm(state, "norm", x)
    for index in (0, 1):
        name = f"layers.{index}"

        def split(part: str, x: Tensor, name: str = name) -> Tensor:
            return linear(state, f"{name}.{part}", x).unflatten(-1, (heads, -1)).transpose(1, 2)

        scores = split("query", x) @ split("key", x).mT * scale
        mixed = (scores.softmax(-1) @ split("value", x)).transpose(1, 2).flatten(2)
        x = layer_norm(state, f"{name}.attention_norm", x + linear(state, f"{name}.dense", mixed))
        y = linear(state, f"{name}.output", F.gelu(linear(state, f"{name}.intermediate", x)))
        x = layer_norm(state, f"{name}.output_norm", x + y)
    return linear(state, "classifier", torch.tanh(x[:, 0]))


# Twelve columns are 3 heads x 4 dimensions: head 1 is columns 4 to 7. The layers hold a
# size each, so that both must lose a head here for one ``heads`` to describe them.
BERT_HEAD = Oracle(
    Bert,
    tokens(7, 17),
    anchors=tuple((f"layers.{index}.value.weight", 0, (4, 5, 6, 7)) for index in (0, 1)),
    edits=tuple(
        edit
        for index in (0, 1)
        for edit in (
            *linear_edits(f"layers.{index}.query", (4, 5, 6, 7)),
            *linear_edits(f"layers.{index}.key", (4, 5, 6, 7)),
            *linear_edits(f"layers.{index}.value", (4, 5, 6, 7)),
            Edit(f"layers.{index}.dense.weight", 1, (4, 5, 6, 7), read=True),
        )
    ),
    forward=bert_forward,
    dense_sizes={"heads": 3, "scale": 4**-0.5},
    sizes={"heads": 2, "scale": 4**-0.5},
)

# Dimension 2 of every head: columns 2, 6, 10. One attribute says the size of all three
# projections, so queries, keys and values lose one dimension each; the scale stays.
BERT_HEAD_DIM = Oracle(
    Bert,
    tokens(7, 17),
    anchors=tuple(
        (f"layers.{index}.{part}.weight", 0, positions)
        for index in (0, 1)
        for part, positions in (("query", (2, 6, 10)), ("value", (0, 4, 8)))
    ),
    edits=tuple(
        edit
        for index in (0, 1)
        for edit in (
            Edit(f"layers.{index}.query.weight", 0, (2, 6, 10), read=True),
            Edit(f"layers.{index}.query.bias", 0, (2, 6, 10), read=True),
            *linear_edits(f"layers.{index}.key", (2, 6, 10)),
            *linear_edits(f"layers.{index}.value", (0, 4, 8)),
            Edit(f"layers.{index}.dense.weight", 1, (0, 4, 8), read=True),
        )
    ),
    forward=bert_forward,
    dense_sizes={"heads": 3, "scale": 4**-0.5},
    sizes={"heads": 3, "scale": 4**-0.5},
    # The code divides by the root of 3 now; a factor keeps the division by that of 4.
    scaled={
        f"layers.{i}.query.{part}": (9, (3 / 4) ** 0.5)
        for i in (0, 1)
        for part in ("weight", "bias")
    },
)


# --- Llama: grouped queries and rotary embedding


def llama_forward(state: State, ids: Tensor, kv_heads: int, shared: int, scale: float) -> Tensor:
    """Compute the small Llama; ``shared`` query heads read each key-value head."""

    def rms(name: str, x: Tensor) -> Tensor:
        return state[f"{name}.weight"] * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    x = state["embed_tokens.weight"][ids]
    angles = torch.arange(ids.shape[1], dtype=x.dtype)[:, None] * state["inv_freq"]
    cos, sin = angles.cos(), angles.sin()

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    for index in (0, 1):
        name = f"layers.{index}"
        y = rms(f"{name}.input_norm", x)
        query = linear(state, f"{name}.q_proj", y).unflatten(-1, (kv_heads, shared, -1))
        key = linear(state, f"{name}.k_proj", y).unflatten(-1, (kv_heads, 1, -1))
        value = linear(state, f"{name}.v_proj", y).unflatten(-1, (kv_heads, 1, -1))
        query, key, value = (part.permute(0, 2, 3, 1, 4) for part in (query, key, value))
        scores = rotate(query) @ rotate(key).mT * scale
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(later, -torch.inf).softmax(-1) @ value
        mixed = mixed.permute(0, 3, 1, 2, 4).flatten(2)
        x = x + linear(state, f"{name}.o_proj", mixed)
        y = rms(f"{name}.post_norm", x)
        gate = F.silu(linear(state, f"{name}.gate_proj", y))
        x = x + linear(state, f"{name}.down_proj", gate * linear(state, f"{name}.up_proj", y))
    return linear(state, "lm_head", rms("norm", x))


# Two key-value heads of 6 dimensions, two query heads for each: key-value head 0 is rows
# 0 to 5 of keys and values, and query heads 0 and 1, rows 0 to 11.
LLAMA_KV_HEAD = Oracle(
    Llama,
    tokens(7, 17),
    anchors=tuple((f"layers.{index}.v_proj.weight", 0, tuple(range(6))) for index in (0, 1)),
    edits=tuple(
        edit
        for index in (0, 1)
        for edit in (
            Edit(f"layers.{index}.q_proj.weight", 0, tuple(range(12))),
            Edit(f"layers.{index}.k_proj.weight", 0, tuple(range(6))),
            Edit(f"layers.{index}.v_proj.weight", 0, tuple(range(6))),
            Edit(f"layers.{index}.o_proj.weight", 1, tuple(range(12)), read=True),
        )
    ),
    forward=llama_forward,
    dense_sizes={"kv_heads": 2, "shared": 2, "scale": 6**-0.5},
    sizes={"kv_heads": 1, "shared": 2, "scale": 6**-0.5},
)

# The rotary pair (1, 4) of every head, in queries, keys and the table of frequencies, shared
# by both layers; values have a head dimension of their own, here dimensions 0 and 2.
QUERY_ROWS = tuple(6 * head + i for head in range(4) for i in (1, 4))
KEY_ROWS = QUERY_ROWS[:4]
OUT_COLUMNS = tuple(6 * head + i for head in range(4) for i in (0, 2))
LLAMA_ROTARY = Oracle(
    Llama,
    tokens(7, 17),
    anchors=(
        ("layers.0.q_proj.weight", 0, QUERY_ROWS),
        *((f"layers.{index}.v_proj.weight", 0, OUT_COLUMNS[:4]) for index in (0, 1)),
    ),
    edits=(
        Edit("inv_freq", 0, (1,)),
        *(
            edit
            for index in (0, 1)
            for edit in (
                Edit(f"layers.{index}.q_proj.weight", 0, QUERY_ROWS, read=True),
                Edit(f"layers.{index}.k_proj.weight", 0, KEY_ROWS),
                Edit(f"layers.{index}.v_proj.weight", 0, OUT_COLUMNS[:4]),
                Edit(f"layers.{index}.o_proj.weight", 1, OUT_COLUMNS, read=True),
            )
        ),
    ),
    forward=llama_forward,
    dense_sizes={"kv_heads": 2, "shared": 2, "scale": 6**-0.5},
    sizes={"kv_heads": 2, "shared": 2, "scale": 6**-0.5},
    scaled={f"layers.{index}.q_proj.weight": (16, (4 / 6) ** 0.5) for index in (0, 1)},
)


# --- Swin: windows, shifts, a relative-position table, a head size from the width


def swin_forward(state: State, x: Tensor, heads: int, scale: float) -> Tensor:
    """Compute patches, a plain and a shifted block, norm, mean and head."""
    x = F.conv2d(x, state["patch.weight"], state["patch.bias"], 2).permute(0, 2, 3, 1)
    for index, shift in ((1, 0), (2, 2)):
        name = f"block{index}"
        y = layer_norm(state, f"{name}.norm1", x).roll((-shift, -shift), (1, 2))
        rows = [
            torch.cat([attend(window) for window in row.split(4, 2)], 2)
            for row in y.split(4, 1)
            for attend in [swin_window(state, name, heads, scale)]
        ]
        x = x + torch.cat(rows, 1).roll((shift, shift), (1, 2))
        y = F.gelu(linear(state, f"{name}.mlp.0", layer_norm(state, f"{name}.norm2", x)))
        x = x + linear(state, f"{name}.mlp.2", y)
    return linear(state, "head", layer_norm(state, "norm", x).mean((1, 2)))


def swin_window(state: State, name: str, heads: int, scale: float) -> Callable[[Tensor], Tensor]:
    """Return the attention of one 4 x 4 window, with its bias looked up pair by pair."""
    table = state[f"{name}.bias_table"]
    places = [(i, j) for i in range(4) for j in range(4)]
    bias = torch.stack(
        [torch.stack([table[7 * (i - k + 3) + (j - m + 3)] for k, m in places]) for i, j in places]
    ).permute(2, 0, 1)

    def attend(window: Tensor) -> Tensor:
        qkv = linear(state, f"{name}.qkv", window.flatten(1, 2))
        parts = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1)]
        weights = (parts[0] @ parts[1].mT * scale + bias).softmax(-1)
        mixed = (weights @ parts[2]).transpose(1, 2).flatten(2)
        return linear(state, f"{name}.proj", mixed).view_as(window)

    return attend


def swin_edits(stream: Sequence[int], inner: Sequence[int], heads: Sequence[int]) -> Any:
    """Return the edits for removed stream channels, attention columns and heads."""
    gone = tuple(stream)
    columns = tuple(inner)
    packed = tuple(8 * part + column for part in range(3) for column in columns)
    edits = [
        *linear_edits("patch", gone),
        *norm_edits("norm", gone, False),
        Edit("head.weight", 1, gone),
    ]
    for index in (1, 2):
        name = f"block{index}"
        edits += [
            *norm_edits(f"{name}.norm1", gone, False),
            Edit(f"{name}.qkv.weight", 1, gone),
            *linear_edits(f"{name}.qkv", packed),
            Edit(f"{name}.proj.weight", 1, columns),
            *linear_edits(f"{name}.proj", gone),
            *norm_edits(f"{name}.norm2", gone, False),
            Edit(f"{name}.mlp.0.weight", 1, gone),
            *linear_edits(f"{name}.mlp.2", gone),
        ]
        if heads:
            edits.append(Edit(f"{name}.bias_table", 1, tuple(heads)))
    return tuple(edits)


# The block computes its head size as width // heads (8 // 2 = 4), so one head may only go
# with half of the stream: 4 // 1 = 4.
SWIN_HEAD = Oracle(
    lambda: Swin(merge=False),
    pixels(3, 16, 16),
    anchors=(
        ("patch.weight", 0, (0, 3, 4, 6)),
        *((f"block{index}.bias_table", 1, (0,)) for index in (1, 2)),
    ),
    edits=swin_edits((0, 3, 4, 6), (0, 1, 2, 3), (0,)),
    forward=swin_forward,
    dense_sizes={"heads": 2, "scale": 4**-0.5},
    sizes={"heads": 1, "scale": 4**-0.5},
    masks=False,
)

# Or one dimension of each head with two stream channels: 6 // 2 = 3. One reshape lays out
# queries, keys and values, so all three lose the same dimension.
SWIN_HEAD_DIM = Oracle(
    lambda: Swin(merge=False),
    pixels(3, 16, 16),
    anchors=(
        ("patch.weight", 0, (2, 5)),
        *((f"block{index}.qkv.weight", 0, (1, 5, 9, 13, 17, 21)) for index in (1, 2)),
    ),
    edits=swin_edits((2, 5), (1, 5), ()),
    forward=swin_forward,
    dense_sizes={"heads": 2, "scale": 4**-0.5},
    sizes={"heads": 2, "scale": 4**-0.5},
    # Only the query's six rows of the packed projection.
    scaled={
        f"block{i}.qkv.{part}": (6, (3 / 4) ** 0.5) for i in (1, 2) for part in ("weight", "bias")
    },
    masks=False,
)


# --- A mixture of experts with stacked weights


def moe_forward(state: State, x: Tensor) -> Tensor:
    """Compute the mixture token by token, expert by expert."""
    x = linear(state, "embed", x)
    y = layer_norm(state, "norm", x).flatten(0, 1)
    shares = linear(state, "router", y).softmax(-1)
    rows = []
    for token, share in zip(y, shares, strict=True):
        best = share.argsort(descending=True)[:2]
        mixed = torch.zeros_like(token)
        for expert in best.tolist():
            hidden = F.silu(token @ state["rise"][expert])
            weight = share[expert] / share[best].sum()
            mixed = mixed + weight * (hidden @ state["fall"][expert])
        rows.append(mixed)
    return linear(state, "head", x + torch.stack(rows).view_as(x))


MOE_HIDDEN = Oracle(
    lambda: MoE(stacked=True),
    pixels(5, 6),
    anchors=(("rise", 2, (0, 5, 13)),),
    edits=(Edit("rise", 2, (0, 5, 13)), Edit("fall", 1, (0, 5, 13), read=True)),
    forward=moe_forward,
)
MOE_STREAM = Oracle(
    lambda: MoE(stacked=True),
    pixels(5, 6),
    anchors=(("embed.weight", 0, (1, 8)),),
    edits=(
        *linear_edits("embed", (1, 8)),
        *norm_edits("norm", (1, 8), False),
        Edit("router.weight", 1, (1, 8)),
        Edit("rise", 1, (1, 8)),
        Edit("fall", 2, (1, 8)),
        Edit("head.weight", 1, (1, 8)),
    ),
    forward=moe_forward,
    masks=False,
)
# Whom the router may choose among: its share is taken of the experts that are left.
MOE_EXPERT = Oracle(
    lambda: MoE(stacked=True),
    pixels(5, 6),
    anchors=(("router.weight", 0, (1,)),),
    edits=(Edit("router.weight", 0, (1,)), Edit("rise", 0, (1,)), Edit("fall", 0, (1,))),
    forward=moe_forward,
    masks=False,
)

ORACLES: dict[str, Oracle] = {
    "vgg": VGG_ORACLE,
    "option_a_inner": OPTION_A_INNER,
    "option_a_stream": OPTION_A_STREAM,
    "mobilenet_v2": MOBILENET_ORACLE,
    "shufflenet": SHUFFLE_ORACLE,
    "bert_head": BERT_HEAD,
    "bert_head_dim": BERT_HEAD_DIM,
    "llama_kv_head": LLAMA_KV_HEAD,
    "llama_rotary": LLAMA_ROTARY,
    "swin_head": SWIN_HEAD,
    "swin_head_dim": SWIN_HEAD_DIM,
    "moe_hidden": MOE_HIDDEN,
    "moe_stream": MOE_STREAM,
    "moe_expert": MOE_EXPERT,
}
