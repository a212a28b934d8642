# `make` lists the targets. `demo`, `test` and `check` set up `.venv` first, once.

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPECHECK := build/typecheck

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-gpu check format-check lint types imports fmt clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## create .venv and install the tested set, editable; PYTHON=... chooses the interpreter

demo: $(STAMP) ## random weights -> bundle -> embedding of a rendered clip -> speed beside the original
	$(BIN)/python examples/demo.py

test: $(STAMP) ## the whole test suite; ARGS="-k schedule" narrows it
	$(BIN)/pytest $(ARGS)

test-gpu: $(STAMP) ## only the tests that need a CUDA device
	$(BIN)/pytest -m gpu $(ARGS)

check: format-check lint types imports ## format, lint, types, direction of imports

fmt: $(STAMP) ## format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what was built; .venv stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name $(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

format-check: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

# mypy does not see kernels/, profiles/ and bench/ through an editable install, hence a copy as installed;
# it runs inside the copy, with a cache of its own, because it prefers what lies in the working directory.
# setuptools ships what an earlier build left in build/lib, hence nothing of build/ is kept.
types: $(STAMP)
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-compile --target $(TYPECHECK) .
	rm -rf build/lib build/bdist.*
	cd $(TYPECHECK) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
	    --cache-dir $(CURDIR)/.mypy_cache/installed -p tempme_export

imports: $(STAMP)
	$(BIN)/pytest -q tests/test_import_direction.py

# A .venv that was there before is kept if it works; one that an interrupted run left half made is made anew.
$(STAMP): pyproject.toml constraints.txt
	@if $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "$(VENV) is there; installing into it"; \
	else \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	        echo "error: '$(PYTHON)' says '$$($(PYTHON) --version 2>&1)'; Python 3.11 or newer is needed." \
	            "Name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	    $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	        echo "error: '$(PYTHON)' has no venv module. Install it (Debian and Ubuntu: python3-venv)" \
	            "or name another: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	    echo "creating $(VENV) with $(PYTHON)"; \
	    $(PYTHON) -m venv --clear $(VENV); \
	fi
	$(BIN)/python -m pip install -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@
