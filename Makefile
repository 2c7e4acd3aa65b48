# `make help` lists the targets. Each does its own set-up: a virtual environment in .venv, made once.

PYTHON  ?= python3
PROFILE ?= quick
VENV    ?= .venv
# PyTorch's CPU builds are far smaller: make study TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
ARGS    ?=
# Where `make test` leaves its seconds for the scoreboard.
CLOCK   ?= build/test_seconds

PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed
EXTRAS := study,test,coding
RUNNER := $(PY) -m quantlib.study.runner --profile $(PROFILE)
NBVAL := --nbval-lax --nbval-current-env --nbval-sanitize-with notebooks/nbval_sanitize.cfg --nbval-cell-timeout 300 --maxfail 3

.DEFAULT_GOAL := help
.PHONY: help setup study test lint train notebook refresh figures site bench data clean distclean

help: ## this list
	@echo "Usage: make TARGET [NAME=value ...]"
	@awk -F ':.*## ' '/^[a-z]+:.*## /{ printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Settings: PROFILE=quick|full  NB=03  ONLY=04  FROM=05  ARGS='-p BITS=5'  PYTHON=python3.12"
	@echo "          TORCH_INDEX=https://download.pytorch.org/whl/cpu  (PyTorch without CUDA: 0.2 GB to download)"

setup: $(STAMP) ## make .venv and install what the notebooks and tests need (the other targets do this first)

study: $(STAMP) ## run the notebooks and write the report; PROFILE=full for the long one, ONLY=03, FROM=05
	@$(RUNNER) $(if $(ONLY),--only $(ONLY)) $(if $(FROM),--from $(FROM)) $(ARGS)

test: $(STAMP) ## lint, types, unit and oracle tests, then every notebook; fails if any part fails
	@rm -f $(CLOCK); failed=""; began=$$(date +%s); \
	part() { name="$$1"; shift; printf '\n== %s\n' "$$name"; "$$@" || failed="$$failed, $$name"; }; \
	part "lint" $(PY) -m ruff check .; \
	part "types" $(PY) -m mypy; \
	part "unit and oracle tests" $(PY) -m pytest; \
	if ls notebooks/*.ipynb >/dev/null 2>&1; then \
	    part "notebooks" $(PY) -m pytest $(NBVAL) notebooks/; fi; \
	if [ -n "$$failed" ]; then printf '\nFAILED: %s\n' "$${failed#, }"; exit 1; fi; \
	mkdir -p $(dir $(CLOCK)); echo $$(($$(date +%s) - began)) > $(CLOCK); \
	printf '\nAll parts passed in %s s.\n' "$$(cat $(CLOCK))"

lint: $(STAMP) ## ruff and mypy only
	@$(PY) -m ruff check . && $(PY) -m mypy

train: $(STAMP) ## train the float32 network (hours on a CPU); resumes where it stopped
	@$(PY) -m quantlib.subject.training $(ARGS)

notebook: $(STAMP) ## open a notebook in JupyterLab: make notebook NB=03
	@set -- notebooks/$(NB)_*.ipynb; \
	if [ -z "$(NB)" ] || [ ! -f "$$1" ]; then echo "Say which notebook, for example: make notebook NB=03"; exit 2; fi; \
	$(PY) -m jupyterlab "$$1"

refresh: $(STAMP) ## run a notebook at quick size and store its outputs: make refresh NB=03
	@if [ -z "$(NB)" ]; then echo "Say which notebook, for example: make refresh NB=03"; exit 2; fi
	@$(PY) -m quantlib.study.notebooks refresh $(NB)

figures: $(STAMP) ## draw figures/ again from results/ alone
	@$(PY) -m quantlib.study.figures

site: $(STAMP) ## build the course as a web site: build/site/index.html
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[site]'
	@$(PY) -m quantlib.study.site

bench: $(STAMP) ## time every engine that is installed (README: how to add OpenVINO): ARGS='--few'
	@$(PY) -m quantlib.study.bench $(ARGS)

data: $(STAMP) ## fetch all of CIFAR-10 (180 MB); make study at quick size does not need it
	@$(PY) -m quantlib.subject.fetch $(ARGS)

clean: ## remove build/ and caches; keeps .venv, data and results
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find quantlib tests notebooks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## clean, and remove .venv too
	@rm -rf $(VENV)

$(PY):
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	    echo "There is no '$(PYTHON)' here: install Python 3.11 or newer, or name one with PYTHON=/path/to/python."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "quantlib needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>&1); name another with PYTHON=python3.12."; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo "$(PYTHON) has no venv module: install it (Debian and Ubuntu: apt install python3-venv) and try again."; exit 2; }
	@echo "Making the virtual environment $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV)

# The stamp is written last: an interrupted install is taken up again by the next call.
$(STAMP): pyproject.toml constraints.txt | $(PY)
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing quantlib with the extras $(EXTRAS) into $(VENV)."
	@if [ -z "$(TORCH_INDEX)" ] && ! $(PY) -c 'import torch' 2>/dev/null; then \
	    echo "PyTorch is the big part: on Linux x86_64 several GB with its CUDA libraries, 5.5 GB on disk."; \
	    echo "For the CPU build (about 0.2 GB): make $(MAKECMDGOALS) TORCH_INDEX=https://download.pytorch.org/whl/cpu"; fi
	@$(PY) -m pip install --disable-pip-version-check -c constraints.txt \
	    $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[$(EXTRAS)]'
	@touch $@
