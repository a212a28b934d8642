# `make` lists the targets. `demo`, `test` and `check` set up `.venv` first, once.

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
PYTHON_FLOOR ?= $(shell for found in python3.12 \
    $$(ls -d "$$(pyenv root 2>/dev/null || echo ~/.pyenv)"/versions/3.12*/bin/python 2>/dev/null | sort -rV); do \
        $$found -c '' 2>/dev/null && echo $$found && exit; \
    done; echo python3.12)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FLOOR_VENV := .venv-floor
FLOOR_BIN := $(FLOOR_VENV)/bin
FLOOR_STAMP := $(FLOOR_VENV)/.installed
TYPECHECK := build/typecheck

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-floor test-gpu check format-check lint types imports fmt clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## create .venv and install the tested set, editable; PYTHON=... chooses the interpreter

demo: $(STAMP) ## random weights -> bundle -> embedding of a rendered clip -> speed beside the original
	$(BIN)/python examples/demo.py

test: $(STAMP) ## the whole test suite; ARGS="-k schedule" narrows it
	$(BIN)/pytest $(ARGS)

test-floor: $(FLOOR_STAMP) ## the kernel tests in the oldest supported set: Python 3.12, torch 2.11, triton 3.6
	$(FLOOR_BIN)/pytest tests/kernels $(ARGS)

test-gpu: $(STAMP) ## only the tests that need a CUDA device
	$(BIN)/pytest -m gpu $(ARGS)

check: format-check lint types imports ## format, lint, types, direction of imports

fmt: $(STAMP) ## format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what was built; .venv and .venv-floor stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name '$(VENV)*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

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

# A venv that was there before is kept if it works; one that an interrupted run left half made is made anew.
# $(call make-venv,interpreter,test of its sys.version_info,the test in words,how to name another)
define make-venv
@python='$(1)'; version_fits='import sys; sys.exit(not sys.version_info$(2))'; \
if $(@D)/bin/python -c "import pip; $$version_fits" 2>/dev/null; then \
    echo "$(@D) is there; installing into it"; \
else \
    $$python -c "$$version_fits" 2>/dev/null || { \
        echo "error: '$$python' says '$$($$python --version 2>&1 | head -n 1)'; Python $(3) is needed." \
            "Name one: $(4)" >&2; exit 1; }; \
    $$python -c 'import venv, ensurepip' 2>/dev/null || { \
        echo "error: '$$python' has no venv module. Install it (Debian and Ubuntu: python3-venv)" \
            "or name another: $(4)" >&2; exit 1; }; \
    echo "creating $(@D) with $$python"; \
    $$python -m venv --clear $(@D); \
fi
endef

$(STAMP): pyproject.toml constraints.txt
	$(call make-venv,$(PYTHON), >= (3, 11),3.11 or newer,make setup PYTHON=/path/to/python3.11)
	$(BIN)/python -m pip install -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

$(FLOOR_STAMP): pyproject.toml constraints-floor.txt
	$(call make-venv,$(PYTHON_FLOOR),[:2] == (3, 12),3.12,make test-floor PYTHON_FLOOR=/path/to/python3.12)
	$(FLOOR_BIN)/python -m pip install --no-deps -r constraints-floor.txt
	$(FLOOR_BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@
