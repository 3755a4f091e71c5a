"""Comparison studies: a grid of trials on validation, one look at test, one report."""

from secateur.compare.config import CompareConfig
from secateur.compare.dry import dry_run
from secateur.compare.run import compare_run

__all__ = ["CompareConfig", "compare_run", "dry_run"]
