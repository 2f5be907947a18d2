# make quickstart   a real study on this machine, from nothing, in a few minutes
# make test         the test suite, in minutes
# make test-all     the same, and the long list of networks
# Both make .venv and install into it the first time.

PYTHON ?= python3
VENV := .venv
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
	$(VENV)/bin/python -m pytest

test-all: test
	$(VENV)/bin/python -m pytest -m architectures

lint: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
