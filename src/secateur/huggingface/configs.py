"""What a config builds: its integers, and the sizes of a model made from it without memory."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from secateur.graph.copies import integer_attributes, named_tensors

Field: TypeAlias = "tuple[str | int, ...]"
"""Where a config holds a number: ("text_config", "hidden_size") or ("hidden_sizes", 1)."""
Place: TypeAlias = "tuple[str, int]"
"""A tensor's name and dimension, or an attribute's path and -1."""

# Numbers that name something, and size nothing.
_NAMES = ("_id", "_ids", "_version")
_TABLES = frozenset({"id2label", "label2id", "task_specific_params", "per_layer_config", "dtype"})


def pretrained_class() -> type[nn.Module] | None:
    """Return the base class of Hugging Face models, None while nobody has imported it."""
    library = sys.modules.get("transformers.modeling_utils")
    found = getattr(library, "PreTrainedModel", None)
    return found if isinstance(found, type) else None


def pretrained_models(model: nn.Module, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the outermost Hugging Face models inside ``model``, with their paths."""
    kind = pretrained_class()
    if kind is None:
        return
    if isinstance(model, kind):
        yield path, model
        return
    for name, child in model.named_children():
        yield from pretrained_models(child, f"{path}.{name}" if path else name)


def configs_of(model: nn.Module) -> dict[str, Any]:
    """Return every config object that modules hold, by the path of its first holder."""
    found: dict[int, tuple[str, Any]] = {}
    for name, module in model.named_modules():
        config = vars(module).get("config")
        if hasattr(config, "to_dict") and id(config) not in found:
            found[id(config)] = (f"{name}.config" if name else "config", config)
    return dict(found.values())


def integers(plain: Any, at: Field = ()) -> dict[Field, int]:
    """Return every positive integer of a config's plain form that may be a size."""
    if type(plain) is int and plain >= 1:
        return {at: plain}
    items: Iterator[tuple[str | int, Any]] = iter(())
    if isinstance(plain, Mapping):
        items = ((k, v) for k, v in plain.items() if not _is_name(k))
    elif isinstance(plain, (list, tuple)):
        items = iter(enumerate(plain))
    return {field: v for key, part in items for field, v in integers(part, (*at, key)).items()}


def _is_name(key: Any) -> bool:
    return not isinstance(key, str) or key in _TABLES or key.endswith(_NAMES)


def plain_of(config: Any) -> dict[str, Any]:
    """Return a config as JSON would hold it, defaults included."""
    plain: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return plain


def changed(plain: dict[str, Any], values: Mapping[Field, int | None]) -> dict[str, Any]:
    """Return a copy of a config's plain form with other numbers; None takes one out."""
    copy: dict[str, Any] = json.loads(json.dumps(plain))
    for field, value in values.items():
        owner: Any = copy
        for key in field[:-1]:
            owner = owner[key]
        if value is None:
            owner.pop(field[-1])
        else:
            owner[field[-1]] = value
    return copy


def show(field: Field) -> str:
    """Write a field for a person: text_config.hidden_size, hidden_sizes[1]."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in field)
    return text.removeprefix(".")


def built(kind: type[nn.Module], config: Any) -> nn.Module:
    """Build a model on the meta device: shapes, no memory."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return kind(config)


class Blueprint:
    """The sizes that configs of one model class lead to; each is built once."""

    def __init__(self, kind: type[nn.Module], config_class: Any) -> None:
        self._kind = kind
        self._config_class = config_class
        self.error = ""

    def config(self, plain: dict[str, Any]) -> Any:
        """Read a config's plain form."""
        return self._config_class.from_dict(plain)

    def model(self, plain: dict[str, Any]) -> nn.Module:
        """Build the model of a config's plain form, without memory."""
        return built(self._kind, self.config(plain))

    def sizes(self, plain: dict[str, Any]) -> dict[Place, int] | None:
        """Return every size of that model; None where no such model can be built."""
        found, error = _sizes(self, json.dumps(plain, sort_keys=True))
        self.error = error or self.error
        return found


@functools.lru_cache(maxsize=8)
def _blueprint(kind: Any, config_class: Any) -> Blueprint:
    return Blueprint(kind, config_class)


def blueprint(model: Any) -> Blueprint:
    """Return the blueprint of a Hugging Face model's class, the same one each time."""
    kinds: tuple[Any, Any] = type(model), type(model.config)
    return _blueprint(*kinds)


@functools.lru_cache(maxsize=256)
def _sizes(of: Blueprint, text: str) -> tuple[dict[Place, int] | None, str]:
    try:
        model = of.model(json.loads(text))
    except Exception as error:  # noqa: BLE001 - a config that its own library refuses, whatever it raises
        return None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    held = integer_attributes(model, configs=False)
    return {**shapes(model), **{(path, -1): value for path, value in held.items()}}, ""


def shapes(model: nn.Module) -> dict[Place, int]:
    """Return the size of every dimension of every parameter and buffer, tied ones once."""
    return {
        (name, dim): size
        for name, tensor in named_tensors(model)
        for dim, size in enumerate(tensor.shape)
    }
