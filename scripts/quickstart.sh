#!/usr/bin/env bash
# From nothing to a champion: install, fetch the demo's base model, search, print the outcome.
# Run again, it goes on where it stopped, or reports. With --fresh it starts over.
set -euo pipefail
EXTRAS=demo
source "$(dirname "$0")/environment.sh"

run=runs/quickstart
if [ "${1:-}" = "--fresh" ]; then
  rm -rf "$run"
elif [ $# -gt 0 ]; then
  echo "usage: bash scripts/quickstart.sh [--fresh]" >&2
  exit 2
fi

python scripts/fetch_base_model.py
export HF_HUB_OFFLINE=1
heterosis evolve configs/quickstart.yaml --run-dir "$run"
