# Two commands matter: `make run` and `make test`. Both work on a bare machine with Python 3.11 or newer and make.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
BIN := $(VENV)/bin
CODE := $(wildcard src tests tools benchmarks)
# what of gpustack-runtime finds cards, without what it needs to deploy on Docker and Kubernetes
GPUSTACK := gpustack-runtime dataclasses-json marshmallow typing-inspect mypy-extensions mthreads-ml-py
PIP := $(BIN)/pip --quiet --disable-pip-version-check

.PHONY: run test fuzz check docs clean full-model-check

run: $(VENV)/.run ## plan and run the mixed-maker training job
	$(BIN)/zhenfa run examples/mixed-pretrain.yaml

test: $(VENV)/.test ## the whole test suite, by as many workers as there are processors (WORKERS=1: by one)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder --inline-snapshot disable

fuzz: $(VENV)/.test ## every property again, over cases drawn anew
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m hypothesis --hypothesis-profile search

check: $(VENV)/.test ## style, types, layers
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_house.py

docs: $(VENV)/.test ## the pages that come from the code: laws, commands, schemas, every machine, validation (minutes)
	$(BIN)/python -m zhenfa.cli.schemas docs/schemas
	$(BIN)/python -m zhenfa.cli.reference docs/reference/cli.md
	$(BIN)/python tools/every_machine.py
	$(BIN)/python tools/make_docs.py --validation

full-model-check: $(VENV)/.test ## every causal language model of transformers, parameter by parameter
	$(BIN)/python tools/check_transformers.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zhenfa needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable '.[live,plot,trace]'
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) install --constraint constraints.txt --editable '.[live,ray,plot,trace,test,check]'
	$(PIP) install --constraint constraints.txt --no-deps $(GPUSTACK)
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis runs
