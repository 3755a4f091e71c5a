"""Load a Hugging Face model by its folder or name, with weights or as shapes alone."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from secateur.errors import InputError, unknown_name

PREFIX = "hf:"


def load_hub_model(name: str, arguments: Mapping[str, Any], *, meta: bool = False) -> nn.Module:
    """Load the model of a folder, or of a name on the hub, as the class that its config names.

    Args:
        name: a folder, or a name such as "google-bert/bert-base-uncased".
        arguments: other values for fields of the config; "architecture" names another class
            of transformers, such as AutoModelForCausalLM.
        meta: build from the config alone, without weights or memory; then the folder needs to
            hold no more than config.json.

    Raises:
        InputError: transformers is not there, or cannot find or build the model.
    """
    fields = dict(arguments)
    asked = fields.pop("architecture", None)
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise InputError(
            f"model '{PREFIX}{name}' needs transformers: pip install transformers"
        ) from error
    try:
        config = library.AutoConfig.from_pretrained(name, **fields)
        written = (getattr(config, "architectures", None) or ["AutoModel"])[0]
        kind = getattr(library, asked or written, None)
        if kind is None:
            made_for = type(config).__name__.removesuffix("Config")
            choices = [key for key in dir(library) if key.startswith((made_for, "AutoModel"))]
            raise unknown_name("architecture", asked or written, choices)
        if meta:
            with torch.device("meta"):
                build = getattr(kind, "from_config", kind)
                model = build(config)
        else:
            model = kind.from_pretrained(name, config=config, dtype="auto")
    except InputError:
        raise
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"model '{PREFIX}{name}' cannot be loaded: {told}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"architecture must be a model of transformers, but got {asked!r}")
    return model
