PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup run test test-long check docs

setup: $(STAMP)

# torch first and pinned: any other way pulls gigabytes of CUDA packages on a machine without a GPU.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(STAMP)

run: setup
	$(BIN)/persona-bench run

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/inspect-evals-lint --all

# What is generated and committed; a test holds it to its source.
docs: setup
	$(BIN)/python -m persona_bench.definitions.claims_page docs/claims.md
	$(BIN)/python -m persona_bench.publishing

# A process a core, up to four as some load models, each with one thread; a file's tests stay together.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n auto --maxprocesses 4 --dist loadfile --durations 20

test-long: setup
	$(BIN)/python -m pytest -m long
