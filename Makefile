# Every target sets up .venv by itself where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test coverage torture slurm browser docs lint format clean setup

quickstart: $(READY)  ## pretrain, fine-tune, transfer on drawn pictures; under ten minutes on two cores
	$(BIN)/python scripts/quickstart.py

test: $(READY)  ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

coverage: $(READY)  ## all tests, and the lines that they miss; takes twice as long
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term --cov-fail-under=90

torture: $(READY)  ## kills, faults, mutants and a soak: twenty minutes on two cores
	$(BIN)/python -m pytest -m torture -n 2 --dist worksteal tests/torture

slurm:  ## a SLURM on this machine for tests/test_slurm.py, which is skipped without; needs root or sudo
	tests/slurm/start.sh

browser:  ## a Chromium for tests/reports/test_browser.py, which is skipped without; needs root or sudo
	command -v chromium >/dev/null || { \
	  sudo=$$(test $$(id -u) = 0 || echo sudo); \
	  $$sudo apt-get update -qq && \
	  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; }

docs: $(READY)  ## the documentation as a site in site/; a dead link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## rewrite the code as lint wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "no virtual environment can be made: install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:  ## remove what the tools leave behind; runs in outputs/ stay
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
