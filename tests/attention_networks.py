"""Small networks with attention, experts or recurrence, for ``networks.NETWORKS``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pixels(*shape: int) -> Callable[[int], Any]:
    """Return a factory of one-tuple float inputs of the given shape without the batch."""

    def make(batch: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(sum(shape) + batch)
        return (torch.randn(batch, *shape, generator=generator, dtype=torch.float64),)

    return make


def tokens(length: int, vocabulary: int) -> Callable[[int], Any]:
    """Return a factory of one-tuple token inputs."""

    def make(batch: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(length + batch)
        return (torch.randint(0, vocabulary, (batch, length), generator=generator),)

    return make


class BertLayer(nn.Module):
    """BERT: post-norm self attention by explicit softmax, then a GELU MLP."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.query = nn.Linear(width, heads * head_dim)
        self.key = nn.Linear(width, heads * head_dim)
        self.value = nn.Linear(width, heads * head_dim)
        self.dense = nn.Linear(heads * head_dim, width)
        self.attention_norm = nn.LayerNorm(width)
        self.intermediate = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, width)
        self.output_norm = nn.LayerNorm(width)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_dim).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.value(x)
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.head_dim)
        mixed = torch.matmul(scores.softmax(-1), self.split(value)).permute(0, 2, 1, 3)
        mixed = mixed.reshape(x.shape[0], x.shape[1], self.heads * self.head_dim)
        x = self.attention_norm(x + self.dense(mixed))
        return self.output_norm(x + self.output(F.gelu(self.intermediate(x))))


