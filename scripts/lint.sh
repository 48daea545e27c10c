#!/usr/bin/env bash
# Lint, format and type checks. Types are checked in a plain install, where the folders have their package names.
set -euo pipefail
EXTRAS=dev
source "$(dirname "$0")/environment.sh"

ruff check .
ruff format --check .
plain=$(mktemp -d)
trap 'rm -rf "$plain"' EXIT
mkdir "$plain/source" "$plain/installed"
cp -r pyproject.toml README.md LICENSE heterosis merge evaluate evolve "$plain/source"
python -m pip install -q --disable-pip-version-check --no-deps --target "$plain/installed" "$plain/source"
cd "$plain/installed"
MYPYPATH=. mypy --config-file "$plain/source/pyproject.toml" --cache-dir "$plain/cache" -p heterosis
