# Two commands do everything on a machine with Python 3.11 and make:
#   make demo     the whole program on loopback, in time-lapse; ARGS="--speed 300" hands flags over
#   make test     lint, types, tests
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS   ?=
# Half of the time of most tests is spent waiting. Those of a file share what is dear to make.
SPREAD := -n auto --dist loadfile

.PHONY: demo test test-all test-foreign foreign lint types unit bench lock clean help

help:
	@sed -n '1,3s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.run
	@$(BIN)/evbatteryd demo $(ARGS)

test: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow and not foreign" $(SPREAD) $(ARGS)

# Programs of others that tests run against: Home Assistant (needs Python 3.13) and Node-RED (needs npm).
foreign:
	sh tools/homeassistant.sh
	sh tools/nodered.sh

test-foreign: foreign $(VENV)/.dev
	$(BIN)/python -m pytest -m foreign $(ARGS)

test-all: lint types foreign
	$(BIN)/python -m pytest $(SPREAD) $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python -m tests.benchmarks $(ARGS)

# Newest versions that pyproject.toml admits, with their hashes. Needs uv.
lock:
	uv pip compile --upgrade --quiet --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		--extra fast --extra demo pyproject.toml -o requirements/run.txt
	uv pip compile --upgrade --quiet --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		--extra fast --extra demo --extra dev -c requirements/run.txt pyproject.toml -o requirements/dev.txt

$(BIN)/python:
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh tools/venv.sh

# hatchling builds the editable install; it is pinned like everything else, so nothing is built in isolation.
$(VENV)/.run: requirements/run.txt requirements/build.txt pyproject.toml | $(BIN)/python
	@echo "Installing evbatteryd's pinned dependencies into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/run.txt -r requirements/build.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	@echo "Installing the tools that the tests need ..."
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@

clean:
	rm -rf $(VENV) .venv-foreign dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
