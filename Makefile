# make demo and make test work on a fresh machine with git, python3 (3.10 to 3.13), make and a C compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt pyproject.toml $(wildcard native/executor/*.[ch] native/include/*.h native/kernels/*.[ch] native/layers/*.[ch] native/program/*.[ch] native/simulator/*.[ch])

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast coverage lint format bench bench-compare model-check check-page check-readme check-native fuzz check-aarch64 neon-report wheel-aarch64 \
  check-board-image soak clean

# Processes that share the tests.
JOBS ?= $(shell nproc)

# How long to fuzz, in seconds, and to soak, in minutes.
SECONDS ?= 60
MINUTES ?= 60

help:
	@echo "make demo    set up, fetch a small language model, let it answer a prompt (options: ARGS='-p ... --scheme w8a8')"
	@echo "make test    set up, run all tests (options: ARGS='-k layout', JOBS=1)"
	@echo "make test-fast  the tests that are quick, with fewer random examples: for every save"
	@echo "make coverage   run all tests, print which lines of Python and C they ran"
	@echo "make lint    formatting, linting, types, import contracts, circles between C files, clang-tidy"
	@echo "make format  format the Python and C files"
	@echo "make bench   measure: a table of ratios, targets, ok or MISS (options: ARGS='--only packing --store run.json')"
	@echo "make bench-compare RUN=run.json   measure again, and show what changed since (two stored runs: RUN='a.json b.json')"
	@echo "make model-check  compare the timing model with all published figures; fails where a stated target is missed"
	@echo "make check-page     the page of npumatmul bench in a real browser: pictures, network, contrast"
	@echo "make check-readme   install as README.md says in a new environment, run its programs"
	@echo "make check-native   all C tests under sanitizers and valgrind, then fuzzing (options: SECONDS=60)"
	@echo "make check-aarch64  all C tests and the libraries, cross-built and run under qemu"
	@echo "make neon-report  what models of Cortex-A76 and A55 say about the loops for 64-bit ARM (options: ARGS='--far', '--write')"
	@echo "make wheel-aarch64  cross-build a wheel into dist/ and check it"
	@echo "make check-board-image  install and use that wheel on a Debian for 64-bit ARM, emulated (ARGS=--fresh: made anew)"
	@echo "make soak    threads and devices for an hour, counting what is left (options: MINUTES=60)"
	@echo "make fuzz    fuzz and keep what was reached in native/fuzz/corpus (options: SECONDS=60)"
	@echo "make clean   remove what was built"

demo: $(VENV)/.installed-llm
	$(BIN)/npumatmul demo $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not long" --hypothesis-profile fast $(ARGS)

coverage: $(VENV)/.installed-dev
	$(BIN)/python tools/measure_coverage.py $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(PYTHON) tools/c_circles.py
	$(PYTHON) tools/lint_c.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(PYTHON) tools/lint_c.py --format

bench: $(VENV)/.installed-dev
	$(BIN)/python bench/table.py $(ARGS)

bench-compare: $(VENV)/.installed-dev
	@test -n "$(RUN)" || { echo "say which run: make bench-compare RUN=run.json, as make bench ARGS='--store run.json' wrote it"; exit 2; }
	$(BIN)/python bench/table.py --compare $(RUN) $(ARGS)

model-check: $(VENV)/.installed-dev
	$(BIN)/python tools/model_check.py

check-page: $(VENV)/.installed-dev
	$(BIN)/python tools/check_page.py

check-readme:
	$(PYTHON) tools/check_readme.py

check-native:
	$(PYTHON) tools/c_tests.py plain address thread valgrind emulated
	$(PYTHON) tools/fuzz.py --seconds $(SECONDS)

fuzz:
	$(PYTHON) tools/fuzz.py --seconds $(SECONDS) --keep

check-aarch64:
	$(PYTHON) tools/check_aarch64.py

neon-report:
	$(PYTHON) tools/neon_report.py $(ARGS)

wheel-aarch64: $(BIN)/python
	$(BIN)/python tools/wheel_aarch64.py

check-board-image: $(VENV)/.installed-dev
	$(BIN)/python tools/board_image.py $(ARGS)

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
