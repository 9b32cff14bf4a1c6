PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
PYTEST_OPTIONS := -n $(WORKERS) --dist loadgroup --durations=10

.PHONY: demo test test-lowest test-newest bench docs dist clean

demo: .venv/package
	$(BIN)/python examples/01_five_points.py

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest $(PYTEST_OPTIONS)

# The oldest dependencies that pyproject.toml allows, and the newest: what they deprecate of each other is no fault here.
test-lowest test-newest: test-%: .venv-%/ready
	.venv-$*/bin/pytest $(PYTEST_OPTIONS) -W default::DeprecationWarning -W default::FutureWarning

bench: .venv/ready
	$(BIN)/pytest --benchmark-enable --benchmark-disable-gc --benchmark-timer=time.process_time benchmarks/test_ratios.py

# The site, in site/: every page, figure and notebook is made anew, and any warning is an error.
docs: .venv-docs/ready
	OMP_NUM_THREADS=1 MPLBACKEND=Agg NO_MKDOCS_2_WARNING=1 JUPYTER_PATH=docs/notebooks .venv-docs/bin/mkdocs build --strict

# What is uploaded to a package index, in dist/.
dist: .venv-docs/ready
	rm -rf dist
	.venv-docs/bin/python -m build
	.venv-docs/bin/twine check --strict dist/*

# The package alone, which the demo needs; what develops it comes on top.
.venv/package: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "relu_diag needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/ready: .venv/package
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv-docs/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

.venv-lowest/ready: pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) .ci/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[dev]'
	touch $@

.venv-newest/ready: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-docs .venv-lowest .venv-newest runs dist site docs/gallery
