{{/*
The triggerer's liveness probe, in place of the official chart's, which starts a whole Airflow (2.5
s of CPU) for it. This asks the database alone for the triggerer's last sign of life. A database that
is away is no fault of the triggerer's, and a restart mends nothing.
*/}}
{{- define "triggerer_liveness_check_command" }}
  - python
  - -c
  - |
    import os, socket
    from datetime import datetime, timedelta, timezone

    from sqlalchemy import create_engine, exc, text

    newest = text(
        "SELECT max(latest_heartbeat) FROM job WHERE job_type = 'TriggererJob'"
        " AND state = 'running' AND hostname LIKE :host"
    )
    try:
        with create_engine(os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]).connect() as database:
            seen = database.execute(newest, {"host": socket.gethostname() + "%"}).scalar()
    except exc.OperationalError:
        raise SystemExit(0)
    raise SystemExit(not seen or seen < datetime.now(timezone.utc) - timedelta(minutes=2))
{{- end }}
