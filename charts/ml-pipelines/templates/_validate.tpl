{{/*
Combinations of values that the schema cannot judge. Each check gives one message or nothing; all
messages are shown at once by validate.yaml. A message says what is wrong and what to set.
*/}}

{{- define "ml-pipelines.problems" -}}
{{- $v := .Values -}}
{{- $a := .Values.airflow -}}
{{- $problems := list -}}

{{- /* Keys of the official chart: its schema takes any key at the top, so that a typing error or a
       key of another version would be dropped in silence. */ -}}
{{- range $key := keys $a | sortAlpha -}}
{{- if not (has $key (include "ml-pipelines.airflowKeys" $ | splitList " ")) -}}
{{- $problems = append $problems (printf "airflow.%s: the official chart 1.13.1 has no such value; it would be ignored" $key) -}}
{{- end -}}
{{- end -}}

{{- /* Airflow: version, images, executor */ -}}
{{- if ne $a.executor "KubernetesExecutor" -}}
{{- $problems = append $problems (printf "airflow.executor: %s is not supported; the chart is made for KubernetesExecutor" $a.executor) -}}
{{- end -}}
{{- $tag := $a.images.airflow.tag | default $a.defaultAirflowTag | toString -}}
{{- $tagVersion := regexFind "^v?[0-9]+\\.[0-9]+\\.[0-9]+" $tag | trimPrefix "v" -}}
{{- if and $tagVersion (ne $tagVersion ($a.airflowVersion | toString)) -}}
{{- $problems = append $problems (printf "airflow.airflowVersion is %s but the image's tag is %s: the official chart writes commands and settings for the former; set both alike" $a.airflowVersion $tag) -}}
{{- end -}}
{{- with include "ml-pipelines.problems.airflow3" . -}}
{{- $problems = append $problems . -}}
{{- end -}}
{{- $image := include "airflow_image" .Subcharts.airflow -}}
{{- $workerImage := include "pod_template_image" .Subcharts.airflow -}}
{{- if ne $image $workerImage -}}
{{- $problems = append $problems (printf "airflow: scheduler and webserver would run %s but workers %s; give the image once, as airflow.defaultAirflowRepository and airflow.defaultAirflowTag (a digest goes behind the tag: 2.9.3@sha256:...)" $image $workerImage) -}}
{{- end -}}

{{- if not $v.images.classicExample.repository -}}
{{- $problems = append $problems "images.classicExample.repository: name the image that tasks run: the project's (images/README.md says how to build and push it) or one of your own" -}}
{{- end -}}

{{- /* The project's image of Airflow has what requirements/airflow.in (airflow3.in) names. */ -}}
{{- if regexMatch "ml-pipelines/airflow3?$" $a.defaultAirflowRepository -}}
{{- $needing := dict "airflow.config.logging.remote_logging" (dig "logging" "remote_logging" "" $a.config) "airflow.elasticsearch.enabled" $a.elasticsearch.enabled -}}
{{- range $key, $value := $needing -}}
{{- if eq (toString $value | lower) "true" -}}
{{- $problems = append $problems (printf "%s: the image %s has no provider for it, and Airflow would not start; use apache/airflow, or an image of your own with the provider under another name" $key $a.defaultAirflowRepository) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if and $a.podTemplate (not (contains "ml-pipelines.airflow3." $a.podTemplate)) -}}
{{- $problems = append $problems "airflow.podTemplate: takes the place of all that workers get, the settings of this chart too; say what is different in airflow.workers (extraContainers, extraInitContainers, extraVolumes, labels ...), airflow.schedulerName or a pod_mutation_hook" -}}
{{- end -}}

