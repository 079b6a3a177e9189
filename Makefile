# make quickstart   from nothing to a trained, exported model in a few minutes
# make test         everything that must hold
# make check        linter, type checker, fast tests
# make test-te      with NVIDIA's Transformer Engine, without a GPU, in an environment of its own (6 GB)
# make bench        the CPU benchmarks
# make gpu          all that a GPU can show; without a network: make gpu WHEELS=DIR, made elsewhere by make gpu-wheels WHEELS=DIR
# make clean        drop .venv, builds and quick-start runs

# Python 3.11 or 3.12; another one: make PYTHON=/path/to/python3.12 ...
PYTHON ?= $(shell for python in python3 python3.11 python3.12; do \
	$$python -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
INSTALL := -m pip install --quiet --no-input --disable-pip-version-check --constraint constraints.txt
PIP := $(BIN)/python $(INSTALL)
TE_PYTHON := .venv-te/bin/python
BUILT_FROM := setup.py pyproject.toml constraints.txt $(wildcard csrc/*/*)
TEST_EXTRAS := dev,plot,zstd,llama3-tokenizer,cleaning,synthesis,serve,eval
# Most tests start processes of their own, so two workers keep two cores busy; a file stays in one worker.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help quickstart test test-te check bench gpu gpu-wheels clean debian-packages
help:
	@sed -n '1,/^$$/s/^# //p' Makefile

quickstart: .venv/.base
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/quickstart/run.sh

test: .venv/.dev debian-packages
	$(PYTEST) -rs tests

test-te: .venv-te/.installed
	OMP_NUM_THREADS=1 $(TE_PYTHON) -m pytest -rs tests/te tests/e2e/test_nvidia_packages.py tests/unit/runtime/test_transformer_engine.py

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow" tests/unit

bench: .venv/.dev
	@for script in cpu_step stream tokenize_corpus checkpoint; do \
		echo "== benchmarks/$$script.py"; $(BIN)/python benchmarks/$$script.py || exit 1; done

# Not from .venv where there is none, or another is asked for: a machine that is lent may have torch and nothing else.
GPU_PYTHON = $(if $(filter command,$(firstword $(origin PYTHON))),$(PYTHON),$(or $(wildcard $(BIN)/python),$(PYTHON)))
gpu:
	@$(GPU_PYTHON) benchmarks/gpu_all.py $(if $(WHEELS),--wheels "$(WHEELS)") $(if $(RESULTS),--results "$(RESULTS)") \
		$(if $(COMMIT),--commit "$(COMMIT)") $(if $(STAGES),--stages $(STAGES))

gpu-wheels:
	@$(GPU_PYTHON) benchmarks/gpu/wheels.py "$(WHEELS)"

clean:
	rm -rf .venv .venv-te build *.egg-info megatron_synE/*.so runs/quickstart .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Build tools first and then no build isolation: everything that is installed is pinned. What is there is kept.
.venv/.base: $(BUILT_FROM) | $(BIN)/python
	@echo "installing into .venv (the first time takes a few minutes)"
	$(PIP) setuptools wheel pybind11
	$(PIP) --no-build-isolation --editable .
	@touch $@

.venv/.dev: $(BUILT_FROM) | $(BIN)/python
	@echo "installing into .venv (the first time takes a few minutes)"
	$(PIP) setuptools wheel pybind11
	$(PIP) --no-build-isolation --editable '.[$(TEST_EXTRAS)]'
	@touch $@ .venv/.base

# The kernels of the host are enough there.
.venv-te/.installed: $(BUILT_FROM) tests/te/requirements.txt | $(TE_PYTHON)
	@echo "installing into .venv-te (the first time takes a few minutes and 6 GB)"
	$(TE_PYTHON) $(INSTALL) setuptools wheel pybind11
	$(TE_PYTHON) $(INSTALL) --requirement tests/te/requirements.txt
	SYNE_BUILD_CUDA=0 $(TE_PYTHON) $(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

.venv/bin/python .venv-te/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 with venv is needed (Debian: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(@D:/bin=)

# Slurm and a browser, for the tests that need them; where they cannot be had these are skipped and say so.
debian-packages:
	@command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] || exit 0; \
	wanted=; \
	{ command -v slurmctld && command -v munged; } >/dev/null || wanted="slurm-wlm munge"; \
	command -v chromium >/dev/null || wanted="$$wanted chromium"; \
	[ -n "$$wanted" ] || exit 0; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get -qq update >/dev/null 2>&1; \
	for package in $$wanted; do \
		apt-get -qq install -y --no-install-recommends $$package >/dev/null 2>&1 \
		|| echo "$$package could not be installed: its tests are skipped"; \
	done
