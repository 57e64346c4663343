# make demo     export a real checkpoint and answer a semantic search with it
# make test     the tests
# make check    ruff and mypy
# make support  the support table, written from what its tests measure (about six minutes)
# make bench    the benchmark against the peers (about half an hour)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.bench-installed
ROOMS := export graphs poolers runtime serving

# Most modules of the dependencies are never imported: Python compiles those that are, when they are, and keeps what it
# compiled, without which every process would do it again (torch and transformers: half a minute).
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

export HF_HUB_OFFLINE ?= 1
test support: export OMP_NUM_THREADS = 1

.PHONY: setup demo test check wheel-env wheel-smoke support bench clean

setup: $(INSTALLED) .typing/poolgraph

$(INSTALLED): pyproject.toml constraints.txt $(wildcard runtime/kernel*)
	@echo "Installing into $(VENV) (pinned by constraints.txt)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) -e '.[cpu,files,export,serve,otel,dev]'
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	@$(PIP_INSTALL) -e '.[bench]'
	@touch $@

# Type checkers do not read an editable install's mapping of the rooms: links show them the package as it is installed.
.typing/poolgraph: src/poolgraph
	@mkdir -p $@
	@for file in src/poolgraph/*.py src/poolgraph/py.typed; do ln -sfn ../../$$file $@/$$(basename $$file); done
	@for room in $(ROOMS); do ln -sfn ../../$$room $@/$$room; done
	@touch $@

demo: setup
	@$(BIN)/python examples/semantic_search.py

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.typing $(BIN)/mypy -p poolgraph

# Of a copy, so that it can be built while setup builds the checkout.
wheel-env:
	@rm -rf .wheel && mkdir -p .wheel/source
	@git ls-files -z | xargs -0 cp --parents -t .wheel/source
	@$(PYTHON) -m venv .wheel/env
	@.wheel/env/bin/pip wheel --quiet --disable-pip-version-check --no-deps -w .wheel/dist .wheel/source
	@.wheel/env/bin/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt \
		"$$(ls .wheel/dist/poolgraph-*.whl)[cpu]"

wheel-smoke: setup wheel-env
	@BIN="$(BIN)" bash tests/wheel_smoke.sh .wheel

support: setup
	@rm -rf .support && mkdir .support
	POOLGRAPH_SUPPORT_MEASURED=.support/rows.json $(BIN)/python -m pytest -n 2 --dist worksteal -q tests/parity/test_support_rows.py
	$(BIN)/python tests/support_table.py .support/rows.json

bench: $(BENCH_INSTALLED)
	$(BIN)/python benchmarks/offline.py

clean:
	rm -rf build dist .typing .wheel .demo .bench .support *.egg-info src/*.egg-info
