# Every command one needs, and no activated environment: all of them work in .venv, which the first one makes.

PYTHON ?= python3
ARGS ?=
TORCH ?= auto
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
UNFINISHED := $(VENV)/.unfinished
MINIMUM := $(shell sed -n 's/^min_python *= *//p' settings.ini)
# Whole runs: pytest tests those, in kernels of their own.
NOT_TESTED_CELL_BY_CELL := ^([_.]|(train|evaluate|compare|add_your_own)\.ipynb$$)

# nbdev, papermill and Jupyter start one another by name, so their own folder has to be the first on the path.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)

.DEFAULT_GOAL := help
.PHONY: help install train test lab ui docs bench scale gpu prepare pins clean

help:  ## List these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED)  ## Make .venv and install llmlab with the versions of constraints.txt (TORCH=cpu or cuda: which PyTorch)

train: $(INSTALLED)  ## Fine-tune, with the defaults or with ARGS="-p model smollm2-135m -p learning_rate 1e-4"
	@echo "Training by nbs/train.ipynb: unless ARGS says otherwise, Gemma 3 270M with LoRA on the Korean" \
	    "instructions that come with llmlab, some minutes on two cores. Ctrl-C saves a checkpoint and ends it." >&2
	@$(BIN)/llmlab train $(ARGS)
	@echo "Next: open the train.html named above. '$(BIN)/llmlab chat latest' talks to the model, 'make ui' shows the runs," \
	    "'make lab' opens the notebook to change a value and run it again, '$(BIN)/llmlab --help' lists the rest." >&2

test: $(INSTALLED)  ## Test the notebooks cell by cell, then all of tests/ (or what ARGS="-k packing" says)
	@status=0; \
	echo "Testing the notebooks cell by cell."; \
	$(BIN)/nbdev_test --n_workers 2 --do_print --skip_file_re '$(NOT_TESTED_CELL_BY_CELL)' </dev/null || status=1; \
	test $$status = 0 || echo "Notebook tests FAILED, see above; the command will fail whatever follows."; \
	$(BIN)/python -m pytest -n 2 --dist loadfile tests $(ARGS) </dev/null || status=1; \
	exit $$status

lab: $(INSTALLED)  ## Open a copy of nbs/train.ipynb of your own, my_train.ipynb, in JupyterLab
	@$(BIN)/python tools/lab.py $(ARGS)

ui: $(INSTALLED)  ## Browse the runs in MLflow
	@$(BIN)/llmlab ui $(ARGS)

docs: $(INSTALLED)  ## Build the documentation site in _docs/
	@$(BIN)/python tools/build_docs.py $(ARGS)

bench: $(INSTALLED)  ## Compare batching with HF Trainer, TRL and LLaMA-Factory, each in an environment of its own in .bench/
	@$(BIN)/python tools/bench/compare.py $(ARGS)

scale: $(INSTALLED)  ## Measure time and memory against questions a paragraph, context length and rows
	@$(BIN)/python tools/bench/scale.py $(ARGS)

gpu: $(INSTALLED)  ## Measure the lab on an NVIDIA card, in ten minutes at most, beside what was expected (ARGS="--only attention")
	@$(BIN)/python tools/gpu.py $(ARGS)

prepare: $(INSTALLED)  ## Before a commit: export llmlab/, clean the notebooks, write README.md anew
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@$(BIN)/python tools/readme.py

pins: $(INSTALLED)  ## Renew constraints.txt with uv, for every Python promised (ARGS=--check only checks it)
	@$(BIN)/python tools/pins.py $(ARGS)

clean:  ## Remove .venv, .bench and whatever was built; runs/ stays
	@rm -rf $(VENV) .bench _docs _proc build dist *.egg-info .pytest_cache .hypothesis
	@find llmlab tests tools -name __pycache__ -prune -exec rm -rf {} +

# What an interrupted installation leaves behind can look installed and not be, hence the fresh start after one.
$(INSTALLED): settings.ini setup.py constraints.txt
	@test ! -e $(UNFINISHED) || rm -rf $(VENV)
	@new_enough='import sys; sys.exit(sys.version_info < tuple(map(int, "$(MINIMUM)".split("."))))'; \
	if ! $(BIN)/python -c "$$new_enough" 2>/dev/null; then \
	    if ! $(PYTHON) -c "$$new_enough" 2>/dev/null; then \
	        echo "llmlab needs Python $(MINIMUM) or later, and '$(PYTHON)' is not. Name another one, for instance: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; \
	        exit 2; \
	    fi; \
	    $(PYTHON) -m venv --clear $(VENV); \
	fi
	@touch $(UNFINISHED)
	@TORCH="$(TORCH)" $(BIN)/python tools/install.py $(BIN)/python </dev/null
	@rm $(UNFINISHED)
	@touch $@
