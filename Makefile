# What a checkout needs: GNU make, and Python 3.11.5+ with pip (another one: make venv PYTHON=python3.12).
PYTHON ?= python3
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help venv env demo docs test test-all test-nodes chaos lint clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

venv: ## set up .venv for this machine (CPU or GPU) and nothing more
	@$(PYTHON) setup_venv.py

# What the other targets need: a .venv, made where there is none, updated in place where its pins have changed, and else used as it is.
# They never empty one. `make venv` alone makes one again, and only one that it made for this folder.
env:
	@$(PYTHON) setup_venv.py --keep

demo: env ## align the tiny embedded pair of models, on the CPU, into runs/demo
	$(RUN) jobs/mpa_textvqa.py --preset demo --output runs/demo

docs: env ## build the guide into build/docs, warnings as errors
	$(RUN) -m mkdocs build --strict --quiet
	@echo "build/docs is there; to read it: $(RUN) -m http.server 8000 --bind 127.0.0.1 --directory build/docs"

test: env ## all tests but the slow ones
	$(RUN) -m pytest -m "not slow"

test-all: env ## all tests, the slow ones too
	$(RUN) -m pytest

test-nodes: env ## a cluster that grows and shrinks, nodes that are lost: slow tests that CI runs too
	$(RUN) -m pytest tests/faults/test_autoscaling.py tests/faults/test_lost_hosts.py tests/faults/test_shared_folders.py

chaos: env ## kill drivers, nodes and engines of real runs at random; takes long
	$(RUN) -m pytest -s -m slow tests/faults

lint: env ## ruff: rules and format; mypy: types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean: ## delete runs/ and caches; .venv stays
	rm -rf runs build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
