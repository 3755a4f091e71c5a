"""Hugging Face models: keep their config true after a cut, and save them as their library does.

transformers itself is never imported here: a model of it is in hand, or there is nothing to do.
"""

from __future__ import annotations

from secateur.huggingface.planning import keep_configs
from secateur.huggingface.saving import Saved, save_pretrained

__all__ = ["Saved", "keep_configs", "save_pretrained"]
