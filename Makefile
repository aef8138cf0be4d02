# make demo | test | test-long | soak | fuzz | lint | docs | bench | clean. The first call makes .venv; later ones find it there.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A process for each core; a file's tests stay together, and with them what its fixtures have trained. The files are
# dealt in the order of tests/conftest.py.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder
DEMO_MODEL := build/demo/run/qat-int8.tflite
# A name that is there may still not run (pyenv's shims): each is asked for its version.
FIND_PYTHON = for name in python3.11 python3.12 python3.10 python3 python; do \
	"$$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& { echo "$$name"; exit 0; }; done; \
	echo "training needs Python 3.10, 3.11 or 3.12 on PATH (TensorFlow and tfmot have no wheels beyond)" >&2; exit 1

.PHONY: demo test test-long test-all soak fuzz test-device lint types mypy pyright docs bench clean

demo: $(INSTALLED)
	$(BIN)/edgeall demo --out build/demo

test: lint
	$(BIN)/python -m pytest -q -m "not slow and not long and not device" $(PARALLEL) --durations=15

# What `make test` leaves out to end within 15 minutes; continuous integration runs both.
test-long: $(INSTALLED)
	$(BIN)/python -m pytest -q -m "long and not slow and not device" $(PARALLEL) --durations=15

test-all: lint
	$(BIN)/python -m pytest -q -m "not device" $(PARALLEL) --durations=15

# On emulated Raspberry Pis: root, and apt install mmdebstrap qemu-user-static.
test-device: $(INSTALLED)
	$(BIN)/python -m pytest -q -m device --durations=15 tests/device

# Five minutes of the rig with a camera that fails, hangs and comes back.
soak: $(INSTALLED)
	$(BIN)/python -m pytest -q -m slow -k soak tests/unit/test_rig_station.py

# 10,000 damaged images, as many damaged models, and what the interpreter makes of some of the latter.
fuzz: $(INSTALLED)
	$(BIN)/python -m pytest -q -m slow tests/fuzz

lint: $(INSTALLED) types
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# .types/edgeall is a link to this folder: type checkers find the package there, whatever the folder is called.
types: $(INSTALLED)
	$(MAKE) --no-print-directory -j 2 mypy pyright

mypy: $(INSTALLED)
	MYPYPATH=.types $(BIN)/mypy -m edgeall -m edgeall.api -m edgeall.cli \
		-p edgeall.commands -p edgeall.console -p edgeall.deploy -p edgeall.edge_runtime -p edgeall.models \
		-p edgeall.optimize -p edgeall.rig -p edgeall.train -p edgeall.browser

pyright: $(INSTALLED)
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# The documentation, in build/site; nothing is fetched from the network.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(INSTALLED) $(DEMO_MODEL)
	$(BIN)/python benchmarks/startup.py $(DEMO_MODEL) build/demo/images

$(DEMO_MODEL): | $(INSTALLED)
	$(BIN)/edgeall demo --out build/demo

# pip is the last thing that venv makes: an environment cut short is made again.
$(BIN)/pip:
	python=$$($(FIND_PYTHON)) && "$$python" -m venv --clear $(VENV)

$(INSTALLED): $(BIN)/pip setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist runs .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
