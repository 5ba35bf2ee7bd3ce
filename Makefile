# The two commands are `make demo` and `make test`; both set up everything that they need.
.DEFAULT_GOAL := help
.PHONY: help setup setup-det setup-test demo demo-det demo-cls report test test-fast test-slurm test-torch21 test-wheel test-stock lint format types torture bench gpu-check docs dist clean

PYTHON_ENV := .venv/bin/python
# Tests start processes of their own: not more workers than cores. What a file's fixtures have made is used by one worker.
PYTEST := PYTHONUTF8=1 OMP_NUM_THREADS=1 $(PYTHON_ENV) -m pytest -q -n $(shell nproc) --dist loadfile --no-loadscope-reorder
# `PYTHON=python3.12 make demo` chooses the Python of the environment; the tools themselves run in the environment.
RUN := PYTHON=$(CURDIR)/$(PYTHON_ENV)
# The style checks have environments of their own, which take seconds.
PRE_COMMIT := .venv-lint/bin/pre-commit

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## the environment in .venv (the others call it)
	@tools/setup_env.sh base

setup-det:  ## with mmcv's operators, which detection needs
	@tools/setup_env.sh det

setup-test:  ## with the tests' tools, too
	@tools/setup_env.sh test

demo: setup  ## draw a small data set, train a nano PeLK on two processes, test it, draw the result
	@$(RUN) tools/demo/run_seg.sh

demo-det: setup-det  ## the same for instance segmentation: a nano PeLK Mask R-CNN, boxes and masks
	@$(RUN) tools/demo/run_det.sh

demo-cls: setup  ## three mixers on small digits, three seeds each
	@$(PYTHON_ENV) tools/demo/make_classification_data.py data/demo_classification
	@$(PYTHON_ENV) -m benchmarks.compare_classification work_dirs/demo_classification

report: setup-det  ## every table and figure of the paper that a CPU can make in ten minutes, and docs/reproduction.md
	@PYTHONWARNINGS=ignore $(PYTHON_ENV) -m reproduction

test: lint types  ## style, types, and all tests but those of a cluster
	@$(PYTEST) -m 'not cluster'

test-fast: setup-test  ## the tests that start no process and train nothing, in some minutes
	@$(PYTEST) -m 'not slow'

test-slurm: setup-test  ## the launchers on a Slurm of two nodes that the tests start here; as root, where Slurm is installed
	@OMP_NUM_THREADS=1 $(PYTHON_ENV) -m pytest -q -m cluster tests/tools/test_slurm.py

test-torch21:  ## the operator's tests with torch 2.1, the oldest it runs on, in an environment of their own
	@test -x .venv-torch21/bin/pytest || { echo "installing torch 2.1, 5 GB on disk, once" && \
	    $${PYTHON:-python3} -m venv .venv-torch21 && \
	    .venv-torch21/bin/pip install -q torch==2.1.2 'numpy<2' pytest==9.2.0 hypothesis==6.168.5; }
	@OMP_NUM_THREADS=1 .venv-torch21/bin/python -m pytest -q --confcutdir=tests/ops tests/ops

test-wheel: dist setup-det  ## use the wheel as a project elsewhere would, with the toolboxes of .venv
	@rm -rf build/wheel && $(PYTHON_ENV) -m pip install -q --no-deps --target build/wheel dist/*.whl
	@cd build && PYTHONWARNINGS=ignore PYTHONPATH=$(CURDIR)/build/wheel $(CURDIR)/$(PYTHON_ENV) ../tests/packaging/use_wheel.py mmseg mmdet mmpretrain

test-stock: dist  ## use the wheel in an environment of OpenMMLab's stock line with torch 2.1, .venv-stock
	@tests/packaging/stock_line.sh

lint: $(PRE_COMMIT)  ## style, spelling and links; needs no set-up
	@$(PRE_COMMIT) run --all-files

format: $(PRE_COMMIT)  ## let ruff format the code and fix what it can
	@$(PRE_COMMIT) run --all-files ruff-format || true
	@$(PRE_COMMIT) run --all-files ruff

types: setup-test  ## mypy
	@$(PYTHON_ENV) -m mypy

torture: setup-test  ## a training killed and resumed a hundred times, 100,000 mutated checkpoints; KILLS=5 FILES=9 SEED=1
	@OMP_NUM_THREADS=1 $(PYTHON_ENV) -m tests.fault_tolerance.torture --kills $(or $(KILLS),100) --seed $(or $(SEED),0)
	@OMP_NUM_THREADS=1 $(PYTHON_ENV) -m tests.fault_tolerance.fuzz --files $(or $(FILES),100000) --seed $(or $(SEED),0)

bench: setup  ## time the operator on this machine
	@$(PYTHON_ENV) -m benchmarks.peripheral_conv

gpu-check: setup-test  ## on a machine with an NVIDIA GPU: is everything right and fast there, in ten minutes; DRY=1 on a CPU
	@$(PYTHON_ENV) -m benchmarks.gpu_check $(if $(DRY),--dry)

# Not with --quiet, which leaves --strict nothing to refuse.
docs: .venv-docs/installed  ## the documentation as a site, build/docs/index.html; links are checked
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

dist: .venv-dist/installed  ## source distribution and wheel, in dist/
	@rm -rf dist && .venv-dist/bin/python -m build --outdir dist . > .venv-dist/build.log 2>&1 || { tail -20 .venv-dist/build.log; exit 1; }
	@.venv-dist/bin/twine check --strict dist/*

.venv-docs/installed: docs/requirements.txt
.venv-dist/installed: requirements/dist.txt
.venv-docs/installed .venv-dist/installed:
	@$${PYTHON:-python3} -m venv $(@D)
	@$(@D)/bin/pip install -q --disable-pip-version-check -r $<
	@touch $@

$(PRE_COMMIT): requirements/dev.txt
	@$${PYTHON:-python3} -m venv .venv-lint
	@.venv-lint/bin/pip install -q --disable-pip-version-check $$(grep '^pre-commit==' requirements/dev.txt)
	@touch $@

clean:  ## remove caches and build products; .venv, data and work_dirs stay
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find configs mmpelk tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
