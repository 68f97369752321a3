# make demo, make test (quick, the whole mathematics), make check (everything; what CI runs).
# make bench: the long benchmark, on an otherwise idle machine; its tables into bench/results and README.md.
# Each sets up .venv by itself: the demo with what drrkit needs to run, the others with what tests need. Another torch: make TORCH="torch==2.11.0" test. Other Python: PYTHON=python3.12.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTED := $(VENV)/.tested
# Processes that share the tests, a file at a time: what a file prepares is prepared once.
WORKERS ?= 2
# A test that hangs ends its process after a quarter of an hour, with every thread's stack.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile \
	--timeout 900 --timeout-method thread
# Peers whose images the converters' tests compare with; most of what they depend on is not needed.
PEERS := scipy==1.17.1 nanodrr==0.1.7 diffdrr==0.6.1 fastcore==2.2.39 einops==0.8.2 jaxtyping==0.3.11 wadler-lindig==0.1.8
NATIVE := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
EMULATED := $(shell find tests/emulator -name '*.h' -o -name '*.cpp')

.PHONY: demo test check lint device-arithmetic sanitize bench build dist check-torch clean

demo: $(READY)
	$(BIN)/drrkit demo --out demo_out

test: $(TESTED)
	$(PYTEST) -m "not slow"

check: test lint device-arithmetic
	$(PYTEST) -m slow

# The tests of the CUDA kernels once more, on an emulator that executes the lines only a GPU executes
# otherwise, with the largest errors that PTX allows.
device-arithmetic: $(TESTED)
	library=$$($(BIN)/python -c "from tests.emulator.build import build; print(build(device=True))") && \
	DRRKIT_EMULATION=$$library $(PYTEST) $(EMULATED_TESTS)

lint: $(TESTED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/ty check
	$(BIN)/clang-format --dry-run --Werror $(NATIVE) $(EMULATED)

# The CPU kernels, and the CUDA kernels on the emulator, under the address and undefined-behaviour
# sanitizers, in a copy of the sources. A finding ends the run: it is in build/sanitized/*.findings.
SANITIZED := build/sanitized
SANITIZED_TESTS := $(addprefix tests/core/test_, ops.py identities.py projector.py second_order.py \
	render.py bad_input.py transforms.py tiles.py tile_adjoints.py bricks.py pack.py cpu_texels.py \
	float32.py)
EMULATED_TESTS := $(addprefix tests/emulator/test_, kernels.py pack.py voxel_adjoint.py) tests/core/test_pose_maps.py
SANITIZED_PYTEST := cd $(SANITIZED) && env \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so):$$(g++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:log_path=address.findings \
	UBSAN_OPTIONS=print_stacktrace=1:log_path=undefined.findings PYTHONPATH=. OMP_NUM_THREADS=2 \
	$(abspath $(BIN))/python -m pytest -q -p no:cacheprovider -m "not slow and not data"
sanitize: $(TESTED)
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r csrc docs drrkit tests setup.py pyproject.toml README.md LICENSE $(SANITIZED)
	rm -f $(SANITIZED)/drrkit/*.so
	cd $(SANITIZED) && DRRKIT_SANITIZE=1 DRRKIT_CUDA=0 $(abspath $(BIN))/python setup.py -q build_ext --inplace
	$(SANITIZED_PYTEST) $(SANITIZED_TESTS)
	cd $(SANITIZED)/tests/emulator && \
	$(abspath $(BIN))/python -c "import build; print(build.build(sanitize=True))" > ../../library
	export DRRKIT_EMULATION="$$(cat $(SANITIZED)/library)" && $(SANITIZED_PYTEST) $(EMULATED_TESTS)

bench: $(TESTED)
	$(BIN)/python -m bench.projectors --out bench/results
	$(BIN)/python -m bench.projectors.readme

build: $(READY)

# sdist and wheel into dist/, for this Python and this torch's CUDA (docs/install.md), and what is in them.
# Files in the wheel have the last commit's time: building it again gives the same bytes.
dist: $(TESTED)
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 1767225600)} \
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python packaging/check_distributions.py dist

# The wheel that make dist left, in a clean environment for each of these versions of torch.
TORCHES ?= 2.10.0 2.15.0
check-torch: dist
	$(BIN)/python packaging/check_torch_versions.py --rebuild $$(ls -t dist/*.whl | head -n 1) --torch $(TORCHES)

# torch comes first, on its own: whatever is installed after it must not choose another one.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet "setuptools>=77" wheel pybind11 ninja numpy build
	touch $@

$(READY): $(VENV)/.torch pyproject.toml setup.py $(NATIVE)
	$(BIN)/pip install --quiet --no-build-isolation --editable .
	touch $@

# drrkit is there: pip adds what its extras name, and builds nothing again.
$(TESTED): $(READY)
	$(BIN)/pip install --quiet "drrkit[dev,witness]"
	$(BIN)/pip install --quiet --no-deps $(PEERS)
	touch $@

clean:
	rm -rf build dist drrkit.egg-info demo_out drrkit/*.so drrkit/_build.py
