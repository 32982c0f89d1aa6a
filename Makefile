# `make train` and `make test` need Python 3.11 or newer, make and a package index, and nothing else.
# Options of the programs go in ARGS: make train ARGS="--steps=500", make test ARGS="-k lazily".
# PYTHON=python3.12 chooses the interpreter, VENV=.venv-3.12 a folder for its environment.

PYTHONS := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
JOBS ?= 2
VENV := .venv
RUN := $(VENV)/bin/python
UNFINISHED := $(VENV)/unfinished
COMMA := ,

.PHONY: train test lint types docs doctest colabs aot budget
.NOTPARALLEL:
.DELETE_ON_ERROR:

train: $(VENV)/installed
	@$(RUN) train.py $(ARGS)

test: $(VENV)/installed-test
	@$(RUN) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/installed-test
	@$(RUN) -m ruff check --output-format=concise .
	@$(RUN) -m ruff format --check .

types: $(VENV)/installed-test
	@$(RUN) -m mypy

doctest: $(VENV)/installed-test
	@JAX_PLATFORMS=cpu $(RUN) -m pytest --doctest-modules jaxrec $(ARGS)

docs: $(VENV)/installed-test
	@$(RUN) -m mkdocs build --quiet --strict

colabs: $(VENV)/installed-test
	@$(RUN) colabs/run.py $(ARGS)

# A test that lacks its compiler skips, so first see that none does.
aot: $(VENV)/installed-aot
	@$(RUN) -c 'from jaxrec.analysis import topologies as t; \
	  assert t.is_installed("v5e:1x1") and t.is_installed("h100:1"), "no compilers: see install.log"'
	@JAX_PLATFORMS=cpu $(RUN) -m pytest -m "aot and not nightly" $(ARGS)

budget: $(VENV)/installed-test
	@$(RUN) -m tests.budget_test

# Prints the version of an interpreter that can make the environment, or fails and says why it cannot.
CHECK := import importlib.util, sys; version = sys.version.split()[0]; \
  sys.version_info >= (3, 11) or sys.exit(version + ", older than 3.11"); \
  importlib.util.find_spec("ensurepip") or sys.exit(version + ", without its venv module"); \
  print(version)

# The stamps are written last, so an interrupted installation is never taken for a finished one. An
# environment that was cut off while it was first made is made anew; any other is kept and updated.
define install
	@if [ ! -x $(VENV)/bin/pip ] || [ -e $(UNFINISHED) ]; then \
	  rejected=; for python in $(PYTHONS); do \
	    if version=$$($$python -c '$(CHECK)' 2>&1); then break; fi; \
	    if ! command -v $$python > /dev/null; then version="not found"; fi; \
	    rejected="$$rejected\n  $$python: $$(echo "$$version" | head -n 1)"; python=; \
	  done; \
	  if [ -z "$$python" ]; then \
	    printf '%b\n' "error: no Python 3.11 or newer with its venv module:$$rejected" >&2; \
	    echo "install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; \
	  fi; \
	  $$python -m venv --clear $(VENV) && touch $(UNFINISHED) || { \
	    echo "error: $$python could not make the environment $(VENV)" >&2; exit 1; }; \
	fi
	@printf '$(1) $(VENV): installing with Python %s (once, about $(4) min) ... ' "$$($(RUN) -c '$(CHECK)')"
	@$(RUN) -m pip install --disable-pip-version-check -e '$(2)' > $(VENV)/install.log 2>&1 || { \
	  echo "failed; the end of $(VENV)/install.log:"; \
	  grep -vE '^(WARNING|INFO|Requirement already)' $(VENV)/install.log | tail -n 20 >&2; exit 1; }
	@rm -f $(UNFINISHED) && touch $(3) && echo ok
endef

$(VENV)/installed: pyproject.toml | same-python
	$(call install,[1/3],.,$@,1)

$(VENV)/installed-test: pyproject.toml | same-python
	$(call install,[1/2],.[test],$@ $(VENV)/installed,2)

$(VENV)/installed-aot: $(VENV)/installed-test
	$(call install,[2/2],.[test$(COMMA)aot],$@,3)

# An environment is never used as if it were of another Python than the one that was asked for.
.PHONY: same-python
same-python:
ifdef PYTHON
	@wanted=$$($(PYTHON) -c '$(CHECK)' 2> /dev/null) || { why=$$($(PYTHON) -c '$(CHECK)' 2>&1 | head -n 1); \
	  echo "error: PYTHON=$(PYTHON): $$why; needed is 3.11 or newer" >&2; exit 1; }; \
	if [ ! -x $(RUN) ] || [ -e $(UNFINISHED) ]; then exit 0; fi; \
	made=$$($(RUN) -c '$(CHECK)'); \
	[ "$$wanted" = "$$made" ] || { \
	  echo "error: $(VENV) is of Python $$made, not $$wanted: remove it, or name another: VENV=.venv-other" >&2; exit 1; }
endif
