# make demo and make test work on a fresh machine with git, python3 (3.10 to 3.13), make and a C compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt pyproject.toml $(wildcard native/*/*.c native/*/*.h)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench clean

help:
	@echo "make demo    set up, fetch a small language model, let it answer a prompt (options: ARGS='-p ... --scheme w8a8')"
	@echo "make test    set up, run all tests (options: ARGS='-k layout')"
	@echo "make lint    formatting, linting, types, import contracts"
	@echo "make format  format the Python files"
	@echo "make bench   measure, printing a table"
	@echo "make clean   remove what was built"

demo: $(VENV)/.installed-llm
	$(BIN)/npumatmul demo $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev
	$(BIN)/python bench/kernels.py

clean:
	rm -rf $(VENV) build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2])' \
	  || { echo "npumatmul needs Python 3.10 or newer; choose one with PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "python3 cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }

# The package is rebuilt when its C sources change; its Python files are used where they are.
$(VENV)/.installed-%: $(BIN)/python $(NATIVE)
	@echo "setting up $(VENV) for '$*' ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@
