# Every target sets up .venv by itself where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The versions that set-up installs, for pip and uv alike; `make lock` writes them.
LOCK := requirements/lock.txt
LOCKED := --constraint $(LOCK) --build-constraint $(LOCK)
# DeepSpeed compiles nothing while it is installed.
export DS_BUILD_OPS := 0
# Interpreters of pyenv are found too, and none is downloaded.
UV := UV_PYTHON_DOWNLOADS=never \
  PATH="$$PATH$(subst $() ,,$(patsubst %,:%,$(wildcard $(HOME)/.pyenv/versions/3.1*/bin)))" $(BIN)/uv

PYTEST := -m pytest -n 2 --dist worksteal
# What a changed package or interpreter breaks first.
FAST := tests/checkpoints tests/training/optim tests/tasks $(patsubst %,tests/%.py, \
  models/swin/test_backends models/swin/test_position_bias models/swin/test_activation_checkpointing \
  models/swin/test_swin models/swin/test_windows models/test_losses models/test_masking \
  data/test_auto_augment data/test_decode data/test_demo data/test_transforms \
  cli/test_command_line test_defaults test_lock utils/test_normalization)
# What a slow or busy machine breaks first: several processes, time-outs, seconds.
TIMED := $(patsubst %,tests/%.py, cli/test_processes data/test_loader plan/test_step_memory \
  training/test_strategies test_distributed test_guard test_interruption test_signals)

.PHONY: quickstart check test slow fast newest oldest pythons loaded coverage torture slurm browser docs lint format lock clean setup

quickstart: $(READY)  ## pretrain, fine-tune, transfer on drawn pictures; under ten minutes on two cores
	$(BIN)/python scripts/quickstart.py

check: $(READY)  ## before a commit: lint, types, and the tests of what changed; SINCE=main: since then
	$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy
	tests=$$($(BIN)/python .ci/changed_tests.py $(SINCE)); \
	  test -z "$$tests" || $(BIN)/python $(PYTEST) -q $$tests

test: $(READY)  ## all tests but the slow ones
	$(BIN)/python $(PYTEST)

slow: $(READY)  ## what `make test` leaves out: pages and notebooks as typed, measured memory, several interpreters
	$(BIN)/python $(PYTEST) -m slow

fast: $(READY)  ## the tests that a changed package or interpreter breaks first
	$(BIN)/python $(PYTEST) -m "not torture" $(FAST)

# Runs the fast tests in .venv-$(1), which is made again, by Python $(2), with the versions that $(3) chooses.
define fast_in
	$(UV) venv --quiet --clear --python $(2) .venv-$(1)
	$(UV) pip install --quiet --python .venv-$(1) $(3) --editable ".[test]"
	.venv-$(1)/bin/python $(PYTEST) -m "not torture" $(FAST)
endef

newest: $(READY)  ## fast tests on the newest Python, with today's versions of all packages
	$(call fast_in,newest,3.13,--upgrade)

oldest: $(READY)  ## fast tests on the oldest Python, with the lowest versions that pyproject.toml allows
	$(call fast_in,oldest,3.10,--resolution lowest-direct)

pythons: python3.10 python3.11 python3.12 python3.13  ## fast tests on each Python, with locked versions

python3.%: $(READY)
	$(call fast_in,3.$*,3.$*,$(LOCKED))

loaded: $(READY)  ## tests of processes and time on one core, then beside two busy loops
	taskset -c 0 $(BIN)/python -m pytest -m "not torture" $(TIMED)
	{ while :; do :; done & one=$$!; while :; do :; done & trap "kill $$one $$!" EXIT; \
	  $(BIN)/python -m pytest -m "not torture" $(TIMED); }

coverage: $(READY)  ## all tests, and the lines that they miss; takes twice as long
	$(BIN)/python $(PYTEST) -m "not torture" --cov --cov-report=term --cov-fail-under=90

torture: $(READY)  ## kills, faults, mutants and a soak: twenty minutes on two cores
	$(BIN)/python -m pytest -m torture -n 2 --dist worksteal tests/torture

slurm:  ## a SLURM on this machine for tests/test_slurm.py, which is skipped without; needs root or sudo
	tests/slurm/start.sh

browser:  ## a Chromium for tests/report/test_browser.py, which is skipped without; needs root or sudo
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

# Where uv does not come through, pip may: it has mirrors and proxies of its own configured.
$(READY): pyproject.toml $(LOCK) | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(LOCKED) --editable ".[dev]" || \
	  $(BIN)/python -m pip install --quiet $(LOCKED) --editable ".[dev]"
	touch $@

$(BIN)/uv:
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "no virtual environment can be made: install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint $(LOCK) pip uv

lock: | $(BIN)/uv  ## pin what pyproject.toml requires in requirements/lock.txt; UPGRADE=--upgrade: today's versions
	$(UV) pip compile --quiet --universal --python-version 3.10 --all-extras $(UPGRADE) \
	  --no-annotate --no-emit-index-url --custom-compile-command "make lock" \
	  pyproject.toml requirements/lock.in --output-file $(LOCK)

clean:  ## remove what the tools leave behind; runs in outputs/ stay
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.* .venv-*
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