{{- /* DAGs */ -}}
{{- if and $a.dags.gitSync.enabled (not $a.dags.gitSync.repo) -}}
{{- $problems = append $problems "airflow.dags.gitSync.repo: give the URL of the git repository that holds dags/" -}}
{{- end -}}
{{- if and $a.dags.gitSync.branch (ne $a.dags.gitSync.branch $a.dags.gitSync.ref) -}}
{{- $problems = append $problems "airflow.dags.gitSync.branch: git-sync 4 lets it win over ref; set ref alone" -}}
{{- end -}}
{{- if $a.dags.gitSync.rev -}}
{{- $problems = append $problems "airflow.dags.gitSync.rev: git-sync 4 lets it win over ref; set ref alone" -}}
{{- end -}}
{{- if and $a.dags.gitSync.enabled $a.dags.persistence.enabled -}}
{{- if $a.dagProcessor.enabled -}}
{{- $problems = append $problems "airflow.dags.persistence.enabled: with a DAG processor of its own git-sync runs nowhere, and the claim stays empty; switch one of the two off" -}}
{{- end -}}
{{- if gt (int $a.scheduler.replicas) 1 -}}
{{- $problems = append $problems (printf "airflow.dags.persistence.enabled: the git-syncs of %d schedulers would write to one claim; with more than one scheduler switch it off" (int $a.scheduler.replicas)) -}}
{{- end -}}
{{- end -}}
{{- range $component := list "scheduler" "workers" "triggerer" "dagProcessor" -}}
{{- $mounted := false -}}
{{- range (index $a $component).extraVolumeMounts -}}
{{- if eq .mountPath "/opt/airflow/ml-pipelines" -}}{{- $mounted = true -}}{{- end -}}
{{- end -}}
{{- if not $mounted -}}
{{- $problems = append $problems (printf "airflow.%s.extraVolumes and .extraVolumeMounts: lists replace the defaults; repeat the volume ml-pipelines-settings (see the chart's values.yaml), the DAGs read their settings from it" $component) -}}
{{- end -}}
{{- end -}}

{{- range list "volumes" "volumeMounts" -}}
{{- $names := list -}}
{{- range index $a . -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- if not (has "tmp" $names) -}}
{{- $problems = append $problems (printf "airflow.%s: lists replace the defaults; repeat `tmp` (see the chart's values.yaml), Airflow writes below /tmp and its root file systems are read-only" .) -}}
{{- end -}}
{{- end -}}

{{- /* Metadata database */ -}}
{{- if $a.postgresql.enabled -}}
{{- $problems = append $problems "airflow.postgresql.enabled: the images of that subchart were withdrawn in 2025; use postgres.enabled or an external database" -}}
{{- end -}}
{{- if $a.data.metadataConnection.host -}}
{{- $problems = append $problems (printf "airflow.data.metadataConnection: is ignored and shows the password in the values; put the database's URL into Secret %s, key connection%s" $a.data.metadataSecretName (ternary ", and set postgres.enabled and secrets.metadata.create to false" "" $v.postgres.enabled)) -}}
{{- end -}}
{{- if and $v.postgres.enabled (not $v.secrets.metadata.create) (not $v.postgres.existingSecret) -}}
{{- $problems = append $problems "postgres.enabled with secrets.metadata.create false: an external database wants postgres.enabled false; the local one wants postgres.existingSecret, a Secret with the key password" -}}
{{- end -}}
{{- if and $v.postgres.existingSecret (not $v.postgres.enabled) -}}
{{- $problems = append $problems "postgres.existingSecret: postgres.enabled is false, nothing would read it" -}}
{{- end -}}
{{- if and $v.postgres.enabled $v.postgres.existingSecret $v.secrets.metadata.create -}}
{{- $problems = append $problems "postgres.existingSecret: the Secret in airflow.data.metadataSecretName must hold the same password; make it too and set secrets.metadata.create to false" -}}
{{- end -}}
{{- if and (not $v.postgres.enabled) $v.secrets.metadata.create -}}
{{- $problems = append $problems (printf "postgres.enabled is false: make Secret %s with the key connection (postgresql://user:password@host:5432/database) and set secrets.metadata.create to false" $a.data.metadataSecretName) -}}
{{- end -}}
{{- range $key := list "fernetKeySecretName" "webserverSecretKeySecretName" -}}
{{- if not (index $a $key) -}}
{{- $problems = append $problems (printf "airflow.%s: must name a Secret, else the official chart draws a new key at each install or render" $key) -}}
{{- end -}}
{{- end -}}
{{- if not $a.data.metadataSecretName -}}
{{- $problems = append $problems "airflow.data.metadataSecretName: must name the Secret with the database's URL" -}}
{{- end -}}
{{- if $a.pgbouncer.enabled -}}
{{- range $key, $name := dict "configSecretName" $a.pgbouncer.configSecretName "metricsExporterSidecar.statsSecretName" $a.pgbouncer.metricsExporterSidecar.statsSecretName -}}
{{- if not $name -}}
{{- $problems = append $problems (printf "airflow.pgbouncer.%s: must name a Secret of yours; the official chart would make up a host and the password postgres, as the database's URL is in Secret %s (docs/production.md says what goes in)" $key $a.data.metadataSecretName) -}}
{{- end -}}
{{- end -}}
{{- if $v.secrets.metadata.create -}}
{{- $problems = append $problems (printf "airflow.pgbouncer.enabled: nobody would use it, as the URL that this chart writes leads to Postgres; make Secret %s yourself, with the key connection (postgresql://user:password@%s-pgbouncer:6543/airflow), and set secrets.metadata.create to false" $a.data.metadataSecretName .Release.Name) -}}
{{- end -}}
{{- end -}}
{{- range $key := list "fernetKey" "webserverSecretKey" -}}
{{- if index $a $key -}}
{{- $problems = append $problems (printf "airflow.%s: a key in the values can be read by whoever reads the release; use airflow.%sSecretName" $key $key) -}}
{{- end -}}
{{- end -}}

