# The words of the house: demo, serve, check, test, test-all, test-long, test-begin, soak, bench, bench-check,
# bench-quick, paper, paper-real, docs, gpu. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Many tests wait for something, so one more at a time than there are cores.
TESTS_AT_ONCE ?= $(shell $(PYTHON) -c "import os; print(min(4, os.cpu_count() + 1))")
# One thread a process: what a test computes is small, and two that spin for the same core are many times slower.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TESTS_AT_ONCE) --dist loadfile --no-loadscope-reorder
# Tests start some hundred processes, none of which is to compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo serve check test test-all test-long test-begin soak bench bench-check bench-quick paper paper-real docs gpu clean

demo: $(VENV)/demo
	$(BIN)/evalsvc assets pull inception
	if [ -t 1 ]; then $(BIN)/evalsvc demo; else $(BIN)/evalsvc demo --exit; fi  # in a terminal, with the dashboard

serve: $(VENV)/worker
	$(BIN)/evalsvc serve

check: $(VENV)/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests of a change: minutes, within these processes, with SQLite; nothing outside of the environment is needed.
test: check
	$(PYTEST) -m "not full and not long"

# The rest too: services, workers, PostgreSQL, clusters, reference data and programs.
test-all: test
	$(PYTEST) -m "full and not long"

# All tests: those too that the others leave out for their length, outages of half a minute, ten thousand requests.
test-long: check
	TESTS_LONG=1 $(PYTEST) -m "" tests benchmarks/tests

# The long ones for ten seconds each, so that none of them rots. What a test leaves that is stopped is no warning.
test-begin: check
	$(PYTEST) -m long --begin 10 -W ignore::pytest.PytestUnraisableExceptionWarning tests benchmarks/tests

# Random faults for a quarter of an hour: on both databases, with workers of the service's own and with a scheduler.
soak: $(VENV)/all
	OMP_NUM_THREADS=1 PYTHONPATH=tests/support $(BIN)/python benchmarks/soak/soak.py $(SOAK)

bench: $(VENV)/all
	$(BIN)/evalsvc assets pull inception
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/text.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/preparing.py
	$(BIN)/python benchmarks/features.py
	$(BIN)/python benchmarks/score_images.py
	$(BIN)/python benchmarks/frechet.py
	$(BIN)/python benchmarks/images_end_to_end.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/card_model.py
	$(BIN)/python benchmarks/history.py
	$(BIN)/python benchmarks/trackers.py
	$(BIN)/python benchmarks/service.py
	$(BIN)/python benchmarks/looks.py
	$(BIN)/python benchmarks/crowd.py
	$(BIN)/python benchmarks/dashboard.py
	$(BIN)/python benchmarks/calibration.py

# The tests of what lies in benchmarks/: each program in small, the paper's, the preparation of data, a short soak.
bench-check: check
	$(PYTEST) benchmarks/tests

# What CI asks of each commit, below three minutes: quality and speed, each worse than its baseline or not.
bench-quick: $(VENV)/all
	$(BIN)/python benchmarks/bench.py benchmarks/suites/quick.yaml --output build/bench $(BENCH)
	$(BIN)/evalsvc gate build/bench/candidate.json --baseline build/bench/baseline.json \
	    --rules benchmarks/suites/rules.yaml --output build/bench/gate.json --junit build/bench/gate.xml $(GATE)

# The paper's figures and tables in miniature, and three of them on a real language model; both resume where they were
# interrupted. PAPER='--estimate' prints how long it takes. ITEMS is a folder with rows of llm-foundry's benchmarks.
paper: $(VENV)/all
	$(BIN)/evalsvc assets pull inception
	$(BIN)/python benchmarks/paper/paper.py $(PAPER)

paper-real: $(VENV)/all
	$(BIN)/evalsvc assets pull smollm2-135m
	$(BIN)/python benchmarks/paper/paper.py --scale real --items $(ITEMS) $(PAPER)

# The documentation's site, in build/site: a dead link ends it with an error.
docs: $(VENV)/docs
	$(BIN)/python docs/generate.py
	$(BIN)/python -m zensical build --strict

# LOCKED=1 installs the versions of constraints.txt, with which all tests passed, in place of the newest ones.
EXTRAS = $(notdir $@)
$(VENV)/all: EXTRAS = all,clean-fid
$(VENV)/worker $(VENV)/demo $(VENV)/docs $(VENV)/all: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(LOCKED),--constraint constraints.txt) --editable '.[$(EXTRAS)]'
	touch $@

# On a machine with a card, with what is installed there: nothing is downloaded.
gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py $(GPU)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
