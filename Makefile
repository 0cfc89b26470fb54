# make train and make test set up what is missing; see README.md.
PASSK_VENV ?= .venv
PY := $(PASSK_VENV)/bin/python
CONFIG ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo configs/maze_gpu.toml || echo configs/maze_cpu.toml)
export PASSK_VENV

.PHONY: setup train real test test-all check python clean

setup:
	@scripts/setup.sh

python: ; @echo "$(abspath $(PY))"

train: setup
	@$(PASSK_VENV)/bin/passk-fast train $(CONFIG) $(ARGS)

real: setup
	@scripts/real.sh $(ARGS)

test: setup
	@$(PY) -m pytest -m "(not slow or sample) and not gpu" $(ARGS)

test-all: setup
	@$(PY) -m pytest -m "not gpu" $(ARGS)

check: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m mypy --explicit-package-bases benchmarks
	@$(PY) -m codespell_lib passk_fast kernels tests benchmarks docs README.md CHANGELOG.md CONTRIBUTING.md
	@$(PASSK_VENV)/bin/lint-imports

clean:
	rm -rf $(PASSK_VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
