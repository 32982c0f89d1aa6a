# `make train` and `make test` need python3.11, make and a package index, and nothing else.
# Options of the programs go in ARGS: make train ARGS="--steps=500", make test ARGS="-k lazily".

PYTHON ?= python3.11
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
	@$(RUN) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

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
	@$(RUN) -c 'from jaxrec.training import topologies as t; \
	  assert t.is_installed("v5e:1x1") and t.is_installed("h100:1"), "no compilers: see install.log"'
	@JAX_PLATFORMS=cpu $(RUN) -m pytest -m "aot and not nightly" $(ARGS)

budget: $(VENV)/installed-test
	@$(RUN) -m tests.budget_test

# The stamps are written last, so an interrupted installation is never taken for a finished one. An
# environment that was cut off while it was first made is made anew; any other is kept and updated.
define install
	@printf '$(1) $(VENV): installing (once, about $(4) min) ... '
	@if [ ! -x $(VENV)/bin/pip ] || [ -e $(UNFINISHED) ]; then \
	  $(PYTHON) -m venv --clear $(VENV) && touch $(UNFINISHED) || { \
	    echo "failed: is $(PYTHON) installed, with its venv module?" >&2; exit 1; }; \
	fi
	@$(RUN) -m pip install --disable-pip-version-check -e '$(2)' > $(VENV)/install.log 2>&1 || { \
	  echo "failed; the end of $(VENV)/install.log:"; \
	  grep -vE '^(WARNING|INFO|Requirement already)' $(VENV)/install.log | tail -n 20 >&2; exit 1; }
	@rm -f $(UNFINISHED) && touch $(3) && echo ok
endef

$(VENV)/installed: pyproject.toml
	$(call install,[1/3],.,$@,1)

$(VENV)/installed-test: pyproject.toml
	$(call install,[1/2],.[test],$@ $(VENV)/installed,2)

$(VENV)/installed-aot: $(VENV)/installed-test
	$(call install,[2/2],.[test$(COMMA)aot],$@,3)
