#!/bin/sh
# Entrypoint of the PostgreSQL image for tests: makes the database where there is none, then serves it to everybody.
# initdb works in a directory beside PGDATA that is renamed when it is whole, so a kill in between leaves nothing half made.
set -e
: "${PGDATA:=/var/lib/postgresql/data}"
export PGDATA
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  rm -rf "$PGDATA.new"
  initdb --pgdata="$PGDATA.new" --username=postgres --auth=trust --encoding=UTF8 --locale=C.UTF-8 --data-checksums
  echo 'host all all all trust' >>"$PGDATA.new/pg_hba.conf"
  sync
  mv "$PGDATA.new" "$PGDATA"
  sync
fi
exec postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/tmp -c jit=off "$@"