{{- /* Jobs and users of the official chart */ -}}
{{- if $a.migrateDatabaseJob.enabled -}}
{{- $problems = append $problems "airflow.migrateDatabaseJob.enabled: this chart's setup Job migrates the database, without blocking helm --wait or the next upgrade" -}}
{{- end -}}
{{- if $a.webserver.defaultUser.enabled -}}
{{- $problems = append $problems (printf "airflow.webserver.defaultUser.enabled: makes the user %s with a password from the values; use admin, which takes it from a Secret" $a.webserver.defaultUser.username) -}}
{{- end -}}

{{- if and $v.admin.enabled (not $v.admin.email) -}}
{{- $problems = append $problems "admin.email: give the address of the first user, or set admin.enabled to false where logins come from elsewhere" -}}
{{- end -}}

{{- /* Logs */ -}}
{{- if and $v.logs.create (not $a.logs.persistence.enabled) -}}
{{- $problems = append $problems "logs.create: airflow.logs.persistence.enabled is false, nothing would mount the claim; set logs.create to false too" -}}
{{- end -}}
{{- if and $a.logs.persistence.enabled (not $a.logs.persistence.existingClaim) -}}
{{- $problems = append $problems "airflow.logs.persistence.existingClaim: must name the claim (this chart makes it when logs.create is true)" -}}
{{- end -}}

{{- range $key := list "annotations" "size" "storageClassName" -}}
{{- if index $a.logs.persistence $key -}}
{{- $problems = append $problems (printf "airflow.logs.persistence.%s: has no effect, as this chart makes the claim; %s" $key (eq $key "annotations" | ternary "make it yourself, with logs.create false" (printf "set logs.%s" $key))) -}}
{{- end -}}
{{- end -}}

{{- /* Storage */ -}}
{{- if and $v.storage.local.path (not $v.storage.local.nodeName) -}}
{{- $problems = append $problems "storage.local.nodeName: storage.local.path is a directory of a node, which one?" -}}
{{- end -}}
{{- if and $v.storage.local.nodeName (not $v.storage.local.path) -}}
{{- $problems = append $problems "storage.local.path: storage.local.nodeName is set, the directory is not" -}}
{{- end -}}
{{- if and $v.storage.local.path (eq $v.storage.storageClassName "-") -}}
{{- $problems = append $problems "storage.storageClassName: a local volume needs a class name (any that no provisioner serves)" -}}
{{- end -}}

