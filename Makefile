# make bench   measure this machine with the suite "quick" in five minutes and write a report; BUDGET= measures all of it
# make test    run the whole test suite, a process a core
# make quick-test   run what is quick of it, from every folder, while working
# make gpu-test   on a machine with an NVIDIA GPU: a smoke set of 90 s, then all tests that need it
# make sanitize   run the tests of the C++ kernels under GCC's address, undefined behaviour and thread sanitizers
# make check   lint, format, types, layers
# make docs    build the documentation site into build/site; a warning is an error
# The environment is .venv, made once and kept until pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUITE ?= quick
BUDGET ?= $(if $(filter quick,$(SUITE)),5m)

.PHONY: bench test quick-test gpu-test sanitize check format docs clean
.DELETE_ON_ERROR:

bench: $(VENV)/.installed
	$(BIN)/bsa-bench run --suite $(SUITE) $(if $(BUDGET),--budget $(BUDGET)) $(ARGS)

# Python may write its files: pytest keeps the tests there as it has rewritten them. Named tests need not be of every folder.
PYTEST = env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n auto --dist worksteal $(if $(ARGS),,--every-folder)

test: $(VENV)/.installed-dev
	$(PYTEST) $(ARGS)

quick-test: $(VENV)/.installed-dev
	$(PYTEST) --quick $(ARGS)

# First the few that show in 90 s whether a new GPU runs this at all; then all that need one.
gpu-test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m smoke -x
	$(BIN)/python -m pytest -m gpu $(ARGS)

# The runtime of a sanitizer comes before Python's own libraries. Nothing but the kernels is instrumented, so that threads
# of torch are none of its business. AddressSanitizer keeps what is freed for a while: memory is not flat under it.
CPP_TESTS = tests/bsa_kernels/test_cpu_engine.py tests/bsa_kernels/test_cpu_select.py
SANITIZED = env -u PYTHONDONTWRITEBYTECODE XDG_CACHE_HOME=$(CURDIR)/build/sanitize
sanitize: $(VENV)/.installed-dev
	$(SANITIZED) CXX="g++ -g -fsanitize=address,undefined -fno-sanitize-recover=all" ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  $(BIN)/python -m pytest -n 0 $(CPP_TESTS) -k "not memory_stays_flat"
	setarch -R $(SANITIZED) CXX="g++ -g -fsanitize=thread" LD_PRELOAD="$$(g++ -print-file-name=libtsan.so)" \
	  TSAN_OPTIONS=ignore_noninstrumented_modules=1:die_after_fork=0:halt_on_error=1 \
	  $(BIN)/python -m pytest -n 0 $(CPP_TESTS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy docs/_site
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Without Material's note on MkDocs 2, which is no warning about these pages.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "bsa-bench needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Use make PYTHON=python3.12, say.")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[samples]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[samples,dev]'
	touch $@

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.installed | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[samples,docs]'
	touch $@
