# Everything a newcomer needs; each target does its own set-up. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python
# test processes side by side; what starts Ray stays on one of them (tests/conftest.py)
WORKERS ?= 2

.PHONY: help setup demo test test-all check audit docs gpu-wheels gpu-check clean

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

# For a machine with a GPU that has torch and little else: no Ray, no network. PYTHON is the one that holds torch there.
PYTHON ?= python3
GPU_PYTHON ?= 3.12
GPU_WHEELS := annotated-types ftfy open_clip_torch pydantic pydantic_core typing-inspection wcwidth

gpu-wheels:  ## fetch what `make gpu-check` needs beside torch, torchvision and timm, into .gpu-wheels
	@rm -rf .gpu-wheels
	@grep -iE "^($$(echo $(GPU_WHEELS) | sed 's/[-_]/[-_]/g; s/ /|/g'))==" constraints.txt > .gpu-wheels.txt
	@$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	  --python-version $(GPU_PYTHON) --implementation cp --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	  --dest .gpu-wheels --requirement .gpu-wheels.txt
	@rm .gpu-wheels.txt
	@du -sh .gpu-wheels

gpu-check:  ## what only a GPU can say, in 8 minutes: right there, and how fast (ARGS="--small": toy sizes, any machine)
	@$(PYTHON) -c 'import open_clip, pydantic' 2>/dev/null || $(PYTHON) -m pip install --quiet \
	  --disable-pip-version-check --no-index --no-deps --upgrade --target .gpu-wheels/installed .gpu-wheels/*.whl
	@PYTHONPATH=$$PWD/.gpu-wheels/installed:$${PYTHONPATH:-} $(PYTHON) tests/bench/gpu_check.py $(ARGS)

audit:  ## known advisories of the pinned packages; exit code 1: some, 2: not all could be asked about
	@.ci/audit

clean:  ## remove this clone's environment and caches (not the shared packages, not studies)
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

docs: setup  ## the documentation as a site in build/site; a broken link fails
	@$(PY) -m mkdocs build --strict --quiet
	@echo "build/site/index.html"
