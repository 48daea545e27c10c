#!/usr/bin/env bash
# Install the test extra into .venv and run the whole suite, in two processes; arguments go to pytest.
set -euo pipefail
EXTRAS=test
source "$(dirname "$0")/environment.sh"

export HF_HUB_OFFLINE=1
pytest -n 2 --dist loadfile "$@"
