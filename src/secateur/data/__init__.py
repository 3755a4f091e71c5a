"""Labelled images: from a source's name to deterministic batches."""

from secateur.data.augment import Augment
from secateur.data.batches import batches, set_epoch
from secateur.data.images import ImageSet
from secateur.data.load import ImageData, load_data

__all__ = ["Augment", "ImageData", "ImageSet", "batches", "load_data", "set_epoch"]
