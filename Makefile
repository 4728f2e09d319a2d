# Every target works from a fresh clone: if necessary, it creates .venv and installs the tested set of packages.
# `ARGS` is passed on: make demo ARGS="--short", make test ARGS="-k presets -x".

PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS ?= 2
ARGS ?=

.PHONY: demo test test-slow gpu lint docs clean

demo: $(STAMP)
	$(BIN)/magic-nas demo $(ARGS)

# Both run on the CPU, even on a machine with a GPU.
test test-slow: export CUDA_VISIBLE_DEVICES =

test: $(STAMP)
	$(BIN)/pytest -n $(WORKERS) $(ARGS)

test-slow: $(STAMP)
	$(BIN)/pytest -m slow -n $(WORKERS) $(ARGS)

# The benchmark uses the first card, and runs even if a test fails.
gpu: $(STAMP)
	@$(BIN)/python benchmarks/gpu.py --check
	@status=0; tests=$$(mktemp); $(BIN)/pytest -m gpu -rs --junitxml=$$tests $(ARGS) || status=$$?; \
	cards=$${CUDA_VISIBLE_DEVICES:-0}; \
	CUDA_VISIBLE_DEVICES=$${cards%%,*} $(BIN)/python benchmarks/gpu.py --tests $$tests --output benchmarks/results \
		|| status=$$?; \
	rm -f $$tests; exit $$status

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Warnings are errors: a broken link, anchor or cross-reference, or a page missing from the navigation.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[test,dev,docs]'
	touch $@

clean:
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
