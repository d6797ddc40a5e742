"""As much of a Kubernetes API server as `helm template --dry-run=server` asks for.

It answers discovery and holds Secrets, so that the chart's `lookup` finds something without a
cluster. Everything else is a 404; nothing can be written.
"""

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytest_httpserver import HTTPServer

KINDS = {
    "v1": "ConfigMap PersistentVolume PersistentVolumeClaim Pod Secret Service ServiceAccount",
    "apps/v1": "Deployment StatefulSet",
    "batch/v1": "CronJob Job",
    "networking.k8s.io/v1": "NetworkPolicy",
    "policy/v1": "PodDisruptionBudget",
    "rbac.authorization.k8s.io/v1": "Role RoleBinding",
}


def _answers(secrets: dict[str, dict[str, str]], release: str, namespace: str) -> dict[str, Any]:
    groups = [
        {
            "name": version.split("/")[0],
            "versions": [{"groupVersion": version, "version": version.split("/")[1]}],
        }
        for version in KINDS
        if "/" in version
    ]
    answers: dict[str, Any] = {
        "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
    }
    for version, kinds in KINDS.items():
        path = f"/apis/{version}" if "/" in version else f"/api/{version}"
        answers[path] = {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": [
                {
                    "name": re.sub("ys$", "ies", f"{kind.lower()}s"),
                    "singularName": kind.lower(),
                    "namespaced": kind != "PersistentVolume",
                    "kind": kind,
                    "verbs": ["get"],
                }
                for kind in kinds.split()
            ],
        }
    # Without items: the chart asks whether there is a list at all.
    answers[f"/api/v1/namespaces/{namespace}/secrets"] = {"kind": "SecretList", "apiVersion": "v1"}
    for name, data in secrets.items():
        encoded = {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
        answers[f"/api/v1/namespaces/{namespace}/secrets/{name}"] = {
            "apiVersion": "v1",
            "kind": "Secret",
            # A Secret of an earlier install: Helm takes over objects that carry these.
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {"app.kubernetes.io/managed-by": "Helm"},
                "annotations": {
                    "meta.helm.sh/release-name": release,
                    "meta.helm.sh/release-namespace": namespace,
                },
            },
            "data": encoded,
        }
    return answers


@contextmanager
def api_server(
    secrets: dict[str, dict[str, str]],
    release: str = "ml-pipelines",
    namespace: str = "ml-pipelines",
) -> Iterator[str]:
    """Serve Secrets (name -> key -> text) of a release until the block ends; yields the URL."""
    missing = {"kind": "Status", "apiVersion": "v1", "reason": "NotFound", "code": 404}
    with HTTPServer("127.0.0.1") as server:
        for path, answer in _answers(secrets, release, namespace).items():
            server.expect_request(path).respond_with_json(answer)
        server.expect_request(re.compile("")).respond_with_json(missing, 404)
        yield server.url_for("")
