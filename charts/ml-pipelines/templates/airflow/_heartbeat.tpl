{{/*
Liveness probes in place of the official chart's, which start a whole Airflow (2.5 s of CPU) for it.
These ask the database alone for the last sign of life. A database that is away is nobody's fault
but its own, and a restart mends nothing.
*/}}
{{- define "triggerer_liveness_check_command" }}
{{- include "ml-pipelines.heartbeat" "TriggererJob" }}
{{- end }}

{{- define "dag_processor_liveness_check_command" }}
{{- include "ml-pipelines.heartbeat" "DagProcessorJob" }}
{{- end }}

{{- define "ml-pipelines.heartbeat" }}
  - python
  - -c
  - |
    import os, socket
    from datetime import datetime, timedelta, timezone

    from sqlalchemy import create_engine, exc, text

    newest = text(
        "SELECT max(latest_heartbeat) FROM job WHERE job_type = '{{ . }}'"
        " AND state = 'running' AND hostname LIKE :host"
    )
    try:
        with create_engine(os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]).connect() as database:
            seen = database.execute(newest, {"host": socket.gethostname() + "%"}).scalar()
    except exc.OperationalError:
        raise SystemExit(0)
    raise SystemExit(not seen or seen < datetime.now(timezone.utc) - timedelta(minutes=2))
{{- end }}
