# make help says what there is. Everything runs in .venv, which the set-up makes and keeps up to
# date; make test and make bench run it first.

PYTHON ?= python3
TORCH ?=
MPI ?= auto
# Seconds: the whole test run, so that a hang ends by itself.
TEST_LIMIT ?= 3000
ARGS ?=

BIN := $(CURDIR)/.venv/bin
RUN := PATH="$(BIN):$$PATH" $(BIN)/python
unexport PYTHONPATH PYTHONHOME
SETUP = $(PYTHON) -m scripts.setup_env --mpi '$(MPI)' $(if $(TORCH),--torch '$(TORCH)')
SHELL_SCRIPTS = .ci/run $(shell find scripts slurm benchmarks tests -name '*.sh')
NATIVE = $(shell find hvd_sign/native -name "*.h" -o -name "*.cpp")

.DEFAULT_GOAL := help
.PHONY: help setup test test-sanitize lint bench bench-check bench-kernels clean python

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile
	@echo 'PYTHON=python3.11, TORCH=torch==2.9.1 and MPI=wheel choose what the environment is made of.'

python:
	@command -v '$(PYTHON)' > /dev/null || { echo "no $(PYTHON) on PATH: install Python 3.11, or name\
	 another one, as in make test PYTHON=python3.12" >&2; exit 1; }

setup: python  ## make or update .venv (all others do so too)
	@$(SETUP)

test: setup lint  ## all checks and all tests
	$(RUN) scripts/guard.py $(TEST_LIMIT) $(BIN)/python -m pytest $(ARGS)

test-sanitize: setup  ## kernels under address and undefined, engine under thread sanitizer
	$(RUN) -m scripts.sanitize $(ARGS)

lint: setup  ## the checks alone: format, types, shell scripts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck $(SHELL_SCRIPTS)
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)

bench: python  ## train by majority vote, fp16 and fp32, and compare (about six minutes)
	@$(SETUP) --data
	$(RUN) -m benchmarks.train $(ARGS)

bench-check: setup  ## key ratios beside the committed ones (about two minutes)
	$(RUN) -m benchmarks.check $(ARGS)

bench-kernels: setup  ## throughput of the kernels beside this machine's memory
	$(RUN) -m benchmarks.kernels $(ARGS)

clean:  ## remove everything that make made here, .venv too
	rm -rf .venv .venv.lock build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f hvd_sign/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
