#!/usr/bin/env bash
# The tests that need a real PostgreSQL server, which they stop and start as well. Arguments go to pytest.
set -euo pipefail
EXTRAS=test,postgres
source "$(dirname "$0")/environment.sh"

export HF_HUB_OFFLINE=1
bash scripts/with_postgresql.sh pytest -m postgresql tests/evolve "$@"
