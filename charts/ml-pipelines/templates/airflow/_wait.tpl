{{/*
What the official chart's init containers run before scheduler and webserver. This takes the place
of its own template: Helm prefers the parent chart's. The original ends as soon as the database
refuses a connection, which a database that starts at the same moment does, and the pod begins its
life with a restart.
*/}}
{{- define "wait-for-migrations-command" }}
  - bash
  - -c
  - |
    # Every Airflow makes directories for logs when it starts; theirs is not mounted here.
    export AIRFLOW__LOGGING__BASE_LOG_FOLDER=/tmp AIRFLOW__SCHEDULER__CHILD_PROCESS_LOG_DIRECTORY=/tmp
    export AIRFLOW__LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY=/tmp
    deadline=$((SECONDS + {{ .Values.images.migrationsWaitTimeout }}))
    until airflow db check-migrations --migration-wait-timeout={{ .Values.images.migrationsWaitTimeout }}; do
      if ((SECONDS >= deadline)); then
        echo 'The database was not ready in time: see it, and the log of the setup Job.' >&2
        exit 1
      fi
      echo 'The database is not ready: trying again.'
      sleep 1
    done
{{- end }}
