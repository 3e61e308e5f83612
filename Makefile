# make demo, make test: all that a fresh machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two files of tests at a time: much of a test's time goes into starting processes and waiting for them.
PARALLEL := --numprocesses 2 --dist loadfile

.PHONY: demo test cluster-test check format schema clean

demo: $(VENV)/installed  ## the whole pipeline on the built-in corpus
	$(BIN)/python -m launch run jobs/recipes/demo.yaml
	@sed -n '/## Results/,/!\[/p' runs/demo/report/report.md | sed '$$d'
	@echo "report: runs/demo/report/report.md"

test: $(VENV)/installed
	$(BIN)/python -m pytest $(PARALLEL)
	@echo "NOT RUN: the tests on a SLURM, tests/cluster. They are run by: make cluster-test"

cluster-test: $(VENV)/installed  ## on a SLURM that slurm/dev/start.sh starts on this machine
	$(BIN)/python -m pytest $(PARALLEL) tests/cluster

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(VENV)/installed
	$(BIN)/python -m launch schema > jobs/recipes/recipe.schema.json

clean:
	rm -rf $(VENV) runs build *.egg-info

$(VENV)/installed: requirements.lock setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@
