# What a person types. `make` alone prints the list.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# What outlives `make clean`: uv, the pinned llama.cpp and the demo's base model (and uv's own cache of packages).
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/finetune
UV_VERSION := 0.13.9
UV := $(or $(shell command -v uv),$(CACHE)/uv-$(UV_VERSION)/bin/uv)
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed

# Every folder of tests/ is a room. The slow ones train a model; whatever is not named here is a unit test.
SLOW := $(wildcard $(addprefix tests/,train export job demo))
UNIT := $(filter-out $(SLOW),$(patsubst %/,%,$(wildcard tests/*/)))

.PHONY: help install lint format test test-unit test-train demo run llama-cpp config-docs bench clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-24s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) llama-cpp ## uv, every package of uv.lock in .venv, and llama.cpp

lint: $(INSTALLED) ## ruff, mypy --strict, and the rules of who may import whom
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

format: $(INSTALLED) ## let ruff format the tree
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

test: test-unit test-train ## all tests

test-unit: $(INSTALLED) ## the tests that train nothing
	.venv/bin/pytest $(UNIT)

test-train: $(INSTALLED) llama-cpp ## the tests that finetune a model, on this machine's CPU
	$(if $(SLOW),.venv/bin/pytest $(SLOW),@echo "no folder of tests trains a model" && exit 1)

test-%: $(INSTALLED) llama-cpp ## one folder of tests/, such as test-storage
	.venv/bin/pytest tests/$*

demo: $(INSTALLED) llama-cpp ## finetune a small real model from a real S3 server and let it answer (AGAIN=1: afresh)
	$(PYTHON) -m examples.demo $(if $(AGAIN),--again)

run: $(INSTALLED) llama-cpp ## run any config as a pod would: make run CONFIG=examples/demo.yaml
	$(if $(CONFIG),,$(error say which config: make run CONFIG=path/to/config.yaml))
	$(PYTHON) -m examples.demo --config $(CONFIG) $(if $(AGAIN),--again)

llama-cpp: $(INSTALLED) ## the pinned converter and quantizer, once, in the cache outside the tree
	@PYTHON=$(CURDIR)/$(PYTHON) docker/llama-cpp.sh $(CACHE)

config-docs: $(INSTALLED) ## write docs/config.md and docs/schemas/ from the models
	$(PYTHON) docs/generate.py

bench: $(INSTALLED) llama-cpp ## measure, print the table, write build/bench.json
	$(PYTHON) -m bench

clean: ## remove all that was built here; the caches stay
	rm -rf .venv build .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
	@echo "Kept: $(CACHE) (uv, llama.cpp, the demo's base model) and uv's own cache of packages."

$(INSTALLED): uv.lock pyproject.toml .python-version | $(UV)
	@$(UV) python find >/dev/null 2>&1 || $(UV) python install || \
		{ echo "Python 3.11 is needed: apt-get install python3.11, or pyenv install 3.11" >&2; exit 1; }
	$(UV) sync --locked --extra train --extra tensorboard
	@touch $@

$(CACHE)/uv-$(UV_VERSION)/bin/uv:
	@python3 -m venv $(CACHE)/uv-$(UV_VERSION) || \
		{ echo "python3 with its venv module is needed: apt-get install python3-venv" >&2; exit 1; }
	$(CACHE)/uv-$(UV_VERSION)/bin/pip install --quiet uv==$(UV_VERSION)
