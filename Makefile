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
# Where the job finds llama.cpp's converter; prepared on first use.
LLAMA_CPP = FINETUNE_LLAMA_CPP=$$(PYTHON=$(PYTHON) docker/llama-cpp.sh $(CACHE)); export FINETUNE_LLAMA_CPP;
INSTALLED := .venv/.installed
VERSION = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
# `finetune` against the cluster that `make cluster` started, else the one that kubectl would reach.
SITE = [ ! -f build/cluster/environment ] || . build/cluster/environment; .venv/bin/finetune

# Each folder of tests/ is a room. What is in no other tier is a unit test, so that none is left out.
# The longest first, so that none is left to one processor at the end.
TRAIN := $(addprefix tests/,demo job export train)
UNIT := $(filter-out $(TRAIN) tests/reliability tests/gpu_path tests/cluster tests/soak,$(patsubst %/,%,$(wildcard tests/*/)))

# Tests that mostly wait, for a server, a process, a moment.
SIDE_BY_SIDE := .venv/bin/pytest --numprocesses=3 --dist=worksteal
# Tests whose processes compute. In the order of the files: what takes longest need not have the most tests.
COMPUTING := .venv/bin/pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder -p tests.processors

.PHONY: help install lint format test test-unit test-reliability test-train test-cluster record-diagnoses test-gpu-path test-gpu-path-all test-image soak gpu-smoke demo run image image-pin cluster cluster-down validate render launch status watch logs why wait cancel list pull schedule schedules unschedule model-add doctor llama-cpp config-docs bench clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "make %-24s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: llama-cpp ## uv, every package of uv.lock in .venv, and llama.cpp

lint: $(INSTALLED) ## ruff, mypy --strict, and the rules of who may import whom
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

format: $(INSTALLED) ## let ruff format the tree
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

test: test-unit test-reliability test-cluster test-train test-gpu-path ## all tests

test-unit: $(INSTALLED) ## the tests that train nothing
	$(SIDE_BY_SIDE) $(UNIT)

test-reliability: $(INSTALLED) ## runs that are killed, told to stop, raced and starved at any moment
	.venv/bin/pytest --numprocesses=2 --dist=worksteal tests/reliability

test-train: $(INSTALLED) ## the tests that finetune a model, on this machine's CPU
	$(COMPUTING) $(TRAIN)

# As root and with podman these tests build the image that ships, and then those of that image can run, too.
BUILT = $(if $(and $(filter 0,$(shell id -u)),$(shell command -v podman)),localhost/finetune-trainer:debian)
test-cluster: $(INSTALLED) ## the launcher on a real Kubernetes; as root with a node, and with podman the image that ships
	$(if $(TEST_KUBECONFIG),,$(PYTHON) -m examples.cluster build)
	$(SIDE_BY_SIDE) tests/cluster --ignore=tests/cluster/node
	FINETUNE_TEST_IMAGE=$(BUILT) $(COMPUTING) tests/cluster/node $(if $(BUILT),tests/image/test_built.py)

record-diagnoses: $(INSTALLED) ## record anew what a cluster tells of runs that do not go on (tests/launcher/recorded)
	FINETUNE_RECORD=1 .venv/bin/pytest tests/cluster/test_diagnosis.py tests/cluster/node/test_diagnosis.py

test-gpu-path: $(INSTALLED) ## Unsloth's GPU path, emulated on the CPU (FINETUNE_TEST_GPU=1: on the card)
	$(COMPUTING) tests/gpu_path --ignore=tests/gpu_path/all

test-gpu-path-all: $(INSTALLED) ## the same, with bfloat16, answers, the merge, and planted errors
	.venv/bin/pytest tests/gpu_path

gpu-smoke: $(INSTALLED) ## for whoever has a card: a small model through the whole job, then a report to send back
	@$(LLAMA_CPP) FINETUNE_TEST_GPU=1 $(PYTHON) -m tests.gpu_path.smoke build/gpu-smoke

test-image: $(INSTALLED) ## the image that `make image` built (IMAGE=name:tag)
	FINETUNE_TEST_IMAGE=$(or $(IMAGE),localhost/finetune-trainer:$(VERSION)) .venv/bin/pytest tests/image

soak: $(INSTALLED) ## what is too long for `make test`: every moment instead of some, lost nodes, the image interrupted; as root
	FINETUNE_SOAK=1 .venv/bin/pytest --timeout=14400 tests/soak tests/reliability tests/job/test_resume.py

test-%: $(INSTALLED) ## one folder of tests/, such as test-storage
	.venv/bin/pytest tests/$*

demo: $(INSTALLED) ## finetune a small real model from a real S3 server and let it answer (AGAIN=1: afresh)
	@$(LLAMA_CPP) $(PYTHON) -m examples.demo $(if $(AGAIN),--again)

run: $(INSTALLED) ## run any config as a pod would: make run CONFIG=examples/demo.yaml
	@: $(or $(CONFIG),$(error say which: make run CONFIG=path/to/config.yaml))
	@$(LLAMA_CPP) $(PYTHON) -m examples.demo --config "$(CONFIG)" $(if $(AGAIN),--again)

image: ## build the trainer's image with docker, podman or buildah: TARGET=launcher, BASE_IMAGE=... (docs/image.md)
	@docker/build.sh

image-pin: ## resolve the digests of the bases anew, where a registry can be reached
	@docker/pin.sh

cluster: $(INSTALLED) ## a real Kubernetes on this machine, with S3; as root with a node and the image that ships (STANDIN=1: one that pretends, at once)
	@$(PYTHON) -m examples.cluster up $(if $(STANDIN),--stand-in)

cluster-down: $(INSTALLED) ## end it; what its S3 holds stays in build/cluster
	@$(PYTHON) -m examples.cluster down

# The verbs of `finetune`; FLAGS= passes more.
needed = "$(or $($(1)),$(error say which: make $@ $(1)=...))"

validate: $(INSTALLED) ## check a config, its inputs and its rows: make validate CONFIG=config.yaml
	@$(SITE) $@ $(call needed,CONFIG) $(FLAGS)

render: $(INSTALLED) ## print the Job that launch sends
	@$(SITE) $@ $(call needed,CONFIG) $(FLAGS)

launch: $(INSTALLED) ## submit a config to `make cluster`'s or kubectl's cluster: make launch CONFIG=config.yaml
	@$(SITE) $@ $(call needed,CONFIG) $(FLAGS)

status: $(INSTALLED) ## tell how a run is: make status RUN=demo-0123456789; FLAGS="-o json" and so on for each verb
	@$(SITE) $@ $(call needed,RUN) $(FLAGS)

watch: $(INSTALLED) ## watch a run live
	@$(SITE) $@ $(call needed,RUN) $(FLAGS)

logs: $(INSTALLED) ## print a run's log (FLAGS=-f: follow it)
	@$(SITE) $@ $(call needed,RUN) $(FLAGS)

why: $(INSTALLED) ## say what keeps a run from going on, and what to do
	@$(SITE) $@ $(call needed,RUN) $(FLAGS)

wait: $(INSTALLED) ## wait until a run has ended
	@$(SITE) $@ $(call needed,RUN) $(FLAGS)

cancel: $(INSTALLED) ## end a run
	@$(SITE) $@ $(call needed,RUN) $(FLAGS)

list: $(INSTALLED) ## list the newest runs
	@$(SITE) $@ $(FLAGS)

pull: $(INSTALLED) ## fetch a run's artifacts, each verified: make pull RUN=demo@latest FLAGS="--to out"
	@$(SITE) $@ $(call needed,RUN) $(FLAGS)

schedule: $(INSTALLED) ## train a config every night: make schedule CONFIG=config.yaml CRON="17 2 * * *"
	@$(SITE) $@ $(call needed,CONFIG) $(call needed,CRON) $(FLAGS)

schedules: $(INSTALLED) ## list the schedules
	@$(SITE) $@ $(FLAGS)

unschedule: $(INSTALLED) ## remove a schedule: make unschedule NAME=demo
	@$(SITE) $@ $(call needed,NAME) $(FLAGS)

model-add: $(INSTALLED) ## bring a base model into the store: make model-add FROM=hf://org/model TO=s3://bucket/models/name/
	@$(SITE) model add $(call needed,FROM) $(call needed,TO) $(FLAGS)

doctor: $(INSTALLED) ## look whether runs can be launched here
	@$(SITE) $@ $(FLAGS)

llama-cpp: $(INSTALLED) ## llama.cpp's pinned converter, once, in a cache outside the tree
	@$(LLAMA_CPP) echo "llama.cpp is in $$FINETUNE_LLAMA_CPP"

config-docs: $(INSTALLED) ## write docs/config.md and docs/schemas/ from the models
	$(PYTHON) -m docs.generate

bench: $(INSTALLED) ## measure, print the table, write build/bench.json (ONLY=startup: one part)
	@$(LLAMA_CPP) $(PYTHON) -m bench $(ONLY)

clean: ## remove all that was built here; the caches stay
	rm -rf .venv build .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
	@echo "Kept: $(CACHE) (uv, llama.cpp, the demo's base model) and uv's own cache of packages."

$(INSTALLED): uv.lock pyproject.toml .python-version | $(UV)
	@$(UV) python find >/dev/null 2>&1 || $(UV) python install || \
		{ echo "Python 3.11 is needed: apt-get install python3.11, or pyenv install 3.11" >&2; exit 1; }
	@# The job's children write no bytecode. Were there none, each of them would compile the training stack for 15 s.
	$(UV) sync --locked --extra train --extra tensorboard --compile-bytecode
	@touch $@

$(CACHE)/uv-$(UV_VERSION)/bin/uv:
	@python3 -m venv $(CACHE)/uv-$(UV_VERSION) || \
		{ echo "python3 with its venv module is needed: apt-get install python3-venv" >&2; exit 1; }
	$(CACHE)/uv-$(UV_VERSION)/bin/pip install --quiet uv==$(UV_VERSION)
