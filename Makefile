# One command each; `demo` and `test` set up what they need first.
#   make demo [MARKET=multi] [MARKET=names DATA=../shared/data [BASES=real ACCEPT_TERMS=yes]] [PORT=…] [MLFLOW_PORT=…]
# Without a port, the first free one from 8080 (Airflow) and from 5000 (MLflow) on is taken.
#   make setup [PYTHON=python3.12]   # 3.11 to 3.14; a lock for each in locks/
.PHONY: setup demo ui stop test test-nightly bench lint locks install-sizes
SHELL := /bin/bash
MARKET ?= demo
PORTS := $(if $(PORT),--port $(PORT)) $(if $(MLFLOW_PORT),--mlflow-port $(MLFLOW_PORT))
WHICH := --market $(MARKET) $(if $(BASES),--bases $(BASES))
ROUNDS ?= 5
PYTHON ?= python3
PY := .venv/bin/python
# The environment that is there decides which lock it is made from; a new one is of PYTHON.
LOCK := locks/python$(shell $$(test -x $(PY) && echo $(PY) || echo $(PYTHON)) -c \
  'import sys; print("%d.%d" % sys.version_info[:2])').txt
STAMP := .venv/.installed-from-lock

# An offline folder of wheels named for pip serves uv too. Bytecode is compiled at once: some fifty
# task processes import the same thousands of files.
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
unexport PYTHONDONTWRITEBYTECODE

setup: $(STAMP)

$(STAMP): $(LOCK) pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install -q "$$(grep '^uv==' $(LOCK))"
	.venv/bin/uv pip install --python $(PY) --compile-bytecode -r $(LOCK)
	.venv/bin/uv pip install --python $(PY) --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(PY) -m csrm_tasks demo run $(WHICH) $(PORTS) $(if $(DATA),--data $(DATA)) \
	  $(if $(filter yes,$(ACCEPT_TERMS)),--accept-terms)

ui: setup
	$(PY) -m csrm_tasks demo ui $(WHICH) $(PORTS)

stop: setup
	$(PY) -m csrm_tasks demo stop $(WHICH)

test: setup
	$(PY) -m pytest -n 2

# The property tests on examples that nobody has seen yet, ROUNDS times.
test-nightly: setup
	for round in $$(seq $(ROUNDS)); do \
	  $(PY) -m pytest -n 2 -m hypothesis --hypothesis-profile=nightly || exit 1; done

bench: setup
	$(PY) -m benchmarks

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# What pyproject.toml asks for, as one list, and pinned for every Python; pins that still fit stay.
locks: setup
	$(PY) -m tests.installs requirements
	for lock in locks/python*.txt; do \
	  version=$${lock#locks/python}; \
	  UV_PYTHON_DOWNLOADS=never .venv/bin/uv pip compile pyproject.toml --quiet \
	    $$($(PY) -m tests.installs locked) \
	    --config-file locks/uv.toml --python-version $${version%.txt} --no-annotate --no-header \
	    --output-file $$lock || exit 1; done

# What each extra takes, by real installs without pip's cache: packages, megabytes, seconds.
install-sizes: setup
	$(PY) -m tests.installs sizes
