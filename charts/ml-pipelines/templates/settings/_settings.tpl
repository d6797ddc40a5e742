{{/*
What the DAGs are told, as one JSON object. dags/ml_pipelines/settings.py reads it and says what is
in it: for every task, and for presets and single tasks, arguments of the operator and a Pod.
*/}}

{{- define "ml-pipelines.settings" -}}
{{- $root := . -}}
{{- $everyTask := include "ml-pipelines.settings.everyTask" . | fromJson -}}
{{- $presets := dict "registry" (include "ml-pipelines.settings.registry" . | fromJson) -}}
{{- range $name, $values := omit .Values.pipelines.presets "registry" -}}
{{- with include "ml-pipelines.settings.layer" (list $ $values) | fromJson -}}
{{- $_ := set $presets $name . -}}
{{- end -}}
{{- end -}}
{{- $tasks := dict -}}
{{- range $name, $values := .Values.pipelines.tasks -}}
{{- with include "ml-pipelines.settings.layer" (list $ $values) | fromJson -}}
{{- $_ := set $tasks $name . -}}
{{- end -}}
{{- end -}}
{{- $dags := dict -}}
{{- range $dag, $values := .Values.pipelines.dags -}}
{{- $arguments := dict -}}
{{- range $key, $argument := dict "maxActiveRuns" "max_active_runs" "maxActiveTasks" "max_active_tasks" "runTimeoutSeconds" "dagrun_timeout" -}}
{{- if hasKey $values $key -}}
{{- $_ := set $arguments $argument (index $values $key) -}}
{{- end -}}
{{- end -}}
{{- if hasKey $values "schedule" -}}
{{- $_ := set $arguments "schedule" ($values.schedule | default nil) -}}
{{- end -}}
{{- $_ := set $dags $dag $arguments -}}
{{- end -}}
{{- dict
      "operator" $everyTask.operator
      "pod" $everyTask.pod
      "presets" $presets
      "tasks" $tasks
      "dags" $dags
      "data" .Values.pipelines.data
      "inference" .Values.pipelines.inference
      "inferenceOnNewModel" .Values.pipelines.inferenceOnNewModel
      "launch" (include "ml-pipelines.launch" .)
      "workerIdleSeconds" .Values.pipelines.workerIdleSeconds
      "maxPods" .Values.pipelines.maxPods
      "model" .Values.pipelines.model
      "triggerer" .Values.airflow.triggerer.enabled
    | toPrettyJson -}}
{{- end }}

{{/* The Pod of every task as a whole, for the pod_template_file of any KubernetesPodOperator. */}}
{{- define "ml-pipelines.settings.pod" -}}
{{- $pod := (include "ml-pipelines.settings.everyTask" . | fromJson).pod -}}
{{- $frame := dict
      "apiVersion" "v1"
      "kind" "Pod"
      "metadata" (dict "name" "task")
      "spec" (dict "restartPolicy" "Never") -}}
{{- (include "ml-pipelines.settings.merged" (list $frame $pod "" true) | fromJson).is | toYaml -}}
{{- end }}

{{/* What holds for every task: the house's own, then pipelines.defaults. */}}
{{- define "ml-pipelines.settings.everyTask" -}}
{{- $house := dict "pod" (include "ml-pipelines.settings.house" . | fromYaml) -}}
{{- if not .Values.janitor.enabled -}}
{{- /* Nobody else would delete the failed ones. */ -}}
{{- $_ := set $house "operator" (dict "on_finish_action" "delete_pod") -}}
{{- end -}}
{{- $values := include "ml-pipelines.settings.layer" (list . .Values.pipelines.defaults) | fromJson -}}
{{- (include "ml-pipelines.settings.merged" (list $house $values "" true) | fromJson).is | toJson -}}
{{- end }}

{{- define "ml-pipelines.settings.house" -}}
metadata:
  labels:
    app.kubernetes.io/name: ml-pipelines
    app.kubernetes.io/component: task
