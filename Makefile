# `make demo` and `make test` do all the set-up; everything goes into .venv.
# The distribution's Python where it will do: its build is optimised by profile, which a hand-made one seldom is, and the
# whole stack gains a sixth (docs/performance.md). `make PYTHON=... demo` takes another.
PYTHON ?= $(shell for python in /usr/bin/python3 python3; do $$python -c \
  'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test interop lint bench faults clean

demo: $(VENV)/.runtime
	@$(BIN)/python launcher.py demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 3 --dist loadgroup --ignore tests/faults --ignore tests/interop --ignore tests/cpython --ignore tests/badnet tests
	$(BIN)/python -m pytest tests/faults
	USERNET_PIPES=direct $(BIN)/python -m pytest tests/faults/test_short.py tests/system/test_recovery.py tests/system/test_wire.py
	USERNET_PIPES=zmq $(BIN)/python -m pytest -n 3 tests/unit/test_usernet_client.py

# Strangers' programs and suites over the stack, and over the kernel as the control: long tables.
interop: $(VENV)/.interop
	$(BIN)/python -m pytest -n 2 --dist loadgroup tests/interop tests/cpython tests/badnet

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python -m bench

faults: $(VENV)/.dev
	$(BIN)/python -m tests.faults

$(VENV)/.runtime: requirements.txt
	$(if $(PYTHON),,$(error usernet needs Python 3.11 or later with its venv module (Debian: apt install python3-venv)))
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements.txt requirements-dev.txt $(VENV)/.runtime
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/.interop: requirements-interop.txt $(VENV)/.dev
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-interop.txt
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
