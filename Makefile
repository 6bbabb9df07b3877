# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench clean

demo: $(READY)
	rm -rf runs/demo runs/demo-ray
	$(BIN)/keyhole tune --task mini:digits --box mini:resnet --method sketch --budget 500 --shots 16 --seed 1 --out runs/demo
	@echo "--- once on two Ray workers; a box that answers in a millisecond gains nothing from them, a real encoder does:"
	$(BIN)/keyhole tune --task toy: --box toy: --method momentum --budget 100 --workers 2 --out runs/demo-ray
	@echo "--- for more, in this shell: source $(BIN)/activate && keyhole --help"

test: $(READY)
	RAY_AUTH_MODE=disabled $(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/keyhole bench tasks

clean:
	rm -rf runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV)

$(READY): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)