class Bert(nn.Module):
    """Word and position embeddings, two BERT layers, a classifier of the first token."""

    def __init__(
        self, width: int = 12, heads: int = 3, head_dim: int = 4, hidden: int = 20
    ) -> None:
        super().__init__()
        self.word_embedding = nn.Embedding(17, width)
        self.position_embedding = nn.Embedding(16, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(BertLayer(width, heads, head_dim, hidden) for _ in range(2))
        self.register_buffer("positions", torch.arange(16)[None], persistent=False)
        self.classifier = nn.Linear(width, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word_embedding(ids) + self.position_embedding(self.positions[:, : ids.shape[1]])
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(torch.tanh(x[:, 0]))


class ViTBlock(nn.Module):
    """Pre-norm block as in timm: fused qkv, ``reshape(B, N, 3, heads, head_dim)``."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = width // heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.gamma = nn.Parameter(1e-5 * torch.ones(width))

    def attend(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = mixed.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim)
        return self.proj(mixed)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.attend(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Patches, a class token, learned positions, two blocks, norm and head."""

    def __init__(self, width: int = 12, heads: int = 3, hidden: int = 20) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.Sequential(*(ViTBlock(width, heads, hidden) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_embed.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class RMSNorm(nn.Module):
    """Root-mean-square norm written out, as in Llama."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotate_half(x: Tensor) -> Tensor:
    """Turn the pairs (i, i + half) by a quarter."""
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class LlamaLayer(nn.Module):
    """Grouped-query attention with rotary embedding, then a gated MLP."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.groups = heads // kv_heads
        self.input_norm = RMSNorm(width)
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)
        self.post_norm = RMSNorm(width)
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def repeat(self, x: Tensor) -> Tensor:
        batch, kv_heads, length, head_dim = x.shape
        x = x[:, :, None].expand(batch, kv_heads, self.groups, length, head_dim)
        return x.reshape(batch, kv_heads * self.groups, length, head_dim)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length = x.shape[:2]
        shape = (batch, length, -1, self.head_dim)
        query = self.q_proj(x).view(shape).transpose(1, 2)
        key = self.k_proj(x).view(shape).transpose(1, 2)
        value = self.v_proj(x).view(shape).transpose(1, 2)
        query = query * cos + rotate_half(query) * sin
        key = self.repeat(key * cos + rotate_half(key) * sin)
        scores = query @ key.transpose(2, 3) * self.head_dim**-0.5
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        mixed = (weights @ self.repeat(value)).transpose(1, 2).reshape(batch, length, -1)
        return self.o_proj(mixed)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attend(self.input_norm(x), cos, sin)
        y = self.post_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Llama(nn.Module):
    """Two layers; rotary tables from the head dimension; logits of every token."""

    def __init__(
        self,
        width: int = 12,
        heads: int = 4,
        kv_heads: int = 2,
        head_dim: int = 6,
        hidden: int = 20,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(17, width)
        self.layers = nn.ModuleList(
            LlamaLayer(width, heads, kv_heads, head_dim, hidden) for _ in range(2)
        )
        frequencies = 100.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        self.register_buffer("inv_freq", frequencies, persistent=False)
        self.norm = RMSNorm(width)
        self.lm_head = nn.Linear(width, 17, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        positions = torch.arange(ids.shape[1], device=ids.device, dtype=x.dtype)
        angles = torch.outer(positions, self.inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return self.lm_head(self.norm(x))


class SwinBlock(nn.Module):
    """Windows of ``window`` x ``window``, shifted by roll, with a relative-position table."""

    def __init__(self, width: int, heads: int, window: int, shift: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        grid = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
        away = grid[:, :, None] - grid[:, None] + window - 1
        self.register_buffer("index", away[0] * (2 * window - 1) + away[1], persistent=False)

    def attend(self, x: Tensor) -> Tensor:
        windows, area, width = x.shape
        qkv = self.qkv(x).reshape(windows, area, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query = query * (width // self.heads) ** -0.5
        scores = query @ key.transpose(-2, -1)
        bias = self.bias_table[self.index.view(-1)].view(area, area, -1).permute(2, 0, 1)
        mixed = (scores + bias.contiguous().unsqueeze(0)).softmax(-1) @ value
        return self.proj(mixed.transpose(1, 2).reshape(windows, area, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        size = self.window
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = y.view(batch, height // size, size, width // size, size, channels)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, channels)
        y = self.attend(y)
        y = y.view(batch, height // size, width // size, size, size, channels)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Every 2 x 2 patches become one of twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Swin(nn.Module):
    """Plain and shifted block, (patch merging and one more block,) norm, mean and head."""

    def __init__(
        self, width: int = 8, heads: int = 2, hidden: int = 14, merge: bool = True
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 2, 2)
        self.block1 = SwinBlock(width, heads, 4, 0, hidden)
        self.block2 = SwinBlock(width, heads, 4, 2, hidden)
        self.rest = nn.Sequential()
        if merge:
            self.rest = nn.Sequential(
                PatchMerging(width), SwinBlock(2 * width, heads * 2, 4, 0, hidden)
            )
            width *= 2
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        x = self.rest(self.block2(self.block1(x)))
        return self.head(self.norm(x).mean((1, 2)))


class MoE(nn.Module):
    """A router mixes the best two experts; experts are modules or one stacked weight."""

    def __init__(self, stacked: bool, width: int = 10, experts: int = 4, hidden: int = 14) -> None:
        super().__init__()
        self.stacked = stacked
        self.embed = nn.Linear(6, width)
        self.norm = nn.LayerNorm(width)
        self.router = nn.Linear(width, experts, bias=False)
        if stacked:
            self.rise = nn.Parameter(torch.zeros(experts, width, hidden))
            self.fall = nn.Parameter(torch.zeros(experts, hidden, width))
        else:
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))
                for _ in range(experts)
            )
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x).flatten(0, 1)
        best, chosen = self.router(y).softmax(-1).topk(2, dim=-1)
        if self.stacked:
            gates = torch.zeros(y.shape[0], self.rise.shape[0], dtype=y.dtype, device=y.device)
            gates = gates.scatter(1, chosen, best / best.sum(-1, keepdim=True))
            hidden = F.silu(torch.bmm(y.expand(self.rise.shape[0], -1, -1), self.rise))
            mixed = torch.einsum("end,ne->nd", torch.bmm(hidden, self.fall), gates)
        else:
            mixed = torch.zeros_like(y)
            for index, expert in enumerate(self.experts):
                gate = (best * (chosen == index)).sum(-1, keepdim=True)
                mixed = mixed + gate * expert(y)
        return self.head(x + mixed.view_as(x))


class Conv1D(nn.Module):
    """A dense layer with its weight stored as [in, out], as in GPT-2."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


class GPT2Block(nn.Module):
    """Pre-norm causal attention with a fused projection split by ``split_size``."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = width // heads
        self.split_size = width
        self.ln_1 = nn.LayerNorm(width)
        self.c_attn = Conv1D(3 * width, width)
        self.c_proj = Conv1D(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc = Conv1D(hidden, width)
        self.mlp_proj = Conv1D(width, hidden)

    def attend(self, x: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(*y.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)

        query, key, value = map(heads, self.c_attn(x).split(self.split_size, dim=2))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = mixed.transpose(1, 2).contiguous()
        return self.c_proj(mixed.reshape(*mixed.shape[:-2], -1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.ln_1(x))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """Token and position embeddings, two blocks, tied output projection."""

    def __init__(self, width: int = 12, heads: int = 3, hidden: int = 20) -> None:
        super().__init__()
        self.wte_embed = nn.Embedding(17, width)
        self.wpe_embed = nn.Embedding(16, width)
        self.h = nn.ModuleList(GPT2Block(width, heads, hidden) for _ in range(2))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, 17, bias=False)
        self.lm_head.weight = self.wte_embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte_embed(ids) + self.wpe_embed(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class TorchAttention(nn.Module):
    """``nn.MultiheadAttention`` for self and for cross attention of two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 12)
        self.memory = nn.Linear(6, 10)
        self.own = nn.MultiheadAttention(12, 3, batch_first=True)
        self.norm = nn.LayerNorm(12)
        self.cross = nn.MultiheadAttention(12, 4, kdim=10, vdim=10, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.memory(x)
        x = self.embed(x)
        x = self.norm(x + self.own(x, x, x, need_weights=False)[0])
        x = x + self.cross(x, memory, memory)[0]
        return self.head(x.mean(1))


class Encoder(nn.Module):
    """``nn.TransformerEncoder`` and a ``nn.TransformerDecoderLayer`` that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 12)
        layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoderLayer(12, 2, 18, batch_first=True, norm_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.decoder(x[:, :2], self.encoder(x)))


class Recurrent(nn.Module):
    """A dense front, a recurrent layer (``nn.LSTM`` or ``nn.GRU``) and a dense head."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], two_ways: bool = False) -> None:
        super().__init__()
        self.front = nn.Linear(5, 10)
        self.core = kind(10, 8, num_layers=2, batch_first=True, bidirectional=two_ways)
        self.head = nn.Linear(16 if two_ways else 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.core(torch.relu(self.front(x)))
        return self.head(x[:, -1])


ATTENTION_NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "bert": (Bert, tokens(7, 17)),
    "vit": (ViT, pixels(3, 16, 16)),
    "llama": (Llama, tokens(7, 17)),
    "llama_tied": (lambda: Llama(tied=True), tokens(7, 17)),
    "swin": (Swin, pixels(3, 16, 16)),
    "moe_modules": (lambda: MoE(stacked=False), pixels(5, 6)),
    "moe_stacked": (lambda: MoE(stacked=True), pixels(5, 6)),
    "gpt2": (GPT2, tokens(7, 17)),
    "torch_attention": (TorchAttention, pixels(5, 6)),
    "torch_encoder": (Encoder, pixels(5, 6)),
    "lstm": (lambda: Recurrent(nn.LSTM), pixels(6, 5)),
    "lstm_two_ways": (lambda: Recurrent(nn.LSTM, two_ways=True), pixels(6, 5)),
    "gru": (lambda: Recurrent(nn.GRU), pixels(6, 5)),
}
