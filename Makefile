# `make report` and `make test` work on a fresh machine: they build .venv first.
# On Linux without an NVIDIA GPU, PyTorch's own package index has a much smaller CPU build; pass
# its address: make report TORCH_INDEX=<address of PyTorch's CPU index>
# The exact versions that this repository was tested with: make report LOCK=requirements.lock

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
LOCK ?=
ARGS ?=
# Where the repository lives on GitHub. Set it here once, then run `make badges`.
REPO ?= OWNER/REPOSITORY

BIN := $(VENV)/bin
TORCH := torch>=2.13,<2.14
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help report report-full test unit-tests notebook-tests browser data standin lint lock outputs badges clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

report: $(INSTALLED)  ## run all notebooks and write the report, one RL seed (ARGS='--help' lists options)
	$(BIN)/python -m medlib report $(ARGS)

report-full: $(INSTALLED)  ## three seeds; writes the results into README.md and reports/
	$(BIN)/python -m medlib report --profile standin+full --update-readme --update-reports $(ARGS)

# One thread for each process, or the test processes take the cores from each other.
test: export OMP_NUM_THREADS := 1
# The notebooks are tested on a small budget; strict nbval compares every output that is not tagged.
test: export MEDLIB_PROFILE := tiny
test: export MEDLIB_PROCESSES := 1
test: $(INSTALLED)  ## run the tests and, beside them, every notebook
	$(MAKE) --no-print-directory -j2 unit-tests notebook-tests

unit-tests:
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/

notebook-tests:
	$(BIN)/python -m pytest --nbval --nbval-current-env notebooks/

# Without root or apt the tests in a browser are skipped, and the last lines of pytest say so.
browser: $(INSTALLED)  ## install what the tests in a browser need: Voila, Playwright, Chromium by apt
	$(BIN)/python -m pip install --quiet $(if $(LOCK),-c $(LOCK)) -e '.[browser]'
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
		command -v apt-get && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || \
		echo 'No Chromium here and apt cannot bring it: the tests in a browser will be skipped.'

data: $(INSTALLED)  ## make the scenarios and their images
	$(BIN)/python -m medlib data $(ARGS)

standin: $(INSTALLED)  ## make the two small stand-in models that know no medicine
	$(BIN)/python -m medlib standin $(ARGS)

lint: $(INSTALLED)  ## check style, formatting, spelling, types and the licences of dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy medlib
	$(BIN)/python tests/licences.py

# torch's build tag, such as +cpu, is dropped: the lock names a version, TORCH_INDEX chooses the build.
lock: $(INSTALLED)  ## write the installed versions to requirements.lock
	sed '/^#/!d' requirements.lock > requirements.lock.tmp
	$(BIN)/python -m pip freeze --exclude-editable | sed -E '/^(#|-)/d; s/\+[A-Za-z0-9.]+$$//' >> requirements.lock.tmp
	mv requirements.lock.tmp requirements.lock

outputs: $(INSTALLED)  ## store the notebook outputs that the tests compare (ARGS='01 02' for some)
	$(BIN)/python tests/store_outputs.py $(ARGS)

badges:  ## write the GitHub address into README and notebooks (REPO=owner/name)
	perl -pi -e 's{(colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+}{$${1}$(REPO)}g' README.md
	perl -pi -e 's{(REPOSITORY = \\")[^"\\]*}{$${1}$(REPO)}' notebooks/*.ipynb $(wildcard reports/*.ipynb)

clean:  ## remove the virtual environment and caches, never data, models or runs
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache *.egg-info
	find medlib tests notebooks -name __pycache__ -prune -exec rm -rf {} +
	find notebooks -name .ipynb_checkpoints -prune -exec rm -rf {} +

# The stamp is written last, so an installation that broke off is tried again.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " \
		+ sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@if [ -z '$(TORCH_INDEX)' ] && ! command -v nvidia-smi >/dev/null; then \
		echo 'No NVIDIA GPU found: see the head of the Makefile for a smaller PyTorch.'; fi
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(if $(LOCK),-c $(LOCK)) '$(TORCH)'
	$(BIN)/python -m pip install --quiet $(if $(LOCK),-c $(LOCK)) -e '.[test,lint]'
	@touch $@
