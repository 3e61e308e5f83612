# make demo, make test: all that a fresh machine needs.
PYTHON ?= python3
# What pip installs first. README, "Install", shows other choices: CUDA builds, a torch that is there already.
TORCH ?= --requirement requirements-torch.txt
VENV_OPTIONS ?=
VENV := .venv
BIN := $(VENV)/bin
# Two files of tests at a time: much of a test's time goes into starting processes and waiting for them.
PARALLEL := --numprocesses 2 --dist loadfile

.PHONY: demo demo-check test cluster-test check format schema lock clean

demo: $(VENV)/installed  ## the whole pipeline on the built-in corpus
	$(BIN)/python -m launch run jobs/recipes/demo.yaml
	@sed -n '/## Results/,/!\[/p' runs/demo/report/report.md | sed '$$d'
	@echo "report: runs/demo/report/report.md"

demo-check: $(VENV)/developed  ## the outcome of `make demo`
	$(BIN)/python -m pytest tests/demo

test: $(VENV)/developed  ## as pytest finds them: the long files of tests/distributed first, the short ones at the end
	$(BIN)/python -m pytest $(PARALLEL) --no-loadscope-reorder
	@echo "NOT RUN: the tests on a SLURM, tests/cluster. They are run by: make cluster-test"

cluster-test: $(VENV)/developed  ## on a SLURM that slurm/dev/start.sh starts on this machine
	$(BIN)/python -m pytest $(PARALLEL) tests/cluster

check: $(VENV)/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/developed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(VENV)/installed
	$(BIN)/python -m launch schema > jobs/recipes/recipe.schema.json

lock: $(VENV)/developed  ## the newest versions that setup.py allows
	$(BIN)/uv pip compile --quiet --upgrade setup.py --output-file requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade setup.py --extra dev --constraint requirements.lock --output-file requirements-dev.lock

clean:
	rm -rf $(VENV) runs build *.egg-info

# What runs need. The lock file is complete but for torch, so pip looks for nothing else (--no-deps).
$(VENV)/installed: requirements-torch.txt requirements.lock setup.py
	$(PYTHON) -m venv $(VENV_OPTIONS) $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	$(if $(VENV_OPTIONS),,$(BIN)/pip check)
	touch $@

# What tests and linters need in addition.
$(VENV)/developed: $(VENV)/installed requirements-dev.lock
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements-dev.lock
	$(if $(VENV_OPTIONS),,$(BIN)/pip check)
	touch $@
