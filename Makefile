# Everything a newcomer needs; each target does its own set-up. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python
# test processes side by side; what starts Ray stays on one of them (tests/conftest.py)
WORKERS ?= 2

.PHONY: help setup demo test test-all check clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## install what is pinned (shared by all clones) and this clone's `agft` into .venv
	@.ci/setup

demo: setup  ## a real study on this machine: search, MLflow UI, promoted champion
	@.venv/bin/agft run study/recipes/demo.yaml --numbered --promote

check: setup  ## style, types, and which module may import which
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check -q .
	@$(PY) -m mypy
	@$(PY) -c "from importlinter.cli import lint_imports_command as run; run()"

test: check  ## the default tier: every check that CI makes
	@$(PY) -m pytest -m "not slow" --numprocesses $(WORKERS)

test-all: test  ## the slow tier as well, one test after the other
	@$(PY) -m pytest -m slow

clean:  ## remove this clone's environment and caches (not the shared packages, not studies)
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
