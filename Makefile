# make setup   a virtual environment in .venv with dspark and its tools
# make demo    the main job on real prompts with the bundled pair
# make docs    the documentation as a site, in site/
# make results the figures of docs/results, in under an hour: make results PROMPTS=DIR (benchmarks/results.py)
# make wheel   a wheel for other environments, in dist/
# make check   what CI runs: lint, types, documentation, tests
# On ordinary Linux, pip's default torch is the large CUDA build; TORCH_ARGS hands pip other arguments for that step.

PYTHON ?= python3
TORCH_ARGS ?=
PROMPTS ?=
RESULTS_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test lint types docs check results wheel clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt $(TORCH_ARGS) torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev,docs]'
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

# Errors: a link that leads nowhere, a page out of the navigation, anything loaded from elsewhere (--quiet hides them).
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint types docs test

results: $(STAMP)
	$(BIN)/python benchmarks/results.py $(if $(PROMPTS),--prompts $(PROMPTS)) $(RESULTS_ARGS)

wheel: $(STAMP)
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf .venv site
