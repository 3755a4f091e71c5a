"""Secateur: prune trained PyTorch networks and prove it."""
