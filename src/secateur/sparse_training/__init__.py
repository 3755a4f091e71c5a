"""Learned sparsity: training that teaches a network which of its parts it can do without."""

from secateur.sparse_training.absent import Absent, difference, removable, remove_blocks
from secateur.sparse_training.blocks import Block, Blocks, residual_blocks
from secateur.sparse_training.factors import readers
from secateur.sparse_training.growing import grown, shrink_units
from secateur.sparse_training.loop import Keeping
from secateur.sparse_training.proximal import accelerated_step, soft_threshold
from secateur.sparse_training.selection import Selected, select_structures
from secateur.sparse_training.slimming import slim
from secateur.sparse_training.weights import train_sparse, weight_sparsity, zero_smallest

__all__ = [
    "Absent",
    "Block",
    "Blocks",
    "Keeping",
    "Selected",
    "accelerated_step",
    "difference",
    "grown",
    "readers",
    "removable",
    "remove_blocks",
    "residual_blocks",
    "select_structures",
    "shrink_units",
    "slim",
    "soft_threshold",
    "train_sparse",
    "weight_sparsity",
    "zero_smallest",
]
