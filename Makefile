# One command each; `demo` and `test` set up what they need first.
#   make demo [MARKET=names DATA=../shared/data] [PORT=…] [MLFLOW_PORT=…]
# Without a port, the first free one from 8080 (Airflow) and from 5000 (MLflow) on is taken.
.PHONY: setup demo ui stop test test-nightly bench lint
SHELL := /bin/bash
MARKET ?= demo
PORTS := $(if $(PORT),--port $(PORT)) $(if $(MLFLOW_PORT),--mlflow-port $(MLFLOW_PORT))
ROUNDS ?= 5
PY := .venv/bin/python
STAMP := .venv/.installed-from-lock

# An offline folder of wheels named for pip serves uv too. Bytecode is compiled at once: some fifty
# task processes import the same thousands of files.
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
unexport PYTHONDONTWRITEBYTECODE

setup: $(STAMP)

$(STAMP): requirements.lock.txt pyproject.toml
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install -q "$$(grep '^uv==' requirements.lock.txt)"
	.venv/bin/uv pip install --python $(PY) --compile-bytecode -r requirements.lock.txt
	.venv/bin/uv pip install --python $(PY) --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(PY) -m csrm_tasks demo run --market $(MARKET) $(PORTS) $(if $(DATA),--data $(DATA))

ui: setup
	$(PY) -m csrm_tasks demo ui --market $(MARKET) $(PORTS)

stop: setup
	$(PY) -m csrm_tasks demo stop --market $(MARKET)

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
