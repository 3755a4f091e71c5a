"""Real architectures as users export them: how to build each, and an example of its inputs.

Images of 64 pixels, small configurations of transformers; weights are random. Token networks get
two sentences, one with padding, as a tokenizer gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from networks import randomise
from torch import Tensor, nn
from zoo.catalogue import BERT, CATALOGUE, LLAMA, VOCABULARY, hugging_face, input_ids

import secateur
from secateur.deployment.calls import drawn
from secateur.graph.tracing import run_model


class ExportCase(NamedTuple):
    """A network in float32.

    ``left_out`` is what its file cannot have; ``include`` names dense layers that only their
    library knows, whose weights may be at zero too.
    """

    build: Callable[[], nn.Module]
    example: Any
    left_out: tuple[str, ...] = ()
    include: tuple[str, ...] = ()

    def dense(self) -> nn.Module:
        """The network with random weights, none of them at zero.

        Batch norms have the statistics of the activations, as in a trained network: else what
        tells one sample from another is lost on the way through a deep one.
        """
        torch.manual_seed(0)
        model = randomise(self.build())
        norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        if norms:
            with torch.no_grad():
                run_model(model.train(), drawn(self.example, 16))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        return model.eval()

    def halved(self, dense: nn.Module) -> secateur.Pruned[nn.Module]:
        """Half of every group is cut, by l2."""
        return secateur.prune(dense, self.example, sparsity=0.5)

    def zeroed(self, dense: nn.Module) -> nn.Module:
        """Half of its single weights are zero, by l1."""
        return secateur.sparsify(dense, "l1", 0.5, include=self.include).model


def as_float32(value: Any) -> Any:
    """Return inputs of the zoo, which proves in float64, as networks come."""
    if isinstance(value, dict):
        return {name: as_float32(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(as_float32(part) for part in value)
    return value.float() if value.is_floating_point() else value


def from_zoo(name: str) -> ExportCase:
    case = CATALOGUE[name]
    return ExportCase(case.build, as_float32(case.inputs(2)))


def sentences(**more: Any) -> dict[str, Any]:
    """Tokens of two sentences and their mask; the second is shorter."""
    ids: Tensor = input_ids(9)(2)["input_ids"]
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, **more}


GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 48,
    "n_positions": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Its dense layers are a class of transformers, Conv1D.
GPT2_LAYERS = ("*.attn.c_*", "*.mlp.c_*")
CACHED = {name: value for name, value in LLAMA.items() if name != "use_cache"}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
TARGET = input_ids(6)(2)["input_ids"]

VISION = (
    "torchvision/efficientnet_b0",
    "torchvision/mobilenet_v3_small",
    "torchvision/vit_b_16",
    "torchvision/convnext_tiny",
    "torchvision/swin_t",
    "torchvision/densenet121",
    "transformers/vit",
    "transformers/resnet",
    "transformers/efficientnet",
    "transformers/swin",
    "transformers/segformer",
    "transformers/detr",
)
OTHERS = (
    "transformers/clip",
    "transformers/whisper",
    "transformers/wav2vec2",
    "transformers/mamba",
    "transformers/mixtral",
    "transformers/mixtral_batched",
)

CASES: dict[str, ExportCase] = {
    **{name: from_zoo(name) for name in VISION},
    "transformers/bert": ExportCase(
        hugging_face("BertForSequenceClassification", "BertConfig", **BERT),
        sentences(token_type_ids=torch.tensor([[0] * 4 + [1] * 5, [0] * 9])),
    ),
    "transformers/bert, hidden states": ExportCase(
        hugging_face("BertForSequenceClassification", "BertConfig", **BERT),
        sentences(output_hidden_states=True),
    ),
    "transformers/bert, labels": ExportCase(
        hugging_face("BertForSequenceClassification", "BertConfig", **BERT),
        sentences(labels=torch.tensor([1, 2])),
    ),
    "transformers/distilbert": ExportCase(CATALOGUE["transformers/distilbert"].build, sentences()),
    "transformers/gpt2": ExportCase(
        hugging_face("GPT2LMHeadModel", "GPT2Config", **GPT2),
        sentences(use_cache=False),
        include=GPT2_LAYERS,
    ),
    "transformers/gpt2, cache": ExportCase(
        hugging_face("GPT2LMHeadModel", "GPT2Config", **GPT2),
        sentences(),
        ("past_key_values (DynamicCache)",),
        GPT2_LAYERS,
    ),
    "transformers/gpt2, classifier": ExportCase(
        hugging_face("GPT2ForSequenceClassification", "GPT2Config", **GPT2, num_labels=7),
        sentences(use_cache=False),
        include=GPT2_LAYERS,
    ),
    "transformers/llama": ExportCase(CATALOGUE["transformers/llama"].build, sentences()),
    "transformers/llama, cache": ExportCase(
        hugging_face("LlamaForCausalLM", "LlamaConfig", **CACHED),
        sentences(),
        ("past_key_values (DynamicCache)",),
    ),
    "transformers/t5": ExportCase(
        hugging_face("T5ForConditionalGeneration", "T5Config", **T5),
        sentences(decoder_input_ids=TARGET, use_cache=False),
    ),
    "transformers/t5, cache": ExportCase(
        hugging_face("T5ForConditionalGeneration", "T5Config", **T5),
        sentences(decoder_input_ids=TARGET),
        ("past_key_values (EncoderDecoderCache)",),
    ),
    **{name: from_zoo(name) for name in OTHERS},
}
