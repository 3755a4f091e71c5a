"""Tune the dense network on its pruned proxy (Moura et al.): search there, train the big one once.

The parts are in their own files, so that what needs no search library does not import one.
"""
