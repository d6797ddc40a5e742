#!/bin/bash
# The official image's contract, as far as it is about the environment:
#   POSTGRES_PASSWORD       of the superuser; required for a new data directory, unless
#   POSTGRES_HOST_AUTH_METHOD=trust
#   POSTGRES_USER           the superuser, default postgres
#   POSTGRES_DB             a database to create, default: the user's name
#   POSTGRES_INITDB_ARGS    more words for initdb
#   PGDATA                  data directory
# The first three can also be read from files: POSTGRES_PASSWORD_FILE and so on.
# Scripts in /docker-entrypoint-initdb.d are not run.
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 1
}

# from_file NAME: set $NAME from the file named by $NAME_FILE.
from_file() {
    local name=$1 file=$1_FILE
    [ -n "${!file:-}" ] || return 0
    [ -z "${!name:-}" ] || fail "$name and $file are both set: set one"
    [ -r "${!file}" ] || fail "$file=${!file} cannot be read by uid $(id -u)"
    export "$name=$(< "${!file}")"
}

# A first argument that is an option is meant for postgres.
case "${1:--}" in -*) set -- postgres "$@" ;; esac
[ "$1" = postgres ] || exec "$@"
[ "$(id -u)" != 0 ] || fail "PostgreSQL does not run as root: set runAsUser: 999"

mkdir -p "$PGDATA" || fail "uid $(id -u) cannot make PGDATA=$PGDATA: give the volume fsGroup 999"
# A fsGroup widens the mode on every mount; PostgreSQL refuses to start then.
chmod 700 "$PGDATA" \
    || fail "PGDATA=$PGDATA is not owned by uid $(id -u): use a directory below the volume"

# A new database is made in a directory of its own and then moved into place name by name,
# PG_VERSION last. A container that is killed meanwhile leaves nothing that the next one would take
# for a database: it starts over, or goes on moving where a whole one is waiting.
fresh=$PGDATA/.new
whole=$PGDATA/.new-is-whole

make_database() {
    for name in POSTGRES_PASSWORD POSTGRES_USER POSTGRES_DB; do from_file "$name"; done
    local user=${POSTGRES_USER:-postgres} method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
    local database=${POSTGRES_DB:-$user}
    [ -n "${POSTGRES_PASSWORD:-}" ] || [ "$method" = trust ] \
        || fail "a new database needs POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE"
    rm -rf "$fresh"
    [ -z "$(find "$PGDATA" -mindepth 1 -maxdepth 1 ! -name lost+found)" ] \
        || fail "PGDATA=$PGDATA holds files but no database (PG_VERSION is missing): empty it"

    # UTF8 whatever the locale says: Airflow 3 cannot talk to an SQL_ASCII database.
    # shellcheck disable=SC2086  # words on purpose
    initdb --pgdata="$fresh" --username="$user" --encoding=UTF8 --locale=C.UTF-8 \
        --auth-local=trust --auth-host=scram-sha-256 \
        ${POSTGRES_PASSWORD:+--pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD")} ${POSTGRES_INITDB_ARGS:-}
    printf '\nhost all all all %s\n' "$method" >> "$fresh/pg_hba.conf"
    echo "listen_addresses = '*'" >> "$fresh/postgresql.conf"
    if [ "$database" != postgres ]; then
        # Single-user mode: no server to start, wait for and stop again.
        printf 'CREATE DATABASE "%s"\n' "${database//\"/\"\"}" \
            | postgres --single -D "$fresh" postgres > /dev/null
    fi
    touch "$whole"
    echo "made database $database of user $user"
}

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    [ -e "$whole" ] || make_database
    find "$fresh" -mindepth 1 -maxdepth 1 ! -name PG_VERSION -exec mv -t "$PGDATA" {} +
    mv "$fresh/PG_VERSION" "$PGDATA/"
fi
rm -rf "$fresh" "$whole"
unset POSTGRES_PASSWORD
exec "$@"
