#!/usr/bin/env bash
# Run on every host at once: NODES=4 RENDEZVOUS=10.0.0.1:29500 launch/torchrun.sh train CONFIG ...
# (or preflight, bench). Exits with the run's own code (docs/operations.md).
#   NODES       hosts in all (1)
#   NPROC       ranks on each host (its GPUs; 1 without any)
#   RENDEZVOUS  HOST:PORT on one of the hosts, the same on all; its port must be open between them
#   RUN_ID      tells two runs that share a port apart (passk)
#   LOG_DIR     each host writes its ranks' output into a folder of its own in here (runs/logs)
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${PASSK_VENV:-.venv}
nodes=${NODES:-1}
gpus=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU ' || true)
nproc=${NPROC:-$((gpus > 0 ? gpus : 1))}
if [ "$nodes" -gt 1 ] && [ -z "${RENDEZVOUS:-}" ]; then
  echo "launch: set RENDEZVOUS=HOST:PORT, an address of one of the $nodes hosts" >&2
  exit 2
fi
exec "${PYTHON:-$venv/bin/python}" -m passk_fast launch --nodes "$nodes" --nproc "$nproc" \
  --rendezvous "${RENDEZVOUS:-127.0.0.1:29500}" --run-id "${RUN_ID:-passk}" \
  --log-dir "${LOG_DIR:-runs/logs}" "$@"
