"""Runs: what is asked, carried out in stages, kept in one folder."""

from secateur.study.config import DemoConfig, RunConfig
from secateur.study.demo import demo_run
from secateur.study.run import prune_run

__all__ = ["DemoConfig", "RunConfig", "demo_run", "prune_run"]
