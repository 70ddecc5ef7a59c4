# Two commands: `make demo` and `make test` (the long tier: `make test-slow`). All create the environment in .venv when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# More workers than the two cores of a small machine: many tests wait. Every test process computes on one thread.
PYTEST_ARGS ?= -n 3 --dist worksteal
# PATH first, so that the environment's mpiexec and python are the ones the scripts call.
RUN := PATH="$(abspath $(BIN)):$$PATH"

.PHONY: demo test test-slow parity fuzz evaluator-matrix lint clean
.DEFAULT_GOAL := demo

$(BIN)/.demo-ready: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[mpi,demo]"
	touch $@

$(BIN)/.test-ready: $(BIN)/.demo-ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[mpi,demo,inception,test]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torch-fidelity k-diffusion  # the metrics of one, the samplers of the other; their networks want torchvision and more
	touch $@

demo: $(BIN)/.demo-ready  ## train, sample and evaluate on embedded digits; report in runs/demo/report.html
	$(RUN) python experiments/digits/run.py

test: $(BIN)/.test-ready  ## what a change is likely to break, parity included
	$(RUN) python -m pytest -m "not slow" $(PYTEST_ARGS)

test-slow: $(BIN)/.test-ready  ## the rest: faults, several hosts, whole smoke runs and what else takes long
	$(RUN) python -m pytest -m slow $(PYTEST_ARGS)

parity: $(BIN)/.test-ready  ## the table of comparisons with the genuine upstream
	$(RUN) python -m tests.parity

fuzz: $(BIN)/.test-ready  ## damaged files of every kind, 3,000 of each
	$(RUN) ED_DPM_FUZZ=$(or $(N),3000) python -m pytest tests/guided_diffusion/io/test_fuzz_readers.py --timeout=0

evaluator-matrix: $(BIN)/.test-ready  ## the evaluator's tests under several versions of NumPy and SciPy
	$(RUN) python -m tests.evaluator_matrix

lint: $(BIN)/.test-ready
	$(RUN) ruff check .

clean:
	rm -rf $(VENV) .peer runs build *.egg-info
