# Everything runs in .venv, which is made on first use and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 2
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv browser demo test pytest lint stress benchmarks clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## the environment: the package, editable, and its tools at tested versions

# torch first and at its pin, so that what follows finds it installed and pulls no other build of it
$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into $(VENV)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

demo: $(INSTALLED) ## tiny models trained on the spot, a cache, two students, one table: two minutes on two cores
	$(BIN)/python -m examples.demo

# where it cannot be installed, the tests of pages are skipped with a word, unless ALIGNDISTIL_CHROMIUM=required
browser: ## Chromium, which tests of pages need: installed by apt-get, as root
	@command -v chromium > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null && apt-get update -qq \
	&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium > /dev/null; } \
	|| echo "no chromium: the tests of pages will be skipped"

# mypy has one thread and a minute of work in a fresh clone: beside the tests it leaves no core idle
test: $(INSTALLED) ## lint and the tests, side by side
	$(MAKE) --no-print-directory --jobs 2 lint pytest

pytest: $(INSTALLED) browser ## the tests alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(INSTALLED) ## ruff, mypy, oxlint and oxfmt
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/oxlint --deny-warnings shards student
	$(BIN)/oxfmt --check --no-error-on-unmatched-pattern '{shards,student}/**/*.{js,css}'

stress: $(INSTALLED) ## the campaigns of docs/reliability.md: SECONDS each, the next call goes on; SEED, ONLY="kills flips"
	$(PIP_INSTALL) -e '.[dev,stress]'
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m stress $(ONLY) --seed $(or $(SEED),0) --seconds $(or $(SECONDS),600)

benchmarks: $(INSTALLED) ## all benchmarks, headlines in one table: three hours or more on two cores
	$(PIP_INSTALL) -e ".[dev,teachers,benchmarks]"
	$(BIN)/python -m benchmarks

clean: ## remove the environment, the demo's files and the tools' caches
	rm -rf $(VENV) runs/demo dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
