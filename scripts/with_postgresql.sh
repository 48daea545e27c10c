#!/usr/bin/env bash
# Runs a command beside a real PostgreSQL server: installs one (apt) if there is none, starts it in a temporary
# folder, and removes it afterwards. The command finds it by two variables: its URL, and what stops and starts it.
set -euo pipefail

find_server() { ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1; }
if [ -z "$(find_server)" ]; then
  [ "$(id -u)" = 0 ] || { echo "no PostgreSQL server here; install it: apt-get install postgresql" >&2; exit 2; }
  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends postgresql
fi
server=$(find_server)

# A server does not run as root; it runs as the user that its package made.
folder=$(mktemp -d)
as=()
if [ "$(id -u)" = 0 ]; then
  chown postgres "$folder"
  as=(runuser -u postgres --)
fi
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
control=("${as[@]}" "$server/pg_ctl" -D "$folder/data" -w -t 60)
cleanup() {
  "${control[@]}" -m immediate stop >/dev/null 2>&1 || true
  rm -rf "$folder"
}
trap cleanup EXIT

cd "$folder"
# The password is there to be looked for in logs and files.
"${as[@]}" bash -c "echo s3cret > '$folder/password'"
"${as[@]}" "$server/initdb" -D "$folder/data" --encoding=UTF8 --no-locale -U heterosis -A scram-sha-256 --pwfile="$folder/password" >/dev/null
"${as[@]}" bash -c "cat >> '$folder/data/postgresql.conf'" <<SETTINGS
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = '$folder'
SETTINGS
"${control[@]}" -l "$folder/log" start >/dev/null
cd - >/dev/null

export HETEROSIS_TEST_POSTGRESQL="postgresql+psycopg://heterosis:s3cret@127.0.0.1:$port/postgres"
export HETEROSIS_TEST_POSTGRESQL_CONTROL="${control[*]} -l $folder/log"
"$@"
