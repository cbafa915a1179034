# make demo: trains PATT on the embedded digits and evaluates it.   make test: the test suite.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
DEMO ?= runs/demo

.PHONY: demo test

demo: $(VENV)/.run-time
	$(RUN) train.py --ds digits --gpu cpu --srp $(DEMO) --resume
	$(RUN) test.py --gpu cpu --ckpt_path $(DEMO)

test: $(VENV)/.development
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m pytest

$(VENV)/.run-time: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.development: $(VENV)/.run-time requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
