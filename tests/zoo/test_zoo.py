"""The whole contract on networks of torchvision and transformers; run by ``pytest -m zoo``."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
from exactness import call, prove
from hand_masked import train_problem
from networks import randomise

import secateur
from zoo.catalogue import CATALOGUE


def need_memory(wanted: int) -> None:
    """Skip where a proof's copies of a network do not fit: the system would kill the worker."""
    table = Path("/proc/meminfo")
    if not table.is_file():
        return
    found = [line.split() for line in table.read_text().splitlines()]
    free = next(int(kilobytes) * 1024 for name, kilobytes, *_ in found if name == "MemAvailable:")
    if free < wanted:
        pytest.skip(f"needs {wanted / 1e9:.0f} GB of free memory, has {free / 1e9:.0f}")


# Warnings of other libraries about themselves are none of ours.
@pytest.mark.filterwarnings("default")
@pytest.mark.zoo
@pytest.mark.parametrize("name", CATALOGUE)
def test_half_of_every_group_goes_exactly(name: str, tmp_path: Path) -> None:
    case = CATALOGUE[name]
    model = randomise(case.build().double().eval())
    need_memory(3 * sum(p.nbytes for p in model.parameters()))
    proof = prove(
        model, case.inputs, tmp_path / "saved", larger=case.larger, more_seeds=(1, 2), budget=10
    )
    del model
    gc.collect()
    assert proof.problems == ()
    assert proof.alone.tried
    assert proof.reached > 0.9, proof.unreached


# Whole proofs again take long on large networks: the small configurations only.
@pytest.mark.filterwarnings("default")
@pytest.mark.zoo
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [n for n in CATALOGUE if n.startswith("transformers/")])
def test_other_seeds_and_sparsities(name: str, seed: int, tmp_path: Path) -> None:
    case = CATALOGUE[name]
    model = randomise(case.build().double().eval(), seed)
    proof = prove(model, case.inputs, tmp_path / "saved", seed=seed, sparsity=0.2 + 0.2 * seed)
    assert proof.problems == ()


@pytest.mark.filterwarnings("default")
@pytest.mark.zoo
@pytest.mark.parametrize("name", CATALOGUE)
def test_a_cut_network_trains_as_one_masked_by_hand(name: str) -> None:
    case = CATALOGUE[name]
    model, inputs = randomise(case.build().double().eval()), case.inputs(2)
    need_memory(4 * sum(p.nbytes for p in model.parameters()))
    result = secateur.prune(model, inputs, sparsity=0.5)
    cuts = result.plan.cuts
    assert train_problem(model, result.model, cuts, lambda network: call(network, inputs)) == ""


@pytest.mark.zoo
@pytest.mark.parametrize("name", CATALOGUE)
def test_a_saved_network_computes_the_same_in_a_fresh_process(name: str) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "zoo.py"
    done = subprocess.run(
        [sys.executable, str(script), "--case", name, "--tool", "saved"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["problems"] == []
