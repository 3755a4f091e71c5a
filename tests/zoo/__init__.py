"""Exactness on networks from other libraries; run by ``pytest -m zoo``."""
