{{/*
What a cluster that others rely on must not be given, one message a line; with `profile: local`
nothing of it is asked. A message names the value and the way out, as those of _validate.tpl do.
*/}}
{{- define "ml-pipelines.problems.shared" -}}
{{- $v := .Values -}}
{{- $a := .Values.airflow -}}
{{- $problems := list -}}

{{- /* What only the people who run it can know */ -}}
{{- $together := and (include "ml-pipelines.keptTogether" (list $a.affinity $a.nodeSelector)) (include "ml-pipelines.keptTogether" (list $v.pipelines.defaults.affinity $v.pipelines.defaults.nodeSelector)) -}}
{{- $elsewhere := dict "storage" "" "logs" "; or let logs go elsewhere (airflow.config.logging), with logs.create and airflow.logs.persistence.enabled false" -}}
{{- range $claim, $way := $elsewhere -}}
{{- $values := index $v $claim -}}
{{- if $values.create -}}
{{- if not (has "ReadWriteMany" (include "ml-pipelines.accessModes" (list $ $claim) | fromYamlArray)) -}}
{{- if not $together -}}
{{- $problems = append $problems (printf "%s.accessModes: pods on several nodes mount it; use ReadWriteMany, or keep all pods on one node as values/parts/one-node.yaml does%s" $claim $way) -}}
{{- end -}}
{{- else if not $values.storageClassName -}}
{{- $problems = append $problems (printf "%s.storageClassName: name a class with ReadWriteMany (kubectl get storageclass), which the default one rarely has%s" $claim $way) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.wandb.enabled (not $v.wandb.project) -}}
{{- $problems = append $problems "wandb.project: name the project that models go to; or set wandb.enabled to false and give mlflow.trackingUri" -}}
{{- end -}}
{{- if not (include "ml-pipelines.webserver.url" .) -}}
{{- $problems = append $problems (printf "airflow.config.%s.base_url: give the address that people open, as https://..." (include "ml-pipelines.webserver.section" .)) -}}
{{- end -}}
{{- if and $v.admin.enabled (hasSuffix "@example.com" $v.admin.email) -}}
{{- $problems = append $problems (printf "admin.email: %s is nobody's; give the address of the first user, or set admin.enabled to false where logins come from elsewhere" $v.admin.email) -}}
{{- end -}}

{{- /* Images: what a tag means must not change between two pods */ -}}
{{- $images := dict -}}
{{- range $name, $image := pick $v.images "classicExample" "xcomSidecar" -}}
{{- if or (eq $name "classicExample") $image.repository -}}
{{- $_ := set $images (printf "images.%s.digest" $name) ($image.digest | default (toString $image.tag)) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $images "airflow.defaultAirflowTag" (toString $a.defaultAirflowTag) -}}
{{- $_ := set $images "airflow.images.gitSync.tag" (toString $a.images.gitSync.tag) -}}
{{- range $key, $tag := $images -}}
{{- if not (regexMatch "[0-9]" $tag) -}}
{{- $problems = append $problems (printf "%s: %s; give a digest or the tag of a version, else two runs of one commit may differ" $key (empty $tag | ternary "is empty" (printf "the tag %s moves" $tag))) -}}
{{- end -}}
{{- end -}}

{{- /* Parts for local use */ -}}
{{- if $v.postgres.enabled -}}
{{- $problems = append $problems (printf "postgres.enabled: the release's own Postgres has one replica and no backups; set it and secrets.metadata.create to false, and put the URL of a database elsewhere into Secret %s, key connection" $a.data.metadataSecretName) -}}
{{- end -}}
{{- if $v.mlflow.enabled -}}
{{- $problems = append $problems "mlflow.enabled: the release's own MLflow has no login, one replica and no backups; set it to false, and give mlflow.trackingUri or enable wandb" -}}
{{- end -}}
{{- if $v.storage.local.path -}}
{{- $problems = append $problems "storage.local: a directory of one node is lost with it; leave path and nodeName empty and name a storage.storageClassName" -}}
{{- end -}}
{{- if $v.wandb.apiKey -}}
{{- $problems = append $problems "wandb.apiKey: can be read by whoever reads the release; put it into a Secret and name that in wandb.existingSecret" -}}
{{- end -}}

{{- /* A container without a limit takes its node along. */ -}}
{{- $resources := dict "pipelines.defaults" $v.pipelines.defaults.resources -}}
{{- range $component := list "scheduler" "triggerer" "webserver" "workers" -}}
{{- $_ := set $resources (printf "airflow.%s" $component) (index $a $component).resources -}}
{{- end -}}
{{- range $where, $given := $resources -}}
{{- $lacking := list -}}
{{- range $kind, $names := dict "limits" (list "memory") "requests" (list "cpu" "memory") -}}
{{- range $names -}}
{{- if not (dig $kind . "" ($given | default dict)) -}}
{{- $lacking = append $lacking (printf "%s.%s" $kind .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $lacking -}}
{{- $problems = append $problems (printf "%s.resources: give %s" $where (join ", " .)) -}}
{{- end -}}
{{- end -}}

{{- join "\n" $problems -}}
{{- include "ml-pipelines.problems.drawn" . -}}
{{- end }}

{{/* Something when pods with this affinity and node selector share a node: (list affinity selector). */}}
{{- define "ml-pipelines.keptTogether" -}}
{{- dig "podAffinity" "requiredDuringSchedulingIgnoredDuringExecution" (get (index . 1) "kubernetes.io/hostname") (index . 0) | default "" -}}
{{- end }}

{{/*
Values that hold a user and password, or a token, inside a URL: (list prefix values). One path a
line, never the text. With http a user alone may be a token. $(NAME) is no password but its variable.
*/}}
{{- define "ml-pipelines.problems.urls" -}}
{{- $path := index . 0 -}}
{{- $value := index . 1 -}}
{{- if kindIs "string" $value -}}
{{- if regexMatch "(?i)(\\b[a-z][a-z0-9+.-]*://[^\\s/@:\"']*:[^\\s/@\"'$]|\\bhttps?://[^\\s/@:\"'$])[^\\s/@\"']*@" $value -}}
{{ $path }}
{{ end -}}
{{- else if kindIs "map" $value -}}
{{- range $key, $below := $value -}}
{{- include "ml-pipelines.problems.urls" (list (list $path $key | compact | join ".") $below) -}}
{{- end -}}
{{- else if kindIs "slice" $value -}}
{{- range $index, $below := $value -}}
{{- include "ml-pipelines.problems.urls" (list (printf "%s[%d]" $path $index) $below) -}}
{{- end -}}
{{- end -}}
{{- end }}
