# Sourced by the other scripts: makes .venv in the checkout, with the versions of constraints.txt.
# EXTRAS names the extras to install. Does nothing when that was done before.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or later is needed; set PYTHON to one, for example PYTHON=python3.12 bash $0" >&2
  exit 2
}

stamp=".venv/installed-$(cat pyproject.toml constraints.txt | cksum | tr ' ' '-')-${EXTRAS}"
if [ ! -e "$stamp" ]; then
  .venv/bin/python -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear .venv
  # torch first and alone: with the exact version asked for, pip takes a build that is at hand.
  .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
  .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[${EXTRAS}]"
  touch "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
