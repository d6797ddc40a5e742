"""Values that contradict each other are refused in words that say what to do."""

import pytest

from tests.helpers.helm import OPTIONAL_PARTS, OWN_DATABASE_SECRET, HelmError, render

REFUSED = {
    "another executor": ({"airflow": {"executor": "LocalExecutor"}}, "airflow.executor"),
    "a key of a newer official chart": ({"airflow": {"apiServer": {}}}, "airflow.apiServer"),
    "a typing error below airflow": ({"airflow": {"schedulr": {}}}, "airflow.schedulr"),
    "image of another version": (
        {"airflow": {"defaultAirflowTag": "2.10.5"}},
        "airflow.airflowVersion is 2.9.3 but the image's tag is 2.10.5",
    ),
    "version without its image": (
        {"airflow": {"airflowVersion": "2.10.5"}},
        "airflow.airflowVersion is 2.10.5",
    ),
    "workers with another image": (
        {"airflow": {"images": {"airflow": {"repository": "mine/airflow"}}}},
        "workers apache/airflow:2.9.3",
    ),
    "a digest that workers would not get": (
        {"airflow": {"defaultAirflowDigest": "sha256:abc"}},
        "a digest goes behind the tag",
    ),
    "a template of one's own for workers": (
        {"airflow": {"podTemplate": "kind: Pod"}},
        "airflow.podTemplate: takes the place",
    ),
    "no repository": ({"airflow": {"dags": {"gitSync": {"repo": ""}}}}, "gitSync.repo: give"),
    "branch beside ref": (
        {"airflow": {"dags": {"gitSync": {"branch": "other"}}}},
        "gitSync.branch: git-sync 4 lets it win",
    ),
    "rev beside ref": (
        {"airflow": {"dags": {"gitSync": {"rev": "HEAD"}}}},
        "gitSync.rev: git-sync 4 lets it win",
    ),
    "a claim of DAGs that nobody fills": (
        {
            "airflow": {
                "dags": {"persistence": {"enabled": True}},
                "dagProcessor": {"enabled": True},
            }
        },
        "git-sync runs nowhere",
    ),
    "a claim of DAGs that two fill": (
        {"airflow": {"dags": {"persistence": {"enabled": True}}, "scheduler": {"replicas": 2}}},
        "the git-syncs of 2 schedulers",
    ),
    "scheduler without settings": (
        {"airflow": {"scheduler": {"extraVolumeMounts": []}}},
        "airflow.scheduler.extraVolumes",
    ),
    "workers without settings": (
        {"airflow": {"workers": {"extraVolumeMounts": []}}},
        "airflow.workers.extraVolumes",
    ),
    "the official chart's Postgres": (
        {"airflow": {"postgresql": {"enabled": True}}},
        "airflow.postgresql.enabled",
    ),
    "two databases": (
        {"airflow": {"data": {"metadataConnection": {"host": "db", "pass": "x"}}}},
        "set postgres.enabled and secrets.metadata.create to false",
    ),
    "local database, foreign Secret": (
        {"secrets": {"metadata": {"create": False}}},
        "an external database wants postgres.enabled false",
    ),
    "external database without a Secret": (
        {"postgres": {"enabled": False}},
        "make Secret ml-pipelines-metadata with the key connection",
    ),
    "password of a database that is off": (
        {
            "postgres": {"enabled": False, "existingSecret": "x"},
            "secrets": {"metadata": {"create": False}},
        },
        "postgres.existingSecret: postgres.enabled is false",
    ),
    "password given and generated": (
        {"postgres": {"existingSecret": "x"}},
        "postgres.existingSecret: the Secret in airflow.data.metadataSecretName",
    ),
    "no Fernet key": ({"airflow": {"fernetKeySecretName": ""}}, "airflow.fernetKeySecretName"),
    "Fernet key in the values": ({"airflow": {"fernetKey": "x"}}, "airflow.fernetKey: a key in"),
    "no session key": (
        {"airflow": {"webserverSecretKeySecretName": ""}},
        "airflow.webserverSecretKeySecretName",
    ),
    "session key in the values": (
        {"airflow": {"webserverSecretKey": "x"}},
        "airflow.webserverSecretKey: a key in",
    ),
    "no name for the database's Secret": (
        {
            "airflow": {"data": {"metadataSecretName": ""}},
            "postgres": {"enabled": False},
            "secrets": {"metadata": {"create": False}},
        },
        "airflow.data.metadataSecretName: must name",
    ),
    "the official migration": (
        {"airflow": {"migrateDatabaseJob": {"enabled": True}}},
        "airflow.migrateDatabaseJob.enabled",
    ),
    "admin/admin": (
        {"airflow": {"webserver": {"defaultUser": {"enabled": True, "password": "admin"}}}},
        "makes the user admin with a password from the values",
    ),
    "a claim that nothing mounts": (
        {"airflow": {"logs": {"persistence": {"enabled": False}}}},
        "logs.create: airflow.logs.persistence.enabled is false",
    ),
    "logs without a claim": (
        {"airflow": {"logs": {"persistence": {"existingClaim": ""}}}, "logs": {"create": False}},
        "airflow.logs.persistence.existingClaim: must name",
    ),
    "size of a claim that is another's": (
        {"airflow": {"logs": {"persistence": {"size": "50Gi"}}}},
        "logs.persistence.size: has no effect, as this chart makes the claim; set logs.size",
    ),
    "class of a claim that is another's": (
        {"airflow": {"logs": {"persistence": {"storageClassName": "efs"}}}},
        "set logs.storageClassName",
    ),
    "annotations of a claim that is another's": (
        {"airflow": {"logs": {"persistence": {"annotations": {"a": "b"}}}}},
        "make it yourself, with logs.create false",
    ),
    "PgBouncer before a database that it made up": (
        {
            **OWN_DATABASE_SECRET,
            "airflow": {
                "pgbouncer": {
                    "enabled": True,
                    "metricsExporterSidecar": {"statsSecretName": "stats"},
                }
            },
        },
        "airflow.pgbouncer.configSecretName: must name a Secret of yours",
    ),
    "PgBouncer's figures with a password that it made up": (
        {
            **OWN_DATABASE_SECRET,
            "airflow": {"pgbouncer": {"enabled": True, "configSecretName": "config"}},
        },
        "airflow.pgbouncer.metricsExporterSidecar.statsSecretName: must name",
    ),
    "PgBouncer that nobody goes through": (
        {"airflow": {"pgbouncer": OPTIONAL_PARTS["pgbouncer"]}},
        "airflow.pgbouncer.enabled: nobody would use it",
    ),
    "logs in a bucket, without the provider": (
        {
            "airflow": {
                "defaultAirflowRepository": "registry.test/ml-pipelines/airflow",
                "config": {"logging": {"remote_logging": "True"}},
            }
        },
        "airflow.config.logging.remote_logging: the image registry.test/ml-pipelines/airflow has",
    ),
    "no image of the tasks": (
        {"images": {"classicExample": {"repository": ""}}},
        "images.classicExample.repository: name the image that tasks run",
    ),
    "no address of the first user": ({"admin": {"email": ""}}, "admin.email: give the address"),
    "directory of no node": ({"storage": {"local": {"path": "/x"}}}, "storage.local.nodeName"),
    "node without directory": ({"storage": {"local": {"nodeName": "n"}}}, "storage.local.path"),
    "local volume without class": (
        {"storage": {"storageClassName": "-", "local": {"path": "/x", "nodeName": "n"}}},
        "storage.storageClassName: a local volume needs",
    ),
    "W&B without a key": ({"wandb": {"enabled": True}}, "name a Secret with the key api-key"),
    "two W&B keys": (
        {"wandb": {"enabled": True, "apiKey": "x", "existingSecret": "y"}},
        "wandb.apiKey and wandb.existingSecret: one of them",
    ),
    "W&B key for nothing": ({"wandb": {"apiKey": "x"}}, "wandb.apiKey: wandb.enabled is false"),
    "two MLflow servers": (
        {"mlflow": {"trackingUri": "http://elsewhere"}},
        "mlflow.trackingUri: names a server elsewhere",
    ),
    "leftovers of a run at work": (
        {"janitor": {"leftovers": {"maxAgeHours": 1}}},
        "janitor.leftovers.maxAgeHours: 1 hours are less than",
    ),
    "models that W&B keeps": (
        {
            "wandb": {"enabled": True, "existingSecret": "x"},
            "janitor": {"models": {"keepVersions": 3}},
        },
        "janitor.models.keepVersions: Weights & Biases keeps the models",
    ),
    "the old life of failed pods": (
        {"pipelines": {"defaults": {"failedPodTtlSeconds": 60}}},
        "pipelines.defaults.failedPodTtlSeconds: the janitor deletes failed pods",
    ),
    "the old life of a task's failed pods": (
        {"pipelines": {"tasks": {"load_data": {"failedPodTtlSeconds": 60}}}},
        "pipelines.tasks.load_data.failedPodTtlSeconds: the janitor deletes failed pods",
    ),
    "the release's namespace among the others": (
        {"pipelines": {"namespaces": ["team-a", "ml-pipelines"]}},
        "pipelines.namespaces: tasks may always run in ml-pipelines",
    ),
    "pods of the whole cluster": (
        {"airflow": {"multiNamespaceMode": True}},
        "name the namespaces in pipelines.namespaces",
    ),
    "triggerer without settings": (
        {"airflow": {"triggerer": {"extraVolumeMounts": []}}},
        "airflow.triggerer.extraVolumes",
    ),
    "DAG processor without settings": (
        {"airflow": {"dagProcessor": {"extraVolumeMounts": []}}},
        "airflow.dagProcessor.extraVolumes",
    ),
    "a triggerer of Airflow 2 that runs tasks": (
        {"pipelines": {"launch": "triggerer"}},
        "pipelines.launch: triggerer needs Airflow 3.3 and airflow.airflowVersion is 2.9.3; set",
    ),
    "workers that wait, in an image that cannot": (
        {
            "pipelines": {"workerIdleSeconds": 3},
            "airflow": {"defaultAirflowRepository": "apache/airflow"},
        },
        "pipelines.workerIdleSeconds needs the image of images/airflow",
    ),
    "no directory for files of a moment": (
        {"airflow": {"volumes": [{"name": "ca", "configMap": {"name": "ca"}}]}},
        "airflow.volumes: lists replace the defaults; repeat `tmp`",
    ),
    "no mount of it": ({"airflow": {"volumeMounts": []}}, "airflow.volumeMounts: lists replace"),
    "no registry": ({"mlflow": {"enabled": False}}, "no model registry"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    values, message = REFUSED[case]
    with pytest.raises(HelmError) as error:
        # The schemas are tested elsewhere and take a third of the time.
        render(values, options=("--skip-schema-validation",))
    assert message in str(error.value)
    assert str(error.value).count("\n- ") == 1, "one fault, one message"


def test_all_messages_come_at_once():
    faulty = {
        "airflow": {"executor": "LocalExecutor", "fernetKey": "x"},
        "wandb": {"enabled": True},
        "storage": {"local": {"path": "/x"}},
    }
    with pytest.raises(HelmError) as error:
        render(faulty)
    assert str(error.value).count("\n- ") == 4


@pytest.mark.parametrize(
    "tag", ["2.9.3", "2.9.3-python3.11", "2.9.3-4f2a9c", "v2.9.3", "nightly", "2.9.3@sha256:abc"]
)
def test_tags_that_fit_are_accepted(tag):
    assert render({"airflow": {"defaultAirflowTag": tag}}).of("Deployment")


@pytest.mark.parametrize("major", [3, 4])
def test_a_key_that_is_gone_is_named_with_what_took_its_place(major):
    """Not by the schema, which comes first and knows no reasons."""
    with pytest.raises(HelmError) as error:
        render({"pipelines": {"defaults": {"failedPodTtlSeconds": 60}}}, major=major)
    assert "set janitor.pods.keepSeconds" in str(error.value)
