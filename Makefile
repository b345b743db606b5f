# Everything runs in a virtual environment of the project's own, with the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
PEERS := benchmarks/peers/.venv

.PHONY: demo test test-system torture docs linkcheck lint bench peers dist clean

demo: $(STAMP)  ## train on the synthetic data set, resume in a new process, compare the bits
	$(VENV)/bin/clip-hba demo

test: $(STAMP)  ## the quick tests, ten minutes on 2 cores
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m "not system"

test-system: $(STAMP)  ## the slow ones; one cluster of SLURM at a time
	$(VENV)/bin/python -m pytest -m system tests/slurm
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m system --ignore tests/slurm

torture: $(STAMP)  ## kill training 1,000 times and sweeps 200 times, resume them, compare the bytes: half an hour
	PYTHONPATH=tests $(VENV)/bin/python -m torture.torture --kills 1000
	PYTHONPATH=tests $(VENV)/bin/python -m torture.sweep --kills 200

docs: $(STAMP)  ## the documentation site, docs/_build/index.html; a warning is an error
	$(VENV)/bin/python -m sphinx --quiet --fail-on-warning docs docs/_build

linkcheck: $(STAMP)  ## do links to other sites lead somewhere? Needs the network, so CI does not do it
	$(VENV)/bin/python -m sphinx --quiet -b linkcheck docs docs/_build/linkcheck

lint: $(STAMP)  ## ruff, mypy and the import contracts, through pre-commit
	$(VENV)/bin/pre-commit run --all-files --show-diff-on-failure

bench: $(STAMP)  ## step time beside the full forward
	$(VENV)/bin/python benchmarks/step_time.py

peers: $(PEERS)/.installed  ## beside other frameworks, in an environment of their own: a quarter of an hour
	$(PEERS)/bin/python benchmarks/peers/compare.py --write

dist: $(STAMP)  ## the wheel and the sdist, into dist/: the same files give the same bytes
	env -u SOURCE_DATE_EPOCH $(VENV)/bin/python -m hatchling build

$(PEERS)/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --requirement benchmarks/peers/requirements.txt
	touch $(PEERS)/.installed

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) $(PEERS) dist docs/_build .pytest_cache .mypy_cache .ruff_cache
