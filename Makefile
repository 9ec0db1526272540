# Two commands do all set-up from a clean checkout: `make rehearse` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: rehearse test check bench lint types unit clean oracle lab bench-live parity

rehearse: $(READY)  ## a first install and a rolling BFB update on two racks, in virtual time
	$(BIN)/dpf-twin rehearse scenarios/library/rolling-bfb-update.yaml

test: lint types unit  ## all tests and checks

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile

bench: $(READY)  ## the performance table; writes reports/out/bench.json
	$(BIN)/python -m benchmarks

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=..."; exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[report,live,dev]'
	@touch $@

clean:
	rm -rf $(VENV) reports/out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
