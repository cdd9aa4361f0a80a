# `make` lists the targets. Everything is made in .venv and .venv-s3; nothing else is touched.

AUDIO ?=
TORCH_BACKEND ?=
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2
BENCH_ARGS ?=

PY := .venv/bin/python
ENV := .venv/.made-by-make
S3_ENV := .venv-s3/.made-by-make
BACKEND := $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND))
PACKAGES := common services client tests

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test bench-pipeline bench-archive bench-upload bench-size bench-classifier lint format type env env-s3 constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Options: AUDIO=path (demo), PYTEST_ARGS=... (test), PYTHON=python3.12 and"
	@echo "TORCH_BACKEND=cpu (env: PyTorch without CUDA from its own download site, saves 4 GB)"

demo: $(ENV)  ## process a small generated archive, or AUDIO=path of your own
	@$(if $(AUDIO),,$(PY) -m client.demo demo/soundscapes)
	@$(PY) -m client.cli process $(if $(AUDIO),"$(AUDIO)",demo/soundscapes) --home demo/home

test: $(ENV) $(S3_ENV)  ## run every test against servers that the tests start themselves
	$(PY) -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile \
	    --no-loadscope-reorder $(PYTEST_ARGS)

bench-pipeline: $(ENV)  ## throughput of a folder (AUDIO=path) against a plain loop, as JSON
	@$(PY) -m tests.bench.pipeline "$(AUDIO)"

bench-archive: $(ENV) $(S3_ENV)  ## cost per file of archives, stages doing nothing, as JSON (hours; BENCH_ARGS=)
	@$(PY) -m tests.bench.archive $(BENCH_ARGS)

bench-upload: $(ENV) $(S3_ENV)  ## 2 GB through the gateway against writing to the store directly, as JSON
	@$(PY) -m tests.bench.upload $(BENCH_ARGS)

bench-size: $(ENV) $(S3_ENV)  ## what recordings and hours cost, and what archives need, as JSON (BENCH_ARGS=)
	@$(PY) -m tests.bench.sizing $(BENCH_ARGS)

bench-classifier: $(ENV)  ## speed of the classifier on one core: shards, the plain loop, a cold start, as JSON (AUDIO=path)
	@$(PY) -m tests.bench.classifier $(if $(AUDIO),--audio "$(AUDIO)") $(BENCH_ARGS)

lint: $(ENV)  ## check format and style
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

format: $(ENV)  ## put code in the house format
	.venv/bin/ruff check --fix-only --quiet .
	.venv/bin/ruff format .

type: $(ENV)  ## check types (strict in common, gateway and dispatcher)
	.venv/bin/mypy

env: $(ENV)  ## make the environment in .venv

env-s3: $(S3_ENV)  ## make the environment of the S3 test server in .venv-s3

$(ENV): pyproject.toml constraints.txt
	deploy/make-env .venv $(BACKEND) -c constraints.txt -b constraints.txt -r deploy/tools.in -e '.[dev]'
	@touch $@

$(S3_ENV): deploy/constraints-s3.txt
	deploy/make-env .venv-s3 -r deploy/constraints-s3.txt
	@touch $@

constraints: $(ENV)  ## pin every dependency anew (UPGRADE=--upgrade takes newer releases)
	$(PY) -m uv pip compile pyproject.toml deploy/tools.in --all-extras --universal \
	    --python-version 3.11 --no-emit-index-url --no-header $(UPGRADE) -o constraints.txt
	echo swift | $(PY) -m uv pip compile - --universal \
	    --python-version 3.11 --no-emit-index-url --no-header $(UPGRADE) -o deploy/constraints-s3.txt

clean:  ## remove environments, caches and what the demo made
	-@test ! -x $(PY) || $(PY) -m client.cli down --home demo/home
	rm -rf .venv .venv-s3 demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find common services client tests -name __pycache__ -type d -exec rm -rf {} +
