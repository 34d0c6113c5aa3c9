# make demo   from a fresh clone: environments, then one SOPHIA round on real parts (minutes, 2 cores)
# make demo-rl  after the demo: 30 batches of the on-policy stage from its model
# make base-models  the two tiny models that the demo starts from, made anew in runs/digits/base (they are shipped in examples/digits/base)
# make test   from a fresh clone: environments, then the tests; the last line is their CPU-minutes
# make test-slow  the tests that `make test` leaves out, and what each took
# make check  lint, types and tests: what CI runs
# make test-next  the model's tests with the newest megatron-core that is supported, in .venv-next (needs Python 3.12; 3 GB where there is no CPU build of torch)
# make test-cuda-path  the GPU path's Python on a CPU: Transformer Engine's real files, stand-ins for its kernels (part of `make test`)
# make gpu-check  on a machine with one GPU: what works there, in ten minutes, into docs/bench/gpu.md
# make mlflow the curves of a run in MLflow's pages, RUN=runs/digits; makes .venv-mlflow the first time
# make docs   the documentation as a site, in build/site
# make bench  the benchmarks, a JSON line or two each, then the goals and where they stand (ONLY=name for one, with OPTIONS="..." of its own)
#
# Variables: PYTHON (3.11), TORCH_INDEX (extra package index with CPU builds of torch, where the default has none)

PYTHON ?= python3.11
TORCH_INDEX ?=
PY := .venv/bin/python
NEXT_PYTHON ?= python3.12
NEXT_MEGATRON ?= 0.19.2
BENCHES := conversion load grading hanging packing logprob claims tiling store startup step plan report \
  earlystop filling handover rl_step idle waste

.PHONY: help env mlflow demo demo-rl base-models test test-slow test-next test-cuda-path gpu-check check lint types bench docs clean

help:
	@sed -n 's/^# //p' Makefile

env:
	@$(PYTHON) tools/setup_env.py --torch-index "$(TORCH_INDEX)"

RUN ?= runs/digits

mlflow: env
	@$(PYTHON) tools/setup_env.py mlflow
	@.venv/bin/sophia track "$(RUN)" --open

demo: env
	@$(PY) examples/digits/world.py
	@.venv/bin/sophia run examples/digits/run.toml

demo-rl: env
	@.venv/bin/sophia rl examples/digits/rl.toml --batches 30

base-models: env
	@$(PY) examples/digits/world.py
	@$(PY) examples/digits/make_base_models.py

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: env
	$(PY) -m mypy

test: env
	@$(PY) tools/run_tests.py quick

test-slow: env
	@$(PY) tools/run_tests.py slow

.venv-next/ready: constraints/trainer.txt
	$(NEXT_PYTHON) -m venv .venv-next
	sed -e 's/ --hash=.*//' -e 's/^megatron-core==.*/megatron-core==$(NEXT_MEGATRON)/' constraints/trainer.txt > .venv-next/lock.txt
	# torch with what it needs: a build for CUDA, the only one that some indexes have, does not import without
	.venv-next/bin/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $$(grep '^torch==' .venv-next/lock.txt)
	.venv-next/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r .venv-next/lock.txt
	.venv-next/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

test-cuda-path: env
	@$(PY) tools/cuda_path.py

gpu-check:
	@$(if $(filter command,$(origin PYTHON)),$(PYTHON),$(if $(wildcard $(PY)),$(PY),$(PYTHON))) -m tests.gpu.check

test-next: .venv-next/ready
	.venv-next/bin/python -m pytest tests/dist tests/parity/test_internvl_reference.py tests/unit/test_model*.py

check: lint types test

.venv-docs/ready: constraints/docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints/docs.txt
	@touch $@

docs: .venv-docs/ready
	.venv-docs/bin/python -m mkdocs build --strict # not --quiet, which also turns its checks off

bench: env
	@$(PY) tools/bench.py $(or $(ONLY),$(BENCHES)) $(if $(OPTIONS),--options="$(OPTIONS)")

clean:
	rm -rf runs/digits .pytest_cache .ruff_cache .mypy_cache build *.egg-info