{{- /* Pipelines */ -}}
{{- range $section, $layers := dict "presets" $v.pipelines.presets "tasks" $v.pipelines.tasks "" (dict "defaults" $v.pipelines.defaults) -}}
{{- range $name, $layer := $layers -}}
{{- if hasKey $layer "failedPodTtlSeconds" -}}
{{- $problems = append $problems (printf "pipelines.%s.failedPodTtlSeconds: the janitor deletes failed pods, after the same time for all; set janitor.pods.keepSeconds" (list $section $name | compact | join ".")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq $v.pipelines.launch "triggerer" -}}
{{- if semverCompare "<3.3.0-0" (toString $a.airflowVersion) -}}
{{- $problems = append $problems (printf "pipelines.launch: triggerer needs Airflow 3.3 and airflow.airflowVersion is %s; set worker, or take values/airflow3.yaml" $a.airflowVersion) -}}
{{- else if eq $a.defaultAirflowRepository "apache/airflow" -}}
{{- $problems = append $problems "pipelines.launch: triggerer needs the image of images/airflow3, or one with its package one_pod, and airflow.defaultAirflowRepository is apache/airflow; name that image, or set worker" -}}
{{- else if not $a.triggerer.enabled -}}
{{- $problems = append $problems "pipelines.launch: triggerer, but airflow.triggerer.enabled is false and no task would start; set one of them otherwise" -}}
{{- end -}}
{{- end -}}
{{- if $v.pipelines.workerIdleSeconds -}}
{{- if include "ml-pipelines.airflow3" . -}}
{{- $problems = append $problems (printf "pipelines.workerIdleSeconds is for Airflow 2.9 and airflow.airflowVersion is %s; set 0 (there pipelines.launch: triggerer needs no workers)" $a.airflowVersion) -}}
{{- else if eq $a.defaultAirflowRepository "apache/airflow" -}}
{{- $problems = append $problems "pipelines.workerIdleSeconds needs the image of images/airflow, or one with its package next_task, and airflow.defaultAirflowRepository is apache/airflow; name that image, or set 0" -}}
{{- end -}}
{{- end -}}
{{- if has .Release.Namespace $v.pipelines.namespaces -}}
{{- $problems = append $problems (printf "pipelines.namespaces: tasks may always run in %s, the release's own; name other ones only" .Release.Namespace) -}}
{{- end -}}
{{- if $a.multiNamespaceMode -}}
{{- $problems = append $problems "airflow.multiNamespaceMode: gives rights over the pods of the whole cluster; name the namespaces in pipelines.namespaces" -}}
{{- end -}}

{{- if $a.rbac.create -}}
{{- $problems = append $problems "airflow.rbac.create: the chart's own roles say what each account may do; the official ones would give scheduler and workers more" -}}
{{- end -}}

{{- /* Network */ -}}
{{- if ne $v.networkPolicies.enabled $a.networkPolicies.enabled -}}
{{- $problems = append $problems "networkPolicies.enabled and airflow.networkPolicies.enabled: the latter has the policies of the official chart's parts; set both alike" -}}
{{- end -}}
{{- if and $v.networkPolicies.enabled $a.ingress.web.enabled (not $v.networkPolicies.ingress) -}}
{{- $problems = append $problems "networkPolicies.ingress: airflow.ingress.web.enabled is true, but nobody may reach the page; name the pods of the Ingress controller" -}}
{{- end -}}

{{- /* Metrics */ -}}
{{- range $key := list "serviceMonitor" "rules" "dashboard" -}}
{{- if and (index $v.metrics $key).enabled (not $a.statsd.enabled) -}}
{{- $problems = append $problems (printf "metrics.%s.enabled: airflow.statsd.enabled is false, and there would be no figures" $key) -}}
{{- end -}}
{{- end -}}
{{- if and $v.metrics.serviceMonitor.enabled $v.networkPolicies.enabled (not $v.networkPolicies.scrapers) -}}
{{- $problems = append $problems "networkPolicies.scrapers: metrics.serviceMonitor.enabled is true, but Prometheus may not reach the exporter; name its pods" -}}
{{- end -}}

{{- /* Model registry */ -}}
{{- if and $v.wandb.enabled (not $v.wandb.existingSecret) (not $v.wandb.apiKey) -}}
{{- $problems = append $problems (printf "wandb.enabled: name a Secret with the key %s in wandb.existingSecret (or, on your own machine only, give wandb.apiKey)" $v.wandb.secretKey) -}}
{{- end -}}
{{- if and $v.wandb.existingSecret $v.wandb.apiKey -}}
{{- $problems = append $problems "wandb.apiKey and wandb.existingSecret: one of them" -}}
{{- end -}}
{{- if and $v.wandb.apiKey (not $v.wandb.enabled) -}}
{{- $problems = append $problems "wandb.apiKey: wandb.enabled is false, nothing would use it" -}}
{{- end -}}
{{- if and $v.mlflow.enabled $v.mlflow.trackingUri -}}
{{- $problems = append $problems "mlflow.trackingUri: names a server elsewhere; set mlflow.enabled to false" -}}
{{- end -}}
{{- if not (or $v.wandb.enabled $v.mlflow.enabled $v.mlflow.trackingUri) -}}
{{- $problems = append $problems "no model registry: enable mlflow, give mlflow.trackingUri, or enable wandb" -}}
{{- end -}}

{{- /* Janitor */ -}}
{{- $janitor := $v.janitor -}}
{{- if and $janitor.enabled $v.wandb.enabled (gt (int $janitor.models.keepVersions) 0) -}}
{{- $problems = append $problems "janitor.models.keepVersions: Weights & Biases keeps the models and removes them by its own rules; set 0 here and a TTL policy there" -}}
{{- end -}}
{{- $longest := 0 -}}
{{- $slowest := "" -}}
{{- range $name, $own := $v.pipelines.tasks -}}
{{- $task := dict -}}
{{- range $key := list "retries" "retryDelaySeconds" "startupTimeoutSeconds" "executionTimeoutSeconds" -}}
{{- $_ := set $task $key (int (ternary (index $own $key) (index $v.pipelines.defaults $key) (hasKey $own $key))) -}}
{{- end -}}
{{- $seconds := mul (add1 $task.retries) (add $task.retryDelaySeconds $task.startupTimeoutSeconds $task.executionTimeoutSeconds) -}}
{{- if gt $seconds $longest -}}
{{- $longest = $seconds -}}
{{- $slowest = $name -}}
{{- end -}}
{{- end -}}
{{- if and $janitor.enabled (lt (mul 3600 (int $janitor.leftovers.maxAgeHours)) $longest) -}}
{{- $problems = append $problems (printf "janitor.leftovers.maxAgeHours: %v hours are less than %s may take with all its tries; a run at work would lose its files, set %d or more" $janitor.leftovers.maxAgeHours $slowest (div (add $longest 3599) 3600)) -}}
{{- end -}}

{{- /* Secrets in plain sight */ -}}
{{- $ways := dict
      "airflow.dags.gitSync.repo" "put it into a Secret and name that in airflow.dags.gitSync.credentialsSecret"
      "mlflow.trackingUri" "let MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in pipelines.presets.registry.env come from a Secret" -}}
{{- range include "ml-pipelines.problems.urls" (list "" $v) | splitList "\n" | compact -}}
{{- $problems = append $problems (printf "%s: whoever reads the release can read the login in this URL; %s" . (get $ways . | default "take it out, and put it into a Secret")) -}}
{{- end -}}

{{- if eq $v.profile "shared" -}}
{{- $problems = concat $problems (include "ml-pipelines.problems.shared" . | splitList "\n" | compact) -}}
{{- end -}}

{{- join "\n" $problems -}}
{{- end }}

{{/* Every top-level key of the official chart 1.13.1, and Helm's `global`. */}}
{{- define "ml-pipelines.airflowKeys" -}}
affinity airflowConfigAnnotations airflowHome airflowLocalSettings airflowPodAnnotations airflowVersion allowPodLaunching cleanup config containerLifecycleHooks createUserJob dagProcessor dags data defaultAirflowDigest defaultAirflowRepository defaultAirflowTag elasticsearch enableBuiltInSecretEnvVars env executor extraConfigMaps extraEnv extraEnvFrom extraSecrets fernetKey fernetKeySecretName flower fullnameOverride gid global images ingress kerberos labels limits logs migrateDatabaseJob multiNamespaceMode nameOverride networkPolicies nodeSelector pgbouncer podTemplate ports postgresql priorityClasses quotas rbac redis registry revisionHistoryLimit scheduler schedulerName secret securityContext securityContexts statsd tolerations topologySpreadConstraints triggerer uid useStandardNaming volumeMounts volumes webserver webserverSecretKey webserverSecretKeySecretName workers
{{- end }}
