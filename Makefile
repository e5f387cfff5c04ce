# Needs python3 >= 3.11 with venv, and make. Everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: demo test test-slow check install bench build constraints clean help

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(STAMP) ## install, then train, evaluate and plot the main job on the embedded data set
	$(BIN)/cvtrain task=detection model=yolo

test: $(STAMP) ## install if needed, then the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not slow"

test-slow: $(STAMP) ## the rest of the tests: DDP, kill and resume, overfitting, real data
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q -m slow

check: $(STAMP) ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP) ## loader and augmentation throughput, framework overhead, as ratios
	$(BIN)/python scripts/bench_loader.py
	$(BIN)/python scripts/bench_augment.py
	$(BIN)/python scripts/bench_overhead.py

build: $(STAMP) ## wheel and sdist into dist/
	$(BIN)/python -m build --no-isolation

install: $(STAMP) ## .venv with cvtrain (editable) and the development tools

# uv inside the venv: a resolver that takes seconds where pip takes minutes. The constraints pin the
# tested set; --compile-bytecode makes the first start as fast as the second.
$(STAMP): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cvtrain needs python3 >= 3.11; say PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode \
	  --constraint .ci/constraints.txt --editable . --group dev
	@touch $@

constraints: $(STAMP) ## resolve the newest set anew into .ci/constraints.txt; run all tests after
	$(BIN)/uv pip compile --quiet pyproject.toml --group dev --extra mlflow --universal --upgrade \
	  --python-version 3.11 --no-annotate --no-header --output-file $(VENV)/resolved.txt
	@{ sed -n 1p .ci/constraints.txt; cat $(VENV)/resolved.txt; } > $(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt .ci/constraints.txt

clean: ## remove .venv and build products
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
