# On a fresh machine:   make example      builds the bundled example and re-ranks with its student
#                       make test         runs the tests
# `make` alone lists the targets. A target that was stopped goes on where it stopped.
# Tests run on all cores, those of a file in one process.
pytest = OMP_NUM_THREADS=1 $(python) -m pytest -q -n auto --dist loadfile
# The Python that makes the environment. Another one: make example PYTHON=python3.12
PYTHON = python3.11
VENV = .venv
python = $(VENV)/bin/python

.DEFAULT_GOAL = help
.PHONY: help install example table test test-quick test-all lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/installed ## make the environment .venv with what the scripts need

example: $(VENV)/installed ## build the example: collection, teacher, student; re-rank and print the table
	[ -e models/python_docs/student_simplified/config.json ] || python=$(python) bash distill.sh
	python=$(python) bash reranker.sh interpolation_weight=0.5
	@echo
	@echo "The losses of the training: models/python_docs/student_simplified/training_curves.png"

table: $(VENV)/installed ## compare the methods on the example with three seeds each; takes 3 to 4 hours (estimated)
	$(python) experiments/make_table.py experiments/python_docs.toml

test: $(VENV)/installed-dev ## run the tests
	$(pytest)

test-quick: $(VENV)/installed-dev ## run the tests that are quick
	$(pytest) -m "not slow"

test-all: test $(VENV)/installed-extras ## run the tests of optional packages and of the example's encoder too
	$(pytest) -m "example or tensorflow or tensorboard or extras"

lint: $(VENV)/installed-dev ## check the style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean: ## remove the environment and caches; data/, models/ and runs/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The file `installed` is written last, so an installation that was stopped is done again.
$(VENV)/installed: requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; name another Python: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(python) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(python) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/installed-extras: $(VENV)/installed-dev requirements-extras.txt
	$(python) -m pip install --quiet --disable-pip-version-check -r requirements-extras.txt
	touch $@
