# make demo and make test work on a fresh machine with git, python3 (3.10 to 3.13), make and a C compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt pyproject.toml $(wildcard native/executor/*.[ch] native/include/*.h native/kernels/*.[ch] native/simulator/*.[ch])

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench check-native fuzz check-aarch64 wheel-aarch64 soak clean

# How long to fuzz, in seconds, and to soak, in minutes.
SECONDS ?= 60
MINUTES ?= 60

help:
	@echo "make demo    set up, fetch a small language model, let it answer a prompt (options: ARGS='-p ... --scheme w8a8')"
	@echo "make test    set up, run all tests (options: ARGS='-k layout')"
	@echo "make lint    formatting, linting, types, import contracts, circles between C files"
	@echo "make format  format the Python files"
	@echo "make bench   measure, printing a table of ratios (options: ARGS='-k pack')"
	@echo "make check-native   all C tests under sanitizers and valgrind, then fuzzing (options: SECONDS=60)"
	@echo "make check-aarch64  all C tests and the libraries, cross-built and run under qemu"
	@echo "make wheel-aarch64  cross-build a wheel into dist/ and check it"
	@echo "make soak    threads and devices for an hour, counting what is left (options: MINUTES=60)"
	@echo "make fuzz    fuzz and keep what was reached in native/fuzz/corpus (options: SECONDS=60)"
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
	$(PYTHON) tools/c_circles.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -o addopts=-q --benchmark-columns=median,rounds bench $(ARGS)

check-native:
	$(PYTHON) tools/c_tests.py plain address thread valgrind
	$(PYTHON) tools/fuzz.py --seconds $(SECONDS)

fuzz:
	$(PYTHON) tools/fuzz.py --seconds $(SECONDS) --keep

check-aarch64:
	$(PYTHON) tools/check_aarch64.py

wheel-aarch64: $(BIN)/python
	$(BIN)/python tools/wheel_aarch64.py

soak: $(VENV)/.installed-dev
	$(BIN)/python tests/soak.py --minutes $(MINUTES)

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
