# make quickstart   a real study on this machine, from nothing, in a few minutes
# make test         the test suite, in minutes
# make test-all     the same, and the long list of networks
# Both make .venv and install into it the first time.

PYTHON ?= python3
VENV := .venv
# Test files side by side, one thread each: more threads only wait for each other.
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile
READY := $(VENV)/.installed

.PHONY: help install quickstart test test-all lint

help:
	@sed -n '1,4p' Makefile

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'splitsearch needs Python 3.11 or newer; set PYTHON=')"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,dev]"
	touch $@

quickstart: $(READY)
	$(VENV)/bin/splitsearch run quickstart

test: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTEST)

test-all: test
	$(PYTEST) --dist load -m architectures

lint: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
