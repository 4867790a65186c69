# Everything runs in .venv; nothing outside this folder is changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: install demo test lint docs bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fluvial needs Python 3.11 or newer; call: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint,docs]'
	@touch $@

demo: install
	$(BIN)/fluvial fit airports-quick -o runs/demo --overwrite
	$(BIN)/fluvial evaluate runs/demo
	$(BIN)/fluvial check runs/demo
	$(BIN)/fluvial report runs/demo

# One thread for each worker: two pools of spinning threads on the same cores are slower than none.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: install
	$(BIN)/mkdocs build --strict

bench: install
	$(BIN)/python benchmarks/free_form_step.py

clean:
	rm -rf $(VENV) site build dist
