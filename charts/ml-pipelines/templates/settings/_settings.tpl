{{/*
What the DAGs are told, as one object. dags/ml_pipelines/settings.py reads it and says which keys
there are.
*/}}

{{- define "ml-pipelines.settings" -}}
{{- $pullSecrets := list -}}
{{- range .Values.imagePullSecrets -}}
{{- $pullSecrets = append $pullSecrets .name -}}
{{- end -}}
{{- $trackingUri := include "ml-pipelines.mlflow.uri" . -}}
{{- $image := dict
      "reference" (include "ml-pipelines.image" .Values.images.classicExample)
      "pullPolicy" .Values.images.classicExample.pullPolicy
      "pullSecrets" $pullSecrets -}}
{{- $registry := dict
      "type" (.Values.wandb.enabled | ternary "wandb" "mlflow")
      "modelName" .Values.pipelines.modelName
      "mlflow" (dict "trackingUri" ($trackingUri | default nil) "experiment" .Values.mlflow.experiment)
      "wandb" (dict
        "project" .Values.wandb.project
        "entity" .Values.wandb.entity
        "baseUrl" .Values.wandb.baseUrl
        "secretName" (include "ml-pipelines.wandb.secretName" .)
        "secretKey" .Values.wandb.secretKey) -}}
{{- $schedule := dict -}}
{{- range $dag, $expression := .Values.pipelines.schedule -}}
{{- $_ := set $schedule $dag ($expression | default nil) -}}
{{- end -}}
{{- dict
      "namespace" .Release.Namespace
      "image" $image
      "storage" (dict "claimName" .Values.storage.claimName)
      "serviceAccountName" (include "ml-pipelines.tasks.name" .)
      "registry" $registry
      "schedule" $schedule
      "inferenceOnNewModel" .Values.pipelines.inferenceOnNewModel
      "defaults" .Values.pipelines.defaults
      "tasks" .Values.pipelines.tasks
    | toPrettyJson -}}
{{- end }}
