# `make` lists the targets. `demo`, `test` and `check` set up `.venv` first, once.

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
PYTHON_FLOOR ?= $(shell for found in python3.12 \
    $$(ls -d "$$(pyenv root 2>/dev/null || echo ~/.pyenv)"/versions/3.12*/bin/python 2>/dev/null | sort -rV); do \
        $$found -c '' 2>/dev/null && echo $$found && exit; \
    done; echo python3.12)
HAS_FLOOR := $(shell $(PYTHON_FLOOR) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null && echo yes)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FLOOR_VENV := .venv-floor
FLOOR_BIN := $(FLOOR_VENV)/bin
FLOOR_STAMP := $(FLOOR_VENV)/.installed
TYPECHECK := build/typecheck
GPU_PYTHON ?= python3
GPU_CHECK := $(CURDIR)/build/gpu-check
RTX := build/trt-rtx
RTX_WHEELS := onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0 tensorrt-rtx-cu13-bindings==1.7.1.116

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-export test-bench test-main test-kernels test-floor test-system test-processors fuzz test-gpu gpu-check trt-rtx-check check format-check lint types imports fmt clean

# A suite in which ARGS selects nothing has not failed.
suite = $(1) $(ARGS) || { code=$$?; [ $$code -eq 5 ] && [ -n '$(ARGS)' ]; }

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## create .venv and install the tested set, editable; PYTHON=... chooses the interpreter

demo: $(STAMP) ## trained weights -> verified bundle -> search by text; ViT-B/32 -> bundle -> speed beside the original
	$(BIN)/python examples/demo.py

test: $(STAMP) $(if $(HAS_FLOOR),$(FLOOR_STAMP)) ## every suite that needs no GPU, two at a time; ARGS="-k schedule" narrows
	@$(MAKE) --no-print-directory -j2 test-export test-main test-bench test-kernels $(if $(HAS_FLOOR),test-floor)
	@$(if $(HAS_FLOOR),,echo "NOT TESTED: the oldest supported set, for want of Python 3.12 (PYTHON_FLOOR=...)" >&2)

# Exports and the bench take half of the time, and go beside the rest.
test-export: $(STAMP) ## what is written: graphs, packages, bundles
	$(call suite,$(BIN)/pytest tests/exporters tests/pipeline)

test-bench: $(STAMP) ## the benchmark harness
	$(call suite,$(BIN)/pytest tests/bench)

test-main: $(STAMP) ## everything else but the kernels' own tests
	$(call suite,$(BIN)/pytest --ignore=tests/exporters --ignore=tests/pipeline --ignore=tests/bench --ignore=tests/kernels/triton --ignore=tests/system)

test-kernels: $(STAMP) ## the kernels' own tests, in Triton's interpreter
	$(call suite,TRITON_INTERPRET=1 $(BIN)/pytest tests/kernels/triton)

test-floor: $(FLOOR_STAMP) ## all of tests/kernels in the oldest supported set: Python 3.12, torch 2.11, triton 3.6
	$(call suite,$(FLOOR_BIN)/pytest tests/kernels --ignore=tests/kernels/triton)
	$(call suite,TRITON_INTERPRET=1 $(FLOOR_BIN)/pytest tests/kernels/triton)

test-system: $(STAMP) ## with what the registry has: a fresh environment, the oldest ONNX Runtime, TensorRT-RTX that builds with our plugins
	$(call suite,$(BIN)/pytest tests/system)

test-processors: $(STAMP) ## every test that compares numbers, as older processors and other orders of addition compute
	PROCESSORS=all $(BIN)/pytest tests/processors $(ARGS)

fuzz: $(STAMP) ## damaged inputs of five kinds from a new seed, MINUTES=10 in all; FUZZ_SEED=, FUZZ_CASE=kind:seed:number
	FUZZ_MINUTES=$(or $(MINUTES),10) $(BIN)/pytest tests/acceptance/fuzz $(ARGS)

test-gpu: $(STAMP) ## only the tests that need a CUDA device
	$(BIN)/pytest -m gpu $(ARGS)

# Installed without a network into a folder, since the bare folders here shadow the package; what an earlier build
# left in build/lib would be installed too.
gpu-check: ## on a machine with a GPU: test, compare and time everything; OUT=folder, ARGS="--minutes 10 --steps kernels"
	$(if $(OUT),,$(error name the folder for the results: make gpu-check OUT=folder))
	rm -rf $(GPU_CHECK) build/lib build/bdist.*
	$(GPU_PYTHON) -m pip install --quiet --no-deps --no-build-isolation --no-compile --target $(GPU_CHECK) .
	PYTHONPATH=$(GPU_CHECK) PYTHONSAFEPATH=1 $(GPU_PYTHON) -m tempme_export.bench.cli gpu-check $(OUT) $(ARGS)

# In place of TensorRT's own parser and builder, which come from NVIDIA's index alone and ask for a GPU.
trt-rtx-check: $(RTX)/.installed ## TensorRT-RTX, another product than TensorRT, parses and builds both video graphs on a CPU, one with our plugins; 0.3 GB
	LD_LIBRARY_PATH=$(CURDIR)/$(RTX)/onnxruntime_ep_nv_tensorrt_rtx PYTHONSAFEPATH=1 \
	    $(BIN)/python -m tempme_export.cli.rtx_check $(or $(ARGS),examples/mini.pth)

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
# setuptools ships what an earlier build left in build/lib, hence that is removed.
types: $(STAMP)
	rm -rf $(TYPECHECK) build/lib build/bdist.*
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-compile --target $(TYPECHECK) .
	rm -rf build/lib build/bdist.*
	cd $(TYPECHECK) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
	    --cache-dir $(CURDIR)/.mypy_cache/installed -p tempme_export

imports: $(STAMP)
	$(BIN)/pytest -q tests/test_import_direction.py

$(RTX)/.installed: Makefile | $(STAMP)
	rm -rf $(RTX)
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --target $(RTX) $(RTX_WHEELS)
	cd $(RTX)/onnxruntime_ep_nv_tensorrt_rtx && ln -s libtensorrt_rtx.so.[0-9]* libtensorrt_rtx.so # the name that the parser opens
	@touch $@

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
