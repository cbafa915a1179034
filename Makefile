# make demo: PATT beside plain cross-entropy on the embedded digits.   make test: the test suite.
# make versions: a digits run on the oldest and the newest versions that are promised.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
DEMO ?= runs/demo

.PHONY: demo test versions

demo: $(VENV)/.run-time
	$(RUN) -m benchmarks.demo --srp $(DEMO)

test: $(VENV)/.development
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m pytest -n 2

versions:
	.ci/versions

$(VENV)/.run-time: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.development: $(VENV)/.run-time requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
