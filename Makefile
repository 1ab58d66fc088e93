# What a checkout needs: GNU make, and Python 3.11+ with pip (another one: make venv PYTHON=python3.12).
PYTHON ?= python3
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help venv demo docs test test-all test-nodes chaos lint clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

venv: ## set up .venv for this machine (CPU or GPU) and nothing more
	@$(PYTHON) setup_venv.py

demo: venv ## align the tiny embedded pair of models, on the CPU, into runs/demo
	$(RUN) jobs/mpa_textvqa.py --preset demo --output runs/demo

docs: venv ## build the guide into build/docs, warnings as errors
	$(RUN) -m mkdocs build --strict --quiet
	@echo "build/docs is there; to read it: $(RUN) -m http.server 8000 --bind 127.0.0.1 --directory build/docs"

test: venv ## all tests but the slow ones
	$(RUN) -m pytest -m "not slow"

test-all: venv ## all tests, the slow ones too
	$(RUN) -m pytest

test-nodes: venv ## a cluster that grows and shrinks, nodes that are lost: slow tests that CI runs too
	$(RUN) -m pytest tests/faults/test_autoscaling.py tests/faults/test_lost_hosts.py tests/faults/test_shared_folders.py tests/faults/test_training_nodes.py

chaos: venv ## kill drivers, nodes and engines of real runs at random; takes long
	$(RUN) -m pytest -s -m slow tests/faults

lint: venv ## ruff
	$(RUN) -m ruff check .

clean: ## delete runs/ and caches; .venv stays
	rm -rf runs build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
