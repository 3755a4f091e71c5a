"""Hugging Face models: keep their config true after a cut, and save them as their library does.

transformers itself is only imported where such a model is in hand or asked for.
"""

from __future__ import annotations

from secateur.huggingface.loading import PREFIX, load_hub_model
from secateur.huggingface.planning import keep_configs
from secateur.huggingface.saving import Saved, save_pretrained

__all__ = ["PREFIX", "Saved", "keep_configs", "load_hub_model", "save_pretrained"]
