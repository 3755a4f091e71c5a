"""Hugging Face models: true configs, tied weights, ``save_pretrained`` or the reason why not."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import LIMIT, outputs, relative_error
from networks import randomise
from torch import Tensor, nn
from zoo.catalogue import (
    CATALOGUE,
    LLAMA,
    Only,
    hugging_face,
    import_transformers,
    input_ids,
)

import secateur
from secateur.errors import InputError
from secateur.graph import Group
from secateur.models import load_model
from secateur.planning import make_plan
from secateur.study.inspection import inspected

transformers = pytest.importorskip("transformers", reason="Hugging Face models need transformers")

# Warnings of other libraries about themselves are none of ours.
pytestmark = pytest.mark.filterwarnings("default")

Chosen = Callable[[Group], bool]


def dense(name: str) -> nn.Module:
    return randomise(CATALOGUE[f"transformers/{name}"].build().double().eval())


def halved(model: nn.Module, inputs: Any, chosen: Chosen) -> tuple[secateur.Plan, Any]:
    """Cut half of every chosen group, and prove the cut."""
    graph = secateur.trace(model, inputs)
    gone = {g.name: tuple(range(g.size // 2)) for g in graph.groups if g.size > 1 and chosen(g)}
    plan = make_plan(graph, gone)
    pruned = secateur.cut(model, plan)
    check = secateur.verify(model, pruned, plan, inputs)
    assert check.ok, check
    return plan, pruned


def whole_heads(group: Group) -> bool:
    """Tell the groups that a config's widths and heads can say together."""
    return group.kind != "head_dim"


def inner(model: Any) -> Any:
    return model.model if isinstance(model, Only) else model


def loads_the_same(pruned: Any, folder: Path, inputs: Any, auto: str) -> nn.Module:
    """Save, check what came of it, and load it as a user would."""
    saved = secateur.save_pretrained(pruned, folder, inputs)
    assert saved == secateur.Saved(folder, "transformers", "")
    kind = getattr(import_transformers(), auto)
    again: nn.Module = kind.from_pretrained(folder, dtype="auto").eval()
    # Which code runs the experts is no size, and the default one has no float64.
    again.config._experts_implementation = pruned.config._experts_implementation
    assert type(again) is type(pruned)
    assert relative_error(outputs(again, inputs), outputs(pruned, inputs)) <= LIMIT
    return again


FAST = {
    "bert": (
        "AutoModelForSequenceClassification",
        {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2},
    ),
    "llama": (
        "AutoModelForCausalLM",
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
        },
    ),
    "gpt2": ("AutoModelForCausalLM", {"n_embd": 16, "n_inner": 24, "n_head": 2}),
    "vit": (
        "AutoModelForImageClassification",
        {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2},
    ),
}
SLOW = {
    "roberta": "AutoModelForSequenceClassification",
    "distilbert": "AutoModelForSequenceClassification",
    "qwen2": "AutoModelForCausalLM",
    "mistral": "AutoModelForCausalLM",
    "mixtral": "AutoModelForCausalLM",
    "beit": "AutoModelForImageClassification",
    "deit": "AutoModelForImageClassification",
    "swin": "AutoModelForImageClassification",
    "resnet": "AutoModelForImageClassification",
    "convnext": "AutoModelForImageClassification",
    "clip": "AutoModel",
    "whisper": "AutoModelForSpeechSeq2Seq",
}


def widths_and_heads(name: str, auto: str, folder: Path) -> Any:
    model = dense(name)
    before = copy.deepcopy(inner(model).config.to_dict())
    inputs = CATALOGUE[f"transformers/{name}"].inputs(2)
    plan, pruned = halved(model, inputs, whole_heads)
    assert [note for note in plan.notes if not note.startswith("traced with real tensors")] == []
    assert inner(model).config.to_dict() == before  # the dense model's own config stays
    loads_the_same(inner(pruned), folder, inputs, auto)
    return inner(pruned).config


@pytest.mark.parametrize("name", FAST)
def test_widths_and_heads_are_in_the_config(name: str, tmp_path: Path) -> None:
    auto, expected = FAST[name]
    config = widths_and_heads(name, auto, tmp_path / "saved")
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.zoo
@pytest.mark.parametrize("name", SLOW)
def test_widths_and_heads_of_more_families(name: str, tmp_path: Path) -> None:
    widths_and_heads(name, SLOW[name], tmp_path / "saved")


@pytest.mark.zoo
def test_every_group_of_mamba_is_in_the_config(tmp_path: Path) -> None:
    inputs = CATALOGUE["transformers/mamba"].inputs(2)
    _, pruned = halved(dense("mamba"), inputs, lambda group: True)
    config = pruned.config
    assert (config.hidden_size, config.intermediate_size, config.state_size) == (16, 32, 4)
    loads_the_same(pruned, tmp_path / "saved", inputs, "AutoModelForCausalLM")


