# make demo | test | same | lint | docs | bench: each sets up .venv first, where pyproject.toml or constraints.txt changed.
# PYTHON=python3.12 picks another interpreter, OMP_NUM_THREADS=4 another number of CPU threads.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs

# accelerate launches a script with one thread unless this is set.
OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS

.PHONY: help setup demo test same same-mutations lint docs bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   train the reference, then IID, JEST and JEST by easy_reference on the built-in data, and compare them"
	@echo "make test   run the tests"
	@echo "make same BASE=<commit>  train a matrix of tiny runs with that commit and with this tree: equal bit by bit?"
	@echo "make same-mutations      try whether that matrix sees a change in the order of random numbers"
	@echo "make lint   check style, format, the layers of imports, and types"
	@echo "make docs   build the documentation as a site into docs/_build/html; a warning is an error"
	@echo "make bench  run the short benchmarks, results in benchmarks/results (the long one: docs/results.md)"
	@echo "make setup  only build $(VENV)"

setup: $(STAMP)

# torch first: its pin must hold before anything that merely asks for "torch" is resolved.
$(STAMP): pyproject.toml setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "jest_hf needs Python 3.10 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "$(PYTHON) cannot create a virtual environment: install its venv and ensurepip modules (Debian and Ubuntu: apt install python3-venv), or make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "installing into $(VENV), which takes some minutes"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev,peft]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/accelerate launch --config_file jest_hf/configs/single.yaml examples/run_jest.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

# RUNS=uniform,resumed picks runs, PROCESSES=1 or 2 their number of processes, SAME_PYTHON=/path/to/python an interpreter
# that has everything installed already.
SAME := $(or $(SAME_PYTHON),$(BIN)/python) -m tests.invariant $(if $(RUNS),--runs $(RUNS))

same: $(if $(SAME_PYTHON),,$(STAMP))
	OMP_NUM_THREADS=1 $(SAME) --base "$(BASE)" $(if $(PROCESSES),--processes $(PROCESSES))

same-mutations: $(if $(SAME_PYTHON),,$(STAMP))
	OMP_NUM_THREADS=1 $(SAME) --mutations

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $(DOCS_STAMP)

docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx -b html -E -q -W --keep-going docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(STAMP)
	@set -e; for name in selection overhead chunks; do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info
