# Everything runs in .venv, which is made on first use and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
RLLIB := .venv-rllib
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-cluster lint format bench bench-cluster bench-atari results experiments clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Set up .venv with everything that development needs

define check_python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "Treadle needs Python 3.11 or newer, and '$(PYTHON)' is `$(PYTHON) --version 2>&1`. Name another: make PYTHON=python3.12 ..."; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "'$(PYTHON)' cannot make virtual environments. Install its venv module (on Debian and Ubuntu: apt-get install python3-venv)."; exit 1; }
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(check_python)
	@echo "Setting up $(VENV) (once; a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq -c constraints.txt -e ".[dev,atari,box2d,video,cluster]"
	@touch $@

$(PEERS)/.installed: benchmarks/requirements.txt
	$(check_python)
	@echo "Setting up $(PEERS) for the libraries that the benchmark compares with"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install -qq -r benchmarks/requirements.txt
	@touch $@

$(RLLIB)/.installed: benchmarks/requirements-cluster.txt
	$(check_python)
	@echo "Setting up $(RLLIB) for RLlib"
	@$(PYTHON) -m venv $(RLLIB)
	@$(RLLIB)/bin/python -m pip install -qq -r benchmarks/requirements-cluster.txt
	@touch $@

demo: $(VENV)/.installed ## Train DQN with 8 seeds on CartPole, evaluate every seed, draw the curve
	@$(BIN)/treadle train dqn CartPole-v1 --seeds 8 --out runs/demo --overwrite
	@$(BIN)/treadle evaluate runs/demo
	@$(BIN)/treadle plot runs/demo

test: $(VENV)/.installed ## Run the tests
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-slow: $(VENV)/.installed ## Run the slow tests too: learning over many seeds
	@$(BIN)/python -m pytest -m "slow or not slow"

test-cluster: $(VENV)/.installed ## Run the tests on a Ray cluster, in a network of their own where permitted
	@if unshare -n sh -c 'ip link set lo up' 2>/dev/null; then \
		TREADLE_TEST_CLUSTER=1 unshare -n sh -c 'ip link set lo up; exec $(BIN)/python -m pytest tests/cluster'; \
	else \
		echo "unshare -n is not permitted here: the cluster listens on this machine's own address."; \
		TREADLE_TEST_CLUSTER=1 $(BIN)/python -m pytest tests/cluster; \
	fi

lint: $(VENV)/.installed ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

format: $(VENV)/.installed ## Put the code into the agreed style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.installed $(PEERS)/.installed ## Measure Treadle against its peers; writes docs/benchmarks.md
	@$(BIN)/python benchmarks/run.py

bench-cluster: $(VENV)/.installed $(RLLIB)/.installed ## Measure workers and RLlib; writes docs/benchmarks-cluster.md
	@$(BIN)/python benchmarks/cluster.py

bench-atari: $(VENV)/.installed $(PEERS)/.installed ## Measure DQN on Pong against its peers; writes docs/benchmarks-atari.md
	@$(BIN)/python benchmarks/atari.py

results: $(VENV)/.installed ## Train and score every preset; writes docs/results.md
	@$(BIN)/python docs/results.py

experiments: $(VENV)/.installed ## Run every experiment of the literature; writes docs/experiments.md
	@$(BIN)/python docs/experiments.py

clean: ## Remove environments, caches and builds; runs/ stays
	rm -rf $(VENV) $(PEERS) $(RLLIB) .jax_cache .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info
	find src tests benchmarks docs -name __pycache__ -prune -exec rm -rf {} +
