# Everything runs in .venv, which `make setup` makes from constraints.txt; all it assumes is a
# Python 3.11 with venv. Another one: make setup PYTHON=/opt/python/bin/python3.11

PYTHON ?= python3.11
BIN := .venv/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check
STAMP := .venv/.installed
# A file's tests share what they train: one process for each file. Files come in their own order:
# those with the fewest tests, which would be last otherwise, are the longest.
SPREAD := --numprocesses auto --dist loadfile --no-loadscope-reorder
NEWEST := megatron-core==0.19.2
NEWER := .venv/megatron-core-0.19
AZURITE := .venv/azurite/node_modules/.bin/azurite-blob
MAKEFLAGS += --no-print-directory

# Tests and runs start hundreds of processes. What they import is compiled once, even where this is
# set: a third of a command's time on small models would be compiling.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-long test-exhaustive fuzz faults check demo docs bench clean

help:
	@echo "make setup      make .venv and install flmgrow and its tools, if they are not there yet"
	@echo "make test       the tests, without those that take longer"
	@echo "make test-slow  those that take longer, which CI runs as well"
	@echo "make test-long  those that take minutes each, with the newest megatron-core beside ours"
	@echo "make test-exhaustive"
	@echo "                every combination of what other tests sample"
	@echo "make fuzz       mutated files for every parser, SECONDS=60 for each"
	@echo "make faults     let every system call of the real commands fail, cut the power, flip bits;"
	@echo "                FAULTS='--step 11 --chains 100' tries fewer"
	@echo "make check      lint, formatting, types, structure"
	@echo "make demo       train a tiny model in three stages, growing it between them"
	@echo "make docs       write docs/reference/cli.md from the commands' own help"
	@echo "make bench      run the benchmarks"
	@echo "make clean      remove what these commands made, .venv included"

setup: $(STAMP)

# The stamp is made last, so that an interrupted installation is taken up again. torch comes first
# and alone: what needs it then finds it, and pip has no reason to fetch another.
$(STAMP): constraints.txt pyproject.toml
	@echo "setting up .venv"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(PIP) install --constraint constraints.txt --editable '.[train,dev,eval,fast,hub,object-store,plot,predict,tensorboard]'
	@touch $@

test: setup
	@$(PY) -m pytest $(SPREAD) -m "not slow"

test-slow: setup
	@$(PY) -m pytest $(SPREAD) -m "slow and not long and not exhaustive"

test-long: setup $(NEWER)/.installed $(AZURITE)
	@FLMGROW_MEGATRON_019=$(CURDIR)/$(NEWER) \
		FLMGROW_AZURITE=$$(ls $(CURDIR)/$(AZURITE) 2>/dev/null) \
		$(PY) -m pytest $(SPREAD) -m "long and not exhaustive"

test-exhaustive: setup
	@$(PY) -m pytest $(SPREAD) -m exhaustive

# atheris sees which lines an input reaches. Where it cannot be installed, mutations are blind.
fuzz: setup
	@$(PIP) install --constraint constraints.txt --editable '.[fuzz]' || echo "without atheris"
	@$(PY) tests/fuzz/run.py $(or $(SECONDS),60) $(PARSERS)

faults: setup
	@$(PY) tests/faults/whole.py $(FAULTS)

# What the newest megatron-core does is tested beside the one that this Python can install.
$(NEWER)/.installed: $(STAMP)
	@$(PIP) install --no-deps --ignore-requires-python --upgrade --target $(NEWER) $(NEWEST)
	@touch $@

# Azure's store is Azurite's in the tests, a program of node's; without it they are skipped.
$(AZURITE): $(STAMP)
	@npm install --silent --no-audit --no-fund --prefix .venv/azurite azurite@3.35.0 \
		|| echo "without Azurite"

# mypy does not follow the mapping of the root folders: it reads a tree where they are in place.
check: setup
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(PY) tests/typecheck_tree.py
	@$(BIN)/mypy
	@$(PY) -m pytest --quiet -m "not slow" tests/test_structure.py

demo: setup
	@$(PY) examples/demo.py

docs: setup
	@$(PY) docs/generate.py

bench: setup
	@set -e; for script in benchmarks/bench_*.py; do echo "$$script"; $(PY) "$$script"; done

clean:
	@rm -rf .venv build dist demo-run *.egg-info .coverage .hypothesis
	@rm -rf .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
