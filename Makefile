# On a fresh machine with Python >= 3.11 and make: `make demo` or `make test`; both set everything up in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Tests run in so many processes of one thread each, which keep the memory that they have: else a tenth of their time
# goes into getting the same pages again. Bytecode is written: else each process that they start compiles the sources.
JOBS ?= 2
ENV = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000
PYTEST = $(ENV) $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test test-more test-portable setup lint types tests fmt check bench fuzz torture

demo: .venv/installed
	$(BIN)/rcnn demo

test: lint
	@$(MAKE) --no-print-directory --jobs 2 types tests

test-more: .venv/installed-dev ## what takes longer than `make test` may; of other CPUs' kernels those of the oldest
	$(ENV) $(BIN)/python -m tests.portable sse41 --not-slow --jobs $(JOBS)
	$(PYTEST) -m more

test-portable: .venv/installed-dev ## the tests that compare floats, with the kernels of all other CPUs
	$(ENV) $(BIN)/python -m tests.portable --jobs $(JOBS)

setup: .venv/installed-dev

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/pyrefly check

tests: .venv/installed-dev
	$(PYTEST)

fmt: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types ## what to run before every commit: under a minute
	$(BIN)/pytest -x -m 'not slow' tests/test_structure.py tests/model tests/ops

fuzz: .venv/installed-dev ## `make fuzz N=1000`: so many damaged files of each of 26 kinds; `FIRST=5000` other ones
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.arena --count $(or $(N),100) --first $(or $(FIRST),0)

torture: .venv/installed-dev ## `make torture N=60`: so many kills of trainings of each scheme, and other ends; `FIRST=5000` other ones
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture.arena --count $(or $(N),6) --first $(or $(FIRST),0)

bench: .venv/installed-dev ## `make bench NAME=script` runs benchmarks/script.py
	@test -n "$(NAME)" || { echo "Say which: make bench NAME=..., one of"; ls benchmarks | grep -v '^_' | sed -n 's/\.py$$//p'; exit 2; }
	$(BIN)/python benchmarks/$(NAME).py

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; say which: make PYTHON=/path/to/python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing into .venv; torch is large, so the first time takes a few minutes."
	$(PIP) --editable .
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing into .venv; torch is large, so the first time takes a few minutes."
	$(PIP) --editable '.[dev]'
	@touch $@ .venv/installed
