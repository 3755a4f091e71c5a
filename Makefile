# `make demo` and `make test` work on a fresh clone: python3 (with venv) and make are enough.
# A second run installs nothing; a change of pyproject.toml or constraints.txt installs again.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY := $(VENV)/.ready
ZOO := $(VENV)/.zoo

# Each test worker and each measurement has one thread: more only get in each other's way.
THREADS := OMP_NUM_THREADS=1

.PHONY: help demo test test-all bench lint format

help:
	@echo "make demo      prune a real network in about a minute and look at the report"
	@echo "make test      lint, types and the fast tests"
	@echo "make test-all  the slow tests and the zoo of torchvision and timm networks too"
	@echo "make bench     measure against Torch-Pruning on this machine"
	@echo "make lint      lint and types alone"
	@echo "make format    format the code and mend what the linter can"

demo: $(READY)
	@$(BIN)/secateur demo

test: lint
	$(THREADS) $(BIN)/pytest -n $(WORKERS)

test-all: lint $(ZOO)
	$(THREADS) $(BIN)/pytest -n $(WORKERS) -m ""

bench: $(ZOO)
	$(BIN)/python benchmarks/first_trace.py
	$(BIN)/python benchmarks/peer.py
	$(BIN)/python benchmarks/relevance.py
	$(BIN)/python benchmarks/large.py
	$(BIN)/python benchmarks/zoo.py
	$(BIN)/python benchmarks/criteria.py
	$(BIN)/python benchmarks/samplers.py
	$(BIN)/python benchmarks/export_zoo.py
	$(BIN)/python benchmarks/study_cost.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The build tool comes from the pins too, so nothing is downloaded that is not named there.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; PyTorch is large, so this takes some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation -e ".[dev]"
	@touch $@

# torchvision asks for one exact build of torch; without its word the pinned one stays.
$(ZOO): $(READY) constraints.txt
	@echo "Adding the networks and peers that slow tests and benchmarks compare with"
	@$(PIP) --no-deps torchvision
	@$(PIP) timm torch-pruning zennit transformers
	@touch $@
