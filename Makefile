# Every target makes what it needs: `make demo` and `make test` work in a fresh clone with Python 3.11+ and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test claims lint docs new bench clean

$(VENV)/.bench: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[bench]'
	touch $@

$(VENV)/.test: $(VENV)/.bench
	$(PIP) --editable '.[test,peers,ray]'
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) --editable '.[dev]'
	touch $@

demo: $(VENV)/.bench ## compare five mechanisms on two tasks and write the report
	$(BIN)/penstock compare --out runs/demo

test: $(VENV)/.test ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow and not gpu"

claims: $(VENV)/.test ## the slow tests: papers' claims at toy scale, faults, whole studies
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "slow and not gpu"

lint: $(VENV)/.dev ## ruff, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.dev ## the site, in site/
	$(BIN)/python scripts/docs.py
	$(BIN)/mkdocs build --strict --quiet

new: $(VENV)/.dev ## scaffold a mechanism: make new NAME=room/mechanism
	$(BIN)/penstock new $(NAME)

clean:
	rm -rf $(VENV) site build dist