@pytest.mark.zoo
def test_heads_and_neurons_of_t5_with_its_copies_of_the_config(tmp_path: Path) -> None:
    inputs = CATALOGUE["transformers/t5"].inputs(2)
    _, pruned = halved(dense("t5"), inputs, lambda g: g.kind in ("head", "neuron", "head_dim"))
    t5 = pruned.model
    for config in (t5.config, t5.encoder.config, t5.decoder.config):
        assert (config.d_ff, config.num_heads, config.d_kv, config.d_model) == (24, 2, 4, 32)
    again = loads_the_same(t5, tmp_path / "saved", inputs, "AutoModelForSeq2SeqLM")
    assert again.shared.weight is again.encoder.embed_tokens.weight


def test_a_number_that_no_config_can_say_is_named_and_the_checkpoint_tells(tmp_path: Path) -> None:
    inputs = input_ids(9)(2)
    model = dense("bert")
    plan, pruned = halved(model, inputs, lambda group: group.kind == "head")
    assert "attention.self.query.weight" in plan.notes[0]
    assert pruned.config.to_dict() == model.config.to_dict()
    saved = secateur.save_pretrained(pruned, tmp_path / "saved", inputs)
    assert saved.kind == "secateur"
    assert "attention.self.query.weight" in saved.reason
    note = json.loads((tmp_path / "saved" / "model.json").read_text())["note"]
    assert saved.reason in note
    again = secateur.load(tmp_path / "saved")
    assert relative_error(outputs(again, inputs), outputs(pruned, inputs)) == 0


def test_layers_of_different_sizes_are_named() -> None:
    model, inputs = dense("llama"), input_ids(9)(2)
    graph = secateur.trace(model, inputs)
    first, second = [g.name for g in graph.groups if g.kind == "neuron"]
    plan = make_plan(graph, {first: (0,), second: (0, 1)})
    assert "intermediate_size is one number" in plan.notes[0]
    assert "needs 47" in plan.notes[0]
    assert "needs 46" in plan.notes[0]
    assert secateur.cut(model, plan).config.intermediate_size == 48


def test_right_shapes_are_no_proof(tmp_path: Path) -> None:
    """The head dimension's root is a number that the config's own model would compute anew."""
    inputs = CATALOGUE["transformers/vit"].inputs(2)
    _, pruned = halved(dense("vit"), inputs, lambda group: group.kind == "head_dim")
    assert pruned.config.head_dim == 4
    saved = secateur.save_pretrained(pruned, tmp_path / "saved", inputs)
    assert saved.kind == "secateur"
    assert "attention.scaling is 0.353553, and a model of the config has 0.5" in saved.reason


class Scaled(nn.Module):
    """Stands for a forward pass that reads a size from the config."""

    def __init__(self, embedding: nn.Embedding, config: Any) -> None:
        super().__init__()
        self.weight = embedding.weight
        self.config = config

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight) * self.config.intermediate_size


def test_a_config_that_the_forward_pass_reads_stays(tmp_path: Path) -> None:
    class Reading(import_transformers().LlamaForCausalLM):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model.embed_tokens = Scaled(self.model.embed_tokens, config)

    inputs = input_ids(9)(2)
    model = randomise(Reading(import_transformers().LlamaConfig(**LLAMA)).double().eval())
    plan, pruned = halved(model, inputs, lambda group: group.kind == "neuron")
    assert plan.notes == ("config stays as it was: the forward pass computes with its sizes",)
    assert pruned.config.intermediate_size == 48


