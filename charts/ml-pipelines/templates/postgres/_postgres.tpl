{{- define "ml-pipelines.postgres.pod" -}}
metadata:
  labels:
    {{- include "ml-pipelines.podLabels" (list . "postgres") | nindent 4 }}
spec:
  {{- include "ml-pipelines.podCommon" . | nindent 2 }}
  serviceAccountName: {{ include "ml-pipelines.pods.accountName" . }}
  # 999 is postgres in Debian's and Docker's image.
  securityContext:
    {{- include "ml-pipelines.podSecurity" (dict "user" 999 "group" 999) | nindent 4 }}
  terminationGracePeriodSeconds: 60
  containers:
    - name: postgres
      image: {{ include "ml-pipelines.image" (list . .Values.images.postgres) | quote }}
      imagePullPolicy: {{ .Values.images.postgres.pullPolicy }}
      securityContext:
        {{- include "ml-pipelines.containerSecurity" . | nindent 8 }}
      # Each running task holds two or three connections; 100, the default, is 40 tasks.
      args: ["-c", "max_connections=200"]
      env:
        - name: POSTGRES_USER
          value: airflow
        - name: POSTGRES_DB
          value: airflow
        - name: POSTGRES_PASSWORD_FILE
          value: /run/secrets/postgres/password
        # A directory below the mount: a volume's root may hold lost+found.
        - name: PGDATA
          value: /var/lib/postgresql/data/pgdata
      ports:
        - name: postgres
          containerPort: 5432
      # By address: the server that initialises the data listens on a socket only.
      startupProbe:
        exec:
          command: [pg_isready, --quiet, --host=127.0.0.1, --username=airflow]
        periodSeconds: 2
        timeoutSeconds: 5
        failureThreshold: 90
      readinessProbe:
        exec:
          command: [pg_isready, --quiet, --host=127.0.0.1, --username=airflow]
        periodSeconds: 10
        timeoutSeconds: 5
      {{- /* On a node under heavy load even a short program is slow to start: seen at load 47, where
             3 minutes of it had the database restarted in the middle of 400 tasks. */}}
      livenessProbe:
        exec:
          command: [pg_isready, --quiet, --host=127.0.0.1, --username=airflow]
        periodSeconds: 30
        timeoutSeconds: 30
        failureThreshold: 10
      resources:
        {{- toYaml .Values.postgres.resources | nindent 8 }}
      volumeMounts:
        - name: data
          mountPath: /var/lib/postgresql/data
        - name: password
          mountPath: /run/secrets/postgres
          readOnly: true
        - name: run
          mountPath: /var/run/postgresql
        - name: tmp
          mountPath: /tmp
  volumes:
    - name: data
      persistentVolumeClaim:
        claimName: {{ include "ml-pipelines.postgres.name" . }}
    - name: password
      secret:
        secretName: {{ include "ml-pipelines.postgres.secretName" . }}
        defaultMode: 0440
        items:
          - key: password
            path: password
    - name: run
      emptyDir:
        medium: Memory
        sizeLimit: 1Mi
    - name: tmp
      emptyDir: {}
{{- end }}
