# `make demo` and `make test` need Python >= 3.11 and the internet, and nothing else; either can come first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all test-hours coverage lint docs docs-links package bench accuracy clean

# The folder is the demo's own; the command itself replaces nothing.
demo: .venv/.package
	rm -rf hesspec-demo
	$(BIN)/hesspec demo

# A file's tests run in one process, which shares what they have in common: references, runs, traces, launched ranks.
# Python may keep what it compiles, whatever the environment says: hundreds of processes that tests start load it.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# What every change must pass, in minutes.
test: lint
	$(PYTEST) -m "not long and not hours"

# What takes long as well: browsers, kills, three ranks, sweeps of models, matrices and precisions.
test-all: lint
	$(PYTEST) -m "not hours"

# Lines and branches covered by the same tests, by part of the package; one below 85% is an error.
coverage: .venv/.installed
	$(PYTEST) -m "not hours" --cov --cov-report=json:.coverage.json
	$(BIN)/python .ci/check_coverage.py .coverage.json

# Thousands of random operators, hundreds of kills, every byte of a file: what a machine does over night.
test-hours: .venv/.installed
	$(PYTEST) -m hours

lint: .venv/.installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, without a network: runs the gallery; every warning is an error. Pages that nobody changed are kept.
SPHINX := $(BIN)/python -m sphinx -W --keep-going -j auto -c docs -d docs/_build/doctrees . docs/_build

docs: .venv/.docs
	OMP_NUM_THREADS=1 $(SPHINX)/html -b html

# Links to other sites, which needs the network.
docs-links: .venv/.docs
	$(SPHINX)/links -b linkcheck -D plot_gallery=0

.venv/.docs: .venv/.installed
	$(INSTALL) '.[docs]'
	touch $@

# A wheel and an sdist in dist/, without a network, and what a user does first with each.
package: .venv/.installed
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python .ci/check_package.py dist

# What is timed, and what is counted, which takes longer and is the same on every machine.
bench: .venv/.peers
	$(BIN)/python benchmarks/products.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/one_run.py
	$(BIN)/python benchmarks/cost_model.py
	$(BIN)/python benchmarks/distributed.py

accuracy: .venv/.peers
	$(BIN)/python benchmarks/accuracy.py

.venv/.peers: .venv/.installed
	$(INSTALL) '.[bench]'
	touch $@

clean:
	rm -rf .venv hesspec-demo dist docs/_build docs/auto_gallery docs/reference/api docs/reference/api.rst

# The package states ranges; constraints.txt pins what it was tested with.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable

.venv/.installed: .venv/.package
	$(INSTALL) '.[dev]'
	touch $@

# What the demo needs, and no more.
.venv/.package: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "hesspec needs Python >= 3.11, and $(PYTHON) is older: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[report,study]'
	touch $@
