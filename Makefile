PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install test slow sanitize fuzz demo bench-training lint docs wheel clean

install: $(STAMP)

# A new Python file needs no new install; a change to the native code or to the dependencies does.
$(STAMP): pyproject.toml CMakeLists.txt $(shell find csrc -name '*.[ch]pp')
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Budwood needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[all,dev,docs]'
	touch $@

# A process for each core, of one thread: most of a test's time is one thread's anyway.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

# The rest: every network of torchvision, ONNX files of many, whole grids. Hours on two cores.
slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m slow

# The native code's own tests under the sanitizers of memory, undefined behaviour and threads. Needs no Python.
sanitize:
	csrc/tests/run_sanitized.sh

# Damaged files: 120,000 programs, checkpoints and ONNX files, three quarters of them behind an intact outer header, and
# 50,000 published checkpoints.
fuzz: install
	$(BIN)/python -m tests.fuzz --count 10000
	$(BIN)/python -m tests.fuzz program-structure checkpoint-structure onnx-structure --first 10000 --count 20000

demo: install
	$(BIN)/budwood transfer elpv --model packaged:tf_efficientnet_lite0 --prune gmp --sparsity 0.5 0.8 --mode linear full --size 128 --epochs 2 --out runs/demo

# Whole training steps at a fixed mask, against dense PyTorch.
bench-training: install
	$(BIN)/python benchmarks/training.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

wheel: install
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis $(STAMP)
