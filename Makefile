# make demo, make test (quick, the whole mathematics), make check (everything; what CI runs).
# make bench: the long benchmark, on an otherwise idle machine; its tables into bench/results and README.md.
# Each sets up .venv by itself. Another torch: make TORCH="torch==2.11.0" test. Other Python: PYTHON=python3.12.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NATIVE := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
EMULATED := $(shell find tests/cuda_emulation -name '*.h' -o -name '*.cpp')

.PHONY: demo test check lint bench build clean

demo: $(READY)
	$(BIN)/drrkit demo --out demo_out

test: $(READY)
	$(BIN)/python -m pytest -q -m "not slow"

check: test lint
	$(BIN)/python -m pytest -q -m slow

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE) $(EMULATED)

bench: $(READY)
	$(BIN)/python -m drrkit.bench --out bench/results
	$(BIN)/python bench/readme_table.py

build: $(READY)

# torch comes first, on its own: whatever is installed after it must not choose another one.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet "setuptools>=77" wheel pybind11 ninja numpy build
	touch $@

$(READY): $(VENV)/.torch pyproject.toml setup.py $(NATIVE)
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev,witness]"
	touch $@

clean:
	rm -rf build dist drrkit.egg-info demo_out drrkit/*.so drrkit/_build.py
