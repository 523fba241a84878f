# `make demo` and `make test` install everything into .venv first.
# The distribution's Python if it is new enough: it is built with profile-guided optimisation, which makes the whole stack
# a sixth faster (docs/profile.md). `make PYTHON=... demo` uses another.
PYTHON ?= $(shell for python in /usr/bin/python3 python3; do $$python -c \
  'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-long interop interop-quick netem lint bench faults soak clean

demo: $(VENV)/.runtime
	@$(BIN)/python launcher.py demo

# Pure cores in memory, real processes, the Linux kernel as peer: less than eight minutes on two cores.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 3 --dist loadgroup -m "not long" tests/system tests/unit

# What CI runs, too: what takes long, the table of TCP cases, the fault campaign, and what depends on the kind of pipes with
# the other.
test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -n 3 --dist loadgroup -m long tests/system
	$(BIN)/python -m pytest -n 3 --dist loadgroup tests/tcpcases
	$(BIN)/python -m pytest tests/faults
	USERNET_PIPES=direct $(BIN)/python -m pytest tests/faults/test_short.py tests/system/test_recovery.py tests/system/test_wire.py tests/system/test_rights.py
	USERNET_PIPES=zmq $(BIN)/python -m pytest -n 3 tests/unit/test_usernet_client.py tests/unit/test_usernet_fork.py

# Foreign programs and test suites over the stack, and over the kernel for comparison; long tables. As root it installs
# the programs (Debian); CI=true: a missing one is an error.
interop: $(VENV)/.interop
	@test $$(id -u) != 0 || ! command -v apt-get >/dev/null || .ci/packages
	$(BIN)/python -m pytest -n 2 --dist loadgroup tests/interop tests/cpython tests/badnet

# `impair` beside tc-netem(8), in a kernel that has it: this one, or User-mode Linux. They measure time: on an idle machine.
netem: $(VENV)/.dev
	$(BIN)/python -m tests.netem

# Of these what CI has time for: those of CPython's suites that found most.
interop-quick: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 tests/cpython -k "ftplib or poplib or ssl or streams or httpservers or localnet"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python -m bench

faults: $(VENV)/.dev
	$(BIN)/python -m tests.faults

# An hour of mixed load; `make soak MINUTES=10` for less.
MINUTES := 60
soak: $(VENV)/.dev
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

# The .venv of a moved checkout (usernet.pth and the scripts in it name the former place), or of a removed Python, does not
# work any more and is created again. One that is a symbolic link is somebody's own arrangement.
$(VENV)/.runtime: requirements.txt $(if $(shell test -L $(VENV) || $(BIN)/python -c 'import site, sys; \
  sys.exit(open(site.getsitepackages()[0] + "/usernet.pth").read() != "$(CURDIR)\n")' 2>/dev/null && echo here),,moved)
	@$(or $(PYTHON),false) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  "usernet needs Python 3.11 or later with its venv module (Debian: apt install python3-venv);" \
	  "$(or $(PYTHON),no python3) is not one: make PYTHON=... takes another" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -c 'import site; open(site.getsitepackages()[0] + "/usernet.pth", "w").write("$(CURDIR)\n")'
	@printf '#!/bin/sh\nUSERNET_COMMAND=$$0 exec "$$(dirname "$$(readlink -f "$$0")")/../../launcher.py" "$$@"\n' \
	  > $(BIN)/usernet && chmod +x $(BIN)/usernet
	@mkdir -p $(VENV)/share/man/man1 $(VENV)/share/bash-completion/completions
	@ln -sf $(CURDIR)/docs/usernet.1 $(VENV)/share/man/man1/
	@$(BIN)/usernet completion > $(VENV)/share/bash-completion/completions/usernet
	@touch $@

.PHONY: moved
moved:
	@rm -rf $(VENV)

$(VENV)/.dev: requirements.txt requirements-dev.txt $(VENV)/.runtime
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/.interop: requirements-interop.txt $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-interop.txt
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
