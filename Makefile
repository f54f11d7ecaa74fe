# `make` lists the targets. PYTHON chooses the interpreter of a new .venv; ARGS goes to pytest:
#   make setup PYTHON=python3.12        make test ARGS="-k mae -x"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup
# An existing .venv keeps its Python unless PYTHON was given.
VERSION = `$(if $(filter file,$(origin PYTHON)),$(BIN)/python -V 2>/dev/null ||) $(PYTHON) -V 2>&1`

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint type bench golden docs site clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):[^#]*## /\1#/p' $(MAKEFILE_LIST) | awk -F'#' '{ printf "  make %-8s %s\n", $$1, $$2 }'

# The stamp holds what .venv was made from. It says "installing" meanwhile, so that an interrupted one starts afresh.
setup: ## Create or renew .venv with mrp and its pinned dependencies (about two minutes; no work if it is up to date)
	@version="$(VERSION)"; \
	case "$$version" in "Python 3.11."* | "Python 3.12."* | "Python 3.13."*) ;; *) \
		echo "mrp needs Python 3.11, 3.12 or 3.13, but $(PYTHON) says '$$version': try make setup PYTHON=python3.12" >&2; \
		exit 1 ;; esac; \
	sum=`cat pyproject.toml constraints.txt | cksum`; \
	stamp=`cat $(STAMP) 2>/dev/null`; \
	sound=`test "$$($(BIN)/python -V 2>&1)" = "$$version" && $(BIN)/pip -V 2>/dev/null | grep -F "$(CURDIR)/$(VENV)/"`; \
	if [ "$$sound" ] && [ "$$stamp" = "$$version $$sum" ]; then exit 0; fi; \
	if [ -z "$$sound" ] || [ "$$stamp" = installing ]; then \
		rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) && version=`$(BIN)/python -V` || exit 1; \
	fi; \
	echo "Installing mrp and its dependencies into $(VENV) ($$version): about two minutes the first time"; \
	trap 'exit 130' INT TERM; \
	echo installing > $(STAMP); \
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]' || { rm -f $(STAMP); exit 1; }; \
	echo "$$version $$sum" > $(STAMP); \
	echo "Ready: $(BIN)/mrp --help"

demo: setup ## Pretrain, probe and draw a small run on a CPU
	@$(BIN)/mrp demo

# Else every process of the tests compiles their files anew, where the variable is set, as many containers have it.
test: setup ## Run the tests, in two processes
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations=10 $(ARGS)

lint: setup ## Check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

type: setup ## Check types
	@$(BIN)/mypy

bench: setup ## Measure the training step and the data loader
	@$(foreach tool,$(wildcard tools/bench_step.py tools/bench_data.py),$(BIN)/python $(tool) &&) true

golden: setup ## Write the expected files of the golden tests anew (read the diff before you commit it)
	@$(BIN)/python tools/golden.py

docs: setup ## Write the reference (docs/configuration.md, verbs.md, python.md, backbones.md) anew from the code and the recipes
	@$(BIN)/python tools/configuration.py
	@$(BIN)/python tools/reference.py
	@$(BIN)/python tools/backbones.py

site: setup ## Build the documentation as a site with search, in site/ (installs a site builder into .venv)
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[site]'
	@$(BIN)/zensical build --strict --clean
	@echo "read it: $(BIN)/python -m http.server --directory site, then http://localhost:8000"

clean: ## Remove what was built and the demo's run, but neither .venv nor other runs
	@rm -rf build dist site .cache *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis runs/demo
	@find . -name $(VENV) -prune -o -name __pycache__ -prune -exec rm -rf {} +
