"""Mixtures of experts as transformers runs them by default, in their own precision.

Their grouped products have no float64, so the whole contract of ``test_zoo`` cannot run.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exactness import reached, relative_error
from networks import randomise

import secateur
from zoo.catalogue import LLAMA, hugging_face, input_ids

CHOICE = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
}
MIXTURES: dict[str, dict[str, Any]] = {
    "Mixtral": LOCAL,
    "Qwen2Moe": {**CHOICE, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    "Qwen3Moe": {**CHOICE, "moe_intermediate_size": 24, "head_dim": 8},
    "Olmoe": CHOICE,
    "GraniteMoe": LOCAL,
    "GptOss": {**LOCAL, "head_dim": 8, "sliding_window": 8, "rope_parameters": None},
    "DeepseekV3": {**LATENT, "n_group": 4, "topk_group": 2},
    "DeepseekV2": LATENT,
    "Phimoe": LOCAL,
}


@pytest.mark.filterwarnings("default")
@pytest.mark.zoo
@pytest.mark.parametrize("name", MIXTURES)
def test_the_default_experts_are_reached_as_eager_ones(name: str) -> None:
    settings = {**LLAMA, **MIXTURES[name]}
    build = hugging_face(f"{name}ForCausalLM", f"{name}Config", **settings)
    model, inputs = randomise(build().eval()), input_ids(9)(2)
    graph = secateur.trace(model, inputs)
    assert any(node.op == "aten._grouped_mm" for node in graph.program.nodes)
    eager = hugging_face(
        f"{name}ForCausalLM", f"{name}Config", **settings, experts_implementation="eager"
    )
    wanted = secateur.trace(randomise(eager().eval()), inputs)
    assert {(g.name, g.size) for g in graph.groups} >= {(g.name, g.size) for g in wanted.groups}
    assert reached(graph) >= reached(wanted) > 0.99
    for sparsity in (0.3, 0.5):
        scores = secateur.score(graph, "random", seed=1)
        plan = secateur.allocate(graph, scores, sparsity=sparsity)
        pruned = secateur.cut(model, plan)
        check = secateur.verify(model, pruned, plan, inputs)
        assert check.ok
        assert check.changed
        masked = secateur.mask(model, plan)
        for example in (inputs, input_ids(14)(3)):
            with torch.no_grad():
                found, reference = pruned(**example), masked(**example)
            assert relative_error([found.logits], [reference.logits]) < 1e-4
