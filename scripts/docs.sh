#!/usr/bin/env bash
# Build the documentation into build/site; a broken link between its pages or an unresolved name is an error.
# Links to elsewhere are not followed: tests/test_docs.py checks their form.
# Arguments go to mkdocs: `bash scripts/docs.sh serve` shows it while it is written.
set -euo pipefail
EXTRAS=docs
source "$(dirname "$0")/environment.sh"

# The API reference is read from the sources, under the names that they are imported by.
PACKAGE_ROOT=$(mktemp -d)
trap 'rm -rf "$PACKAGE_ROOT"' EXIT
cp -r heterosis "$PACKAGE_ROOT"
cp -r merge evaluate evolve "$PACKAGE_ROOT/heterosis"
export PACKAGE_ROOT NO_MKDOCS_2_WARNING=1
mkdocs "${1:-build}" --strict "${@:2}"   # not --quiet, which would hide warnings from --strict
