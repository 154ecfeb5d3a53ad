# Every target sets up what it needs: python3 (3.11 or newer) and make are all a fresh machine must have.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

FUZZ_SECONDS ?= 60

export RAY_USAGE_STATS_ENABLED = 0
export RAY_ENABLE_UV_RUN_RUNTIME_ENV = 0

.PHONY: help venv demo test test-fast fuzz lint format bench report clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Suture needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

venv: $(READY)  ## Create .venv with everything installed

demo: $(READY)  ## Classify real photographs over a link that fails and heals
	$(BIN)/python -m bench.demo

test: $(READY)  ## Run every test
	$(BIN)/python -m pytest

test-fast: $(READY)  ## Run the tests that start no cluster and capture no large network
	$(BIN)/python -m pytest -m "not slow and not ray"

fuzz: $(READY)  ## Fuzz every parser for FUZZ_SECONDS each (60), keeping what was found in .fuzz
	for target in header message payload bundle config; do \
		$(BIN)/python -m tests.fuzz $$target --seconds $(FUZZ_SECONDS) --corpus .fuzz/$$target || exit 1; \
	done

lint: $(READY)  ## ruff, mypy --strict and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## Rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## Run the measurements and keep their JSON in bench/results
	$(BIN)/python -m bench

report: $(READY)  ## One HTML page of the kept figures; the same into README and docs/measured.md
	$(BIN)/python -m bench.report --write --out report.html

clean:  ## Remove the virtual environment and every cache
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
