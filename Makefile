# make help says what there is. Everything runs in .venv, or without Horovod in .venv-keras3; the
# set-up makes them and keeps them up to date, and all targets run it first.

PYTHON ?= python3
TORCH ?=
MPI ?= auto
# Seconds: the whole test run, so that a hang ends by itself.
TEST_LIMIT ?= 3000
QUICK_LIMIT ?= 600
KERAS3_LIMIT ?= 1200
SLURM_LIMIT ?= 900
FRAMEWORK ?= torch
ARGS ?=

BIN := $(CURDIR)/.venv/bin
KERAS3_BIN := $(CURDIR)/.venv-keras3/bin
run = PATH="$1:$$PATH" $1/python
RUN := $(call run,$(BIN))
unexport PYTHONPATH PYTHONHOME
SETUP = $(PYTHON) -m scripts.setup_env --mpi '$(MPI)' $(if $(TORCH),--torch '$(TORCH)')
SETUP_KERAS3 = $(SETUP) --environment keras3
# The tests that need no Horovod. The core's own run here too, for numpy is another one.
KERAS3_TESTS = $(wildcard $(addprefix tests/test_,bench_tensorflow.py core_*.py cross_framework.py digests.py keras3.py \
	kernels_python.py signs.py tf_*.py torch_standalone.py)) 'tests/test_ranks.py::test_core[4]'
SHELL_SCRIPTS = .ci/run slurm/srun_as_ssh/ssh \
	$(shell find scripts slurm benchmarks tests -name '*.sh' -o -name '*.sbatch')
NATIVE = $(shell find hvd_sign/native -name "*.h" -o -name "*.cpp")

.DEFAULT_GOAL := help
.PHONY: help setup setup-keras3 test test-quick test-keras3 test-slurm test-sanitize lint bench bench-check bench-kernels clean python

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile
	@echo 'PYTHON=python3.11, TORCH=torch==2.9.1 and MPI=wheel choose what the environment is made of;'
	@echo 'FRAMEWORK=tensorflow, or keras3, trains by TensorFlow 2.15, or by the newest with Keras 3.'

python:
	@command -v '$(PYTHON)' > /dev/null || { echo "no $(PYTHON) on PATH: install Python 3.11, or name\
	 another one, as in make test PYTHON=python3.12" >&2; exit 1; }

setup: python  ## make or update .venv (all others do so too)
	@$(SETUP)

setup-keras3: python  ## make or update .venv-keras3: the newest TensorFlow, no Horovod
	@$(SETUP_KERAS3)

test: setup lint  ## all checks and all tests
	$(RUN) scripts/guard.py $(TEST_LIMIT) $(BIN)/python -m pytest $(ARGS)

test-quick: setup  ## what a change breaks first, in under two minutes
	$(RUN) scripts/guard.py $(QUICK_LIMIT) $(BIN)/python -m pytest -m quick \
		--ignore-glob='*/test_bench_*' $(ARGS)

test-keras3: setup-keras3  ## all tests that need no Horovod, with the newest TensorFlow and Keras 3
	$(call run,$(KERAS3_BIN)) scripts/guard.py $(KERAS3_LIMIT) $(KERAS3_BIN)/python -m pytest \
		$(KERAS3_TESTS) $(ARGS)

test-slurm: setup  ## job scripts on a real Slurm of four nodes here, the doctor on two hosts (as root)
	@scripts/install_slurm.sh
	HVD_SIGN_TEST_SLURM=1 $(RUN) scripts/guard.py $(SLURM_LIMIT) $(BIN)/python -m pytest \
		tests/test_slurm_jobs.py tests/test_doctor.py::test_a_rank_whose_interface_is_down $(ARGS)

test-sanitize: setup  ## kernels under address and undefined, engine under thread sanitizer
	$(RUN) -m scripts.sanitize $(ARGS)

lint: setup  ## the checks alone: format, types, shell scripts, containers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck $(SHELL_SCRIPTS)
	$(BIN)/hadolint $(wildcard slurm/containers/*.Dockerfile)
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)

bench: python  ## train by fp32, fp16, majority vote and Signum by vote (about seven minutes)
	@case '$(FRAMEWORK)' in torch | tensorflow | keras3) ;; *) echo "FRAMEWORK is torch, tensorflow\
	 or keras3, not '$(FRAMEWORK)'" >&2; exit 1 ;; esac
ifeq ($(FRAMEWORK),keras3)
	@$(SETUP_KERAS3) --data
	$(call run,$(KERAS3_BIN)) -m benchmarks.train --framework tensorflow $(ARGS)
else
	@$(SETUP) --data
	$(RUN) -m benchmarks.train $(if $(filter tensorflow,$(FRAMEWORK)),--framework tensorflow) $(ARGS)
endif

bench-check: setup  ## key ratios beside the committed ones (about two minutes)
	$(RUN) -m benchmarks.check $(ARGS)

bench-kernels: setup  ## throughput of the kernels beside this machine's memory
	$(RUN) -m benchmarks.kernels $(ARGS)

clean:  ## remove everything that make made here, the environments too
	rm -rf .venv .venv-keras3 .venv.lock build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f hvd_sign/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
