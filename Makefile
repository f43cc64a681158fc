PYTHON ?= python3
BIN := .venv/bin
# nvcc itself tells where its toolkit lies: on PATH it may be a link or a script.
CUDA_HOME ?= $(shell nvcc --dryrun -E -x cu /dev/null 2>&1 | sed -n 's/^\#\$$ _*TOP_*=//p')
# An empty list has torch ask the GPU that it sees.
TORCH_CUDA_ARCH_LIST ?= $(shell $(BIN)/python -c \
	'import torch; print("" if torch.cuda.is_available() else "7.5;8.0;9.0+PTX")')

# Passes of the demo over its training set: 9 take about ten minutes on two cores.
EPOCHS ?= 9

.DEFAULT_GOAL := help
.PHONY: help install demo test check bench bench-metrics gpu-check torture iabn clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed ## create .venv and install the runtime packages

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("PAnS needs Python 3.11.4 or newer" if sys.version_info < (3, 11, 4) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: .venv/installed ## draw a small data set, train the default model on it, test it
	$(BIN)/python -m dataset.demo --root data/demo
	$(BIN)/python run.py --name demo --default --data_root data/demo --no_pretrained --visualize \
		--epochs $(EPOCHS) --batch_size 8 --crop_size 96 --lr 0.05 --val_interval 4

check: .venv/installed-dev ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .

test: check ## the whole test suite
	$(BIN)/python -m pytest

bench: .venv/installed-dev ## the reference implementation against the fast one; writes docs/performance.md's table
	$(BIN)/python -m benchmarks.launches
	$(BIN)/python -m benchmarks.speed

gpu-check: .venv/installed-dev ## check the norm, training and test on this machine's GPU, and time them
	$(BIN)/python -m benchmarks.gpu_check

bench-metrics: .venv/installed-dev ## the metrics against scikit-learn and torchmetrics
	$(BIN)/python -m benchmarks.metrics

torture: .venv/installed-dev ## kill and hang runs and fill their disks, many times; 100,000 corrupt inputs to the readers
	FUZZ_RUNS=10000 TORTURE_KILLS=30 $(BIN)/python -m pytest \
		tests/reliability tests/torture tests/dataset/test_bad_input.py tests/metrics/test_any_bytes.py

# A wheel from pip's cache may have been built for another torch.
# The package links libcudart and asks torch for its build flags, so it needs both at hand and no
# isolated build environment.
iabn: .venv/iabn ## build the kernels of the inplace-abn package for CUDA (needs nvcc)

.venv/iabn: .venv/installed
	@test -x "$(CUDA_HOME)/bin/nvcc" || { \
		echo "make iabn: nvcc was not found; put it on PATH or set CUDA_HOME." \
		     "Without it torch's own kernels compute the norm, with the same results."; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check setuptools setuptools_scm wheel
	CUDA_HOME=$(CUDA_HOME) LIBRARY_PATH=$(CUDA_HOME)/lib64:$(LIBRARY_PATH) \
	TORCH_CUDA_ARCH_LIST="$(TORCH_CUDA_ARCH_LIST)" \
		$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
		--no-cache-dir --force-reinstall inplace-abn==1.1.0
	@$(BIN)/python -c 'import torch, inplace_abn; print("inplace-abn is built and imports")'
	@touch $@

clean: ## remove .venv, caches and the demo's data
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis data/demo
