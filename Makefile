# Two commands do all set-up from a clean checkout: `make rehearse` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: rehearse test check bench lint types unit clean oracle lab bench-live parity lab-test

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

lab: $(READY)  ## a lab of two hosts with a DPU each, on real API servers (builds or finds kube-apiserver and etcd)
	$(BIN)/dpf-twin lab up --speed 60

lab-test: parity  ## whole roll-outs on real parts: live, kill -9, outages, in a cluster, and parity (more than an hour)
	$(BIN)/pytest -m "lab and not parity"

parity: $(READY)  ## library scenarios in virtual time and on a lab: the same phases, conditions and objects (three quarters of an hour)
	$(BIN)/pytest -n 2 -m parity tests/api/test_live_parity.py

oracle: $(READY)  ## the API server's contract: 10,000 random sequences on a real API server and on the simulated one
	DPF_TWIN_ORACLE_SEQUENCES=10000 ADMISSION_CASES=10000 $(BIN)/pytest -q tests/contract/test_kube.py tests/contract/test_admission.py

bench-live: $(READY)  ## 10,000 DPUs in informers, status writes, watch lag, idle load; writes reports/out/bench-live.json
	$(BIN)/python -m benchmarks.live

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=..."; exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[report,live,dev]'
	@touch $@

clean:
	rm -rf $(VENV) reports/out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