spec:
  # What runs in these pods is somebody's training code: it is no business of the API server's.
  automountServiceAccountToken: false
  enableServiceLinks: false
  serviceAccountName: {{ include "ml-pipelines.tasks.name" . }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  # A process that ignores SIGTERM for longer is writing into a run that has moved on.
  terminationGracePeriodSeconds: 5
  securityContext:
    {{- include "ml-pipelines.podSecurity" (dict "user" 10001 "group" 10001) | nindent 4 }}
  containers:
    - name: base
      image: {{ include "ml-pipelines.image" (list . .Values.images.classicExample) | quote }}
      imagePullPolicy: {{ .Values.images.classicExample.pullPolicy }}
      securityContext:
        allowPrivilegeEscalation: false
        capabilities:
          drop: [ALL]
      # A directory for each run, from labels that every KubernetesPodOperator writes: no DAG has
      # to say where its files are.
      env:
        - name: ML_PIPELINES_DAG
          valueFrom: {fieldRef: {fieldPath: "metadata.labels['dag_id']"}}
        - name: ML_PIPELINES_RUN
          valueFrom: {fieldRef: {fieldPath: "metadata.labels['run_id']"}}
        - name: ML_PIPELINES_RUN_DIRECTORY
          value: $(ML_PIPELINES_DAG)/$(ML_PIPELINES_RUN)
        # Of the CPU limit, rounded up; without one, of the node. Threads that wait leave the CPU to
        # other pods.
        - name: OMP_NUM_THREADS
          valueFrom: {resourceFieldRef: {resource: limits.cpu}}
        - name: OMP_WAIT_POLICY
          value: PASSIVE
      volumeMounts:
        - name: training-storage
          mountPath: /tmp
          subPathExpr: $(ML_PIPELINES_RUN_DIRECTORY)
  volumes:
    - name: training-storage
      persistentVolumeClaim:
        claimName: {{ .Values.storage.claimName }}
{{- end }}

{{/* The preset of tasks that talk to the model registry; the values may add to it. */}}
{{- define "ml-pipelines.settings.registry" -}}
{{- $env := dict
      "REGISTRY" (.Values.wandb.enabled | ternary "wandb" "mlflow")
      "ML_PIPELINES_RUN_PAGE" (include "ml-pipelines.webserver.run" .) -}}
{{- if .Values.wandb.enabled -}}
{{- /* An empty WANDB_BASE_URL is not "the default" to the SDK but an address that is wrong. */ -}}
{{- range $name, $key := dict "PROJECT" "project" "ENTITY" "entity" "REGISTRY" "registry" "BASE_URL" "baseUrl" -}}
{{- with index $.Values.wandb $key -}}
{{- $_ := set $env (print "WANDB_" $name) . -}}
{{- end -}}
{{- end -}}
{{- /* optional: without the Secret the pod starts all the same and says what is missing. One that
       cannot start would be silent until the startup timeout. */ -}}
{{- $key := dict
      "name" (include "ml-pipelines.wandb.secretName" .)
      "key" .Values.wandb.secretKey
      "optional" true -}}
{{- $_ := set $env "WANDB_API_KEY" (dict "valueFrom" (dict "secretKeyRef" $key)) -}}
{{- else -}}
{{- $_ := set $env "MLFLOW_TRACKING_URI" (include "ml-pipelines.mlflow.uri" .) -}}
{{- $_ := set $env "MLFLOW_EXPERIMENT_NAME" .Values.mlflow.experiment -}}
{{- end -}}
{{- $own := include "ml-pipelines.settings.layer" (list . (dict "env" $env)) | fromJson -}}
{{- $values := include "ml-pipelines.settings.layer" (list . (.Values.pipelines.presets.registry | default dict)) | fromJson -}}
{{- (include "ml-pipelines.settings.merged" (list $own $values "" false) | fromJson).is | toJson -}}
{{- end }}

{{/*
The keys of pipelines.defaults, of a preset or of a task, as {"operator": ..., "pod": ...}; what
nothing is said about is left out: (list . values).
*/}}
{{- define "ml-pipelines.settings.layer" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
{{- $operator := dict -}}
{{- $arguments := dict
      "retries" "retries"
      "retryDelaySeconds" "retry_delay"
      "executionTimeoutSeconds" "execution_timeout"
      "startupTimeoutSeconds" "startup_timeout_seconds"
      "stuckTimeoutSeconds" "stuck_timeout_seconds" -}}
{{- range $key, $argument := $arguments -}}
{{- if hasKey $values $key -}}
{{- $_ := set $operator $argument (index $values $key) -}}
{{- end -}}
{{- end -}}

{{- $container := dict -}}
{{- with $values.image -}}
{{- $_ := set $container "image" (include "ml-pipelines.mirrored" (list $root .)) -}}
{{- end -}}
{{- with $values.envFrom -}}
{{- $_ := set $container "envFrom" . -}}
{{- end -}}
{{- with $values.env -}}
{{- $variables := list -}}
{{- range $name, $value := . -}}
{{- $variables = append $variables (set (kindIs "map" $value | ternary $value (dict "value" $value) | deepCopy) "name" $name) -}}
{{- end -}}
{{- $_ := set $container "env" $variables -}}
{{- end -}}
{{- $resources := dict -}}
{{- range $kind, $quantities := $values.resources -}}
{{- $texts := dict -}}
{{- range $name, $quantity := $quantities -}}
{{- /* Numbers are text to Kubernetes' clients; as JSON, since 1e+06 is how Helm prints them. */ -}}
{{- $_ := set $texts $name (kindIs "string" $quantity | ternary $quantity (toJson $quantity)) -}}
{{- end -}}
{{- with $texts -}}
{{- $_ := set $resources $kind . -}}
{{- end -}}
{{- end -}}
{{- with $resources -}}
{{- $_ := set $container "resources" . -}}
{{- end -}}

{{- $metadata := dict -}}
{{- range $key := list "labels" "annotations" -}}
{{- with index $values $key -}}
{{- $_ := set $metadata $key . -}}
{{- end -}}
{{- end -}}
{{- $spec := dict -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "priorityClassName" "runtimeClassName" "serviceAccountName" -}}
{{- with index $values $key -}}
{{- $_ := set $spec $key . -}}
{{- end -}}
{{- end -}}
{{- with $container -}}
{{- $_ := set $spec "containers" (list (set . "name" "base")) -}}
{{- end -}}

{{- $pod := dict -}}
{{- range $key, $part := dict "metadata" $metadata "spec" $spec -}}
{{- with $part -}}
{{- $_ := set $pod $key . -}}
{{- end -}}
{{- end -}}
{{- $friendly := dict "operator" $operator "pod" $pod -}}
{{- $layer := (include "ml-pipelines.settings.merged" (list $friendly (pick $values "operator" "pod") "" false) | fromJson).is -}}
{{- range $key := list "operator" "pod" -}}
{{- if not (index $layer $key) -}}
{{- $_ := unset $layer $key -}}
{{- end -}}
{{- end -}}
{{- toJson $layer -}}
{{- end }}

{{/*
The second over the first as {"is": ...}, as `merge` in dags/ml_pipelines/settings.py does it; both
are tested against each other. Arguments: below, above, the name of the field that holds them, and
whether nothing comes after it. Else a null stays, for what is below the result.
*/}}
{{- define "ml-pipelines.settings.merged" -}}
{{- $below := index . 0 -}}
{{- $above := index . 1 -}}
{{- $final := index . 3 -}}
{{- $result := $above -}}
{{- if kindIs "map" $above -}}
{{- $result = dict -}}
{{- if kindIs "map" $below -}}
{{- $result = omit $below "" -}}
{{- end -}}
{{- range $key, $value := $above -}}
{{- if and (kindIs "invalid" $value) $final -}}
{{- $_ := unset $result $key -}}
{{- else -}}
{{- $one := include "ml-pipelines.settings.merged" (list (get $result $key) $value $key $final) | fromJson -}}
{{- $_ := set $result $key $one.is -}}
{{- end -}}
{{- end -}}
{{- else if and (kindIs "slice" $below) (kindIs "slice" $above) -}}
{{- $key := get (dict "volumeMounts" "mountPath" "volumeDevices" "devicePath" "hostAliases" "ip") (index . 2) | default "name" -}}
{{- $keyed := true -}}
{{- range concat $below $above -}}
{{- if not (and (kindIs "map" .) (hasKey (kindIs "map" . | ternary . dict) $key)) -}}
{{- $keyed = false -}}
{{- end -}}
{{- end -}}
{{- if $keyed -}}
{{- $field := index . 2 -}}
{{- $order := list -}}
{{- $entries := dict -}}
{{- range $one := concat $below $above -}}
{{- $name := index $one $key | toString -}}
{{- if not (hasKey $entries $name) -}}
{{- $order = append $order $name -}}
{{- end -}}
{{- $there := dict -}}
{{- if has $field (list "containers" "initContainers" "ephemeralContainers") -}}
{{- $there = get $entries $name | default dict -}}
{{- end -}}
{{- $_ := set $entries $name (include "ml-pipelines.settings.merged" (list $there $one "" $final) | fromJson).is -}}
{{- end -}}
{{- $result = list -}}
{{- range $order -}}
{{- $result = append $result (get $entries .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- dict "is" $result | toJson -}}
{{- end }}
