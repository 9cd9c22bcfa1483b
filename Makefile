# Set-up, demonstration and checks. `make help` lists the targets and the variables.

# The interpreter that makes the virtual environment; with VENV= empty, the one that is used as it is.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= requirements/constraints.txt
ARGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help setup demo test lint format doctor clean distclean

# Two workers with one torch thread each beat one worker with two threads: the tests' tensors are tiny.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
WORKERS ?= $(shell echo $$(( $(CORES) < 4 ? $(CORES) : 4 )))
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# What promises to be pure (no detectron2) also promises its types.
PACKAGE := projects/MPCL/mpcl
PURE := $(addprefix $(PACKAGE)/, utils structures self_training prototypes losses)

ifeq ($(strip $(VENV)),)
  # An environment of the user's own is looked at anew each time: others may change it too.
  RUN := $(PYTHON)
  STAMP := use-environment
  .PHONY: use-environment
else
  RUN := $(VENV)/bin/python
  STAMP := $(VENV)/.setup-done
endif

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'
	@echo
	@echo "Variables: PYTHON=$(PYTHON)  VENV=$(VENV) (VENV= : use PYTHON's own environment)"
	@echo "           WORKERS=$(WORKERS) (test processes)  ARGS=... (passed to demo, test and doctor)"

setup: $(STAMP) ## install everything into .venv (a second time: nothing to do)
	@echo "Ready: $(RUN)"

demo: setup ## train and evaluate on small built-in data, without downloads
	$(RUN) tools/demo.py $(ARGS)

test: setup ## run the tests; one file: make test ARGS=tests/tools/test_doctor.py
	$(ONE_THREAD) $(RUN) -m pytest -n $(WORKERS) $(ARGS)

lint: setup ## formatting, ruff, and mypy --strict on the pure modules
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy --strict $(PURE)

format: setup ## put the code into its format
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

doctor: setup ## say what is installed, and what would stop a training
	$(RUN) tools/doctor.py $(ARGS)

clean: ## remove caches and build products; outputs, data and .venv stay
	rm -rf build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis $(PACKAGE:mpcl=mpcl.egg-info)
	find projects tools tests datasets -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the virtual environment too
	$(if $(strip $(VENV)),rm -rf $(VENV))

$(VENV)/.setup-done: setup.py tools/install_detectron2.py $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed, '$(PYTHON)' is older or missing: make setup PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV): about 6 GB, a few minutes (mostly torch)."
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "No virtual environment could be made. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[test]"
	@$(CHECK_TORCH)
	$(RUN) tools/install_detectron2.py
	@touch $@

# The torch that is there stays: it was chosen for this machine's GPU driver.
use-environment:
	@$(RUN) -c 'import torch' || { \
	  echo "'$(PYTHON)' has no working torch. Install torch and torchvision first, or leave out VENV="; exit 1; }
	@echo "Installing into the environment of $$($(RUN) -c 'import sys; print(sys.prefix)'); its torch stays."
	$(RUN) -m pip install --quiet --editable ".[test]" --constraint <($(RUN) -c \
	  'from importlib.metadata import version; print("torch==" + version("torch"))')
	@$(CHECK_TORCH)
	$(RUN) tools/install_detectron2.py

CHECK_TORCH = $(RUN) -c 'import torchvision' || { \
	  echo "torch and torchvision do not fit together: install a pair of one release (docs/INSTALL.md)"; exit 1; }