def test_equal_sizes_are_told_apart(tmp_path: Path) -> None:
    """Hidden width, intermediate width and heads times their dimension are all 32."""
    build = hugging_face("LlamaForCausalLM", "LlamaConfig", **{**LLAMA, "intermediate_size": 32})
    inputs = input_ids(9)(2)
    model = randomise(build().double().eval())
    _, pruned = halved(model, inputs, lambda group: group.kind == "neuron")
    assert (pruned.config.intermediate_size, pruned.config.hidden_size) == (16, 32)
    loads_the_same(pruned, tmp_path / "saved", inputs, "AutoModelForCausalLM")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_tokens_with_a_cache_are_the_tokens_without(name: str) -> None:
    inputs = input_ids(9)(2)
    _, pruned = halved(dense(name), inputs, whole_heads)
    asked = {
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    cached = pruned.generate(**inputs, **asked, use_cache=True)
    plain = pruned.generate(**inputs, **asked, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    assert cached.sequences.shape == (2, 17)
    assert cached.past_key_values.layers[0].keys.shape[1] == (1 if name == "llama" else 2)
    assert relative_error(list(cached.logits), list(plain.logits)) <= LIMIT


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    inputs = input_ids(9)(2)
    model = dense("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    _, pruned = halved(model, inputs, whole_heads)
    assert pruned.lm_head.weight is pruned.transformer.wte.weight
    again = loads_the_same(pruned, tmp_path / "saved", inputs, "AutoModelForCausalLM")
    assert again.lm_head.weight is again.transformer.wte.weight
    secateur.save(pruned, tmp_path / "own")
    own: Any = secateur.load(tmp_path / "own")
    assert own.lm_head.weight is own.transformer.wte.weight
    assert own.config.n_embd == 16


def test_a_model_that_is_not_of_transformers_gets_our_checkpoint(tmp_path: Path) -> None:
    saved = secateur.save_pretrained(nn.Linear(3, 2), tmp_path / "net", torch.zeros(1, 3))
    assert (saved.kind, saved.reason) == ("secateur", "Linear is no transformers model")
    assert isinstance(secateur.load(tmp_path / "net"), nn.Linear)


def test_two_forms_never_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"folder must be empty .* has config\.json"):
        secateur.save_pretrained(nn.Linear(3, 2), tmp_path, torch.zeros(1, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_plans_keep_the_configs_through_json() -> None:
    inputs = CATALOGUE["transformers/vit"].inputs(2)
    plan, _ = halved(dense("vit"), inputs, whole_heads)
    again = secateur.Plan.from_json(plan.to_json())
    assert again == plan
    assert again.attributes["config.hidden_size"] == 16


class TestByName:
    """``hf:FOLDER``, as the command line takes it; nothing is downloaded."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        model: Any = CATALOGUE["transformers/llama"].build()
        model.save_pretrained(tmp_path / "llama")
        return tmp_path / "llama"

    def test_the_class_of_the_config(self, folder: Path) -> None:
        model = load_model(f"hf:{folder}")
        assert type(model).__name__ == "LlamaForCausalLM"
        assert not any(p.is_meta for p in model.parameters())

    def test_another_class_and_field(self, folder: Path) -> None:
        asked = {"architecture": "AutoModel", "num_hidden_layers": 1}
        model: Any = load_model(f"hf:{folder}", asked)
        assert (type(model).__name__, len(model.layers)) == ("LlamaModel", 1)

    def test_a_config_alone_is_enough_for_shapes(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for asked in ({}, {"architecture": "AutoModelForCausalLM"}):
            model = load_model(f"hf:{folder}", asked, meta=True)
            assert all(p.is_meta for p in model.parameters())
            assert type(model).__name__ == "LlamaForCausalLM"

    def test_inspect(self, folder: Path) -> None:
        found = inspected(f"hf:{folder}", {}, None, tokens=8, meta=True)
        kinds = {group["kind"] for group in found["groups"]}
        assert kinds == {"embedding", "kv_head", "head", "head_dim", "neuron"}
        neurons = [group for group in found["groups"] if group["kind"] == "neuron"]
        assert [group["size"] for group in neurons] == [48, 48]
        assert neurons[0]["into"] == ["model.layers.0.mlp.down_proj"]
        json.dumps(found)

    def test_inspect_a_model_with_a_decoder(self, tmp_path: Path) -> None:
        t5: Any = CATALOGUE["transformers/t5"].build()
        t5.model.save_pretrained(tmp_path / "t5")
        found = inspected(f"hf:{tmp_path / 't5'}", {}, None, tokens=8)
        assert sum(group["kind"] == "head" for group in found["groups"]) > 1

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"model 'hf:.*nowhere' cannot be loaded: OSError"):
            load_model(f"hf:{tmp_path / 'nowhere'}")

    def test_no_such_architecture(self, folder: Path) -> None:
        with pytest.raises(InputError, match="did you mean 'LlamaForCausalLM'"):
            load_model(f"hf:{folder}", {"architecture": "LlamaForCasualLM"})


@pytest.mark.slow
def test_seven_billion_parameters_without_weights() -> None:
    """In a process of its own, so that its memory is its own."""
    script = Path(__file__).parent.parent / "benchmarks" / "large.py"
    told = subprocess.run(
        [sys.executable, str(script), "--json"], capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(told.splitlines()[-1])
    assert found["dense"] == 6_738_415_616
    assert found["pruned"] == found["planned"] < found["dense"] / 3
    assert found["config"]["hidden_size"] == 2048
    assert found["notes"] == []
    # The processor's seconds, with room for a slow one: the benchmark tells them exactly (about 5).
    assert sum(cpu for _, cpu in found["steps"].values()) < 120
    assert found["peak_gb"] < 2


def test_hooks_that_transformers_installs_for_hidden_states_stand_in_no_ones_way(
    tmp_path: Path,
) -> None:
    whole: Any = dense("gpt2").float()
    model: Any = whole.model if isinstance(whole, Only) else whole
    inputs = input_ids(6)(2)
    wanted = model(**inputs, output_hidden_states=True).hidden_states
    secateur.save(model, tmp_path)
    # A process that never made such a model has no entry of its class.
    importlib.import_module("transformers.utils.output_capturing")._CAN_RECORD_REGISTRY.clear()
    loaded: Any = secateur.load(tmp_path)
    found = loaded(**inputs, output_hidden_states=True).hidden_states
    assert len(found) == len(wanted) > 1
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
