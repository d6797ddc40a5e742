# Sets $url to Postgres itself, where the metadata database is, as soon as it answers.
#
# DATABASE_URL is Airflow's, DIRECT_URL one that leads past a connection pooler, or empty. pg_dump and
# what it writes set up their session (search_path). A pooler in transaction mode hands that session
# to Airflow next, which then finds no table.

# PostgreSQL's programs take no name of SQLAlchemy's driver: postgresql+psycopg2://.
url=${DIRECT_URL:-$DATABASE_URL}
url="postgresql://${url#*://}"
tries=0
# It may be starting again, or its name not be known yet.
until pg_isready --quiet --dbname "$url"; do
  tries=$((tries + 1))
  if [ "$tries" -ge 60 ]; then echo 'The database does not answer.' >&2; exit 1; fi
  sleep 2
done
if [ -z "${DIRECT_URL:-}" ]; then
  # Postgres takes a parameter of anybody's at the start of a session; PgBouncer refuses it, or is
  # told to leave it out. What is wrong otherwise is said by the same command without it.
  psql --no-psqlrc --quiet --tuples-only --dbname "$url" --command 'SELECT 1' > /dev/null
  if ! PGOPTIONS='-c ml_pipelines.direct=yes' psql --no-psqlrc --quiet --tuples-only \
    --dbname "$url" --command 'SHOW ml_pipelines.direct' > /dev/null 2>&1; then
    echo "The database's URL leads to a connection pooler, whose sessions a dump would spoil for" \
      "Airflow: add the key direct, a URL of Postgres itself, to the Secret $URL_SECRET" >&2
    exit 1
  fi
fi
