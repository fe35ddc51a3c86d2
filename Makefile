# make setup   a virtual environment in .venv with dspark and its tools
# make demo    the main job on real prompts with the bundled pair
# make check   what CI runs: lint, types, tests
# On ordinary Linux, pip's default torch is the large CUDA build; TORCH_ARGS hands pip other arguments for that step.

PYTHON ?= python3
TORCH_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test lint types check clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt $(TORCH_ARGS) torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/dspark demo

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf .venv
