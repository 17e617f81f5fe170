PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo browser test test-slow coverage check docs lock bench-retrieval bench-scale bench-reader \
	bench-layerwise bench-prefix test-gpu bench-gpu

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

setup: $(READY)  ## make the virtual environment from the lock (2 to 10 minutes, 3 GB or more)

$(READY): requirements.lock pyproject.toml
	@echo "Installing $$(grep -c == requirements.lock) packages into $(VENV): 2 to 10 minutes, 3 GB or more."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar on --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)
	@echo "enter it: . $(BIN)/activate"

demo: $(READY)  ## retrieve, train, predict on the demo corpus: one table in minutes
	$(BIN)/exam demo

# Two workers with a thread each: two with two would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

browser: $(READY)  ## install the browser that some slow tests need, where there is none
	scripts/browser.sh

test: $(READY)  ## the fast tests
	$(PYTEST) -m "not slow and not gpu"

test-slow: $(READY)  ## the slow tests
	$(PYTEST) -m "slow and not gpu"

# GPU_PYTHON=<interpreter with torch> replaces .venv; WHEELS=<folder> holds the packages that it lacks.
ifdef GPU_PYTHON
GPU_READY :=
else
GPU_PYTHON := $(BIN)/python
GPU_READY := $(READY)
endif

test-gpu: $(GPU_READY)  ## the tests of a GPU, 8 minutes (GPU_PYTHON=python3 WHEELS=<folder>)
	scripts/gpu.sh test $(GPU_PYTHON)

bench-gpu: $(GPU_READY)  ## packing, attention, encoding, search on a GPU, 8 minutes (GPU_PYTHON, WHEELS too)
	scripts/gpu.sh bench $(GPU_PYTHON)

coverage: $(READY)  ## the fast tests, with the branch coverage of src in coverage.xml
	$(PYTEST) -m "not slow and not gpu" --cov --cov-report=term --cov-report=xml

MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: $(READY)  ## lint, types, imports, spelling, and the documentation's links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/typos
	$(MKDOCS) --quiet

docs: $(READY)  ## build the documentation into site/
	$(MKDOCS)

bench-retrieval: $(READY)  ## two-stage retrieval beside the notebooks' (EXAM_DATA=<folder>)
	$(BIN)/python benchmarks/notebook_retrieval.py

bench-scale: $(READY)  ## an index as large as Wikipedia's, in a notebook's memory (EXAM_DATA=<folder>)
	$(BIN)/python benchmarks/wikipedia_scale.py

bench-reader: $(READY)  ## our reader beside a plain Trainer script (EXAM_DATA=<folder>)
	$(BIN)/python benchmarks/reader.py

bench-layerwise: $(READY)  ## a model larger than memory, three ways (EXAM_DATA=<folder>)
	$(BIN)/python benchmarks/layerwise.py

bench-prefix: $(READY)  ## passages run once for all options of a question (EXAM_DATA=<folder>)
	$(BIN)/python benchmarks/shared_prefix.py

lock: $(READY)  ## write requirements.lock from this environment
	$(BIN)/python scripts/lock.py
