# Python 3.11 or newer; constraints.txt pins releases that need it.
PYTHON ?= python3
# Passed on to pytest, or to the benchmark: make test ARGS='-k forest'
ARGS ?=

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
BIN := .venv/bin
INSTALLED := .venv/.installed

# pyright comes whole from the package index; this stops it from asking there for a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: demo test test-slow test-all bench gpu lint docs format clean

demo: $(INSTALLED)
	$(BIN)/hsae demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not slow and not gpu' $(ARGS)

test-slow: $(INSTALLED)
	@if grep -rqF 'mark.slow' tests; then \
		OMP_NUM_THREADS=2 $(BIN)/pytest -m slow $(ARGS); \
	else \
		echo 'there are no slow tests'; \
	fi

test-all: test test-slow

# Minutes on two cores that do nothing else; make bench ARGS='--full' for all sizes, '--device cuda' on a GPU
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks $(ARGS)

# At most eight minutes on a GPU: its tests, then what a step costs at the paper's size
gpu: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

# Strict: a broken link, anchor or reference fails. The pages in site/ open from disk.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist site
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an install that was interrupted is done again.
$(INSTALLED): pyproject.toml constraints.txt
	@echo 'Installing into .venv (a few minutes)'
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' \
		| grep --line-buffered -oE '^(Collecting [^ ]+|Installing collected packages)'
	@touch $@
