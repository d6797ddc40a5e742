"""What the values add to the pods that the chart makes itself, and objects of one's own."""

import kubernetes_validate
import pytest
import yaml

from tests.helpers.helm import page, render

OWN = (
    "mlflow",
    "postgres",
    "janitor",
    "pod-janitor",
    "database-janitor",
    "setup",
    "storage",
    "logs",
    "test",
)
EVERY_PART = {
    "janitor": {"database": {"keepDays": 30}},
    "setup": {"dump": {"claimName": "dumps"}},
}


def own_pods(manifests):
    """Component -> pod, of those that are not the official chart's."""
    component = "app.kubernetes.io/component"
    found = {}
    for _, pod in manifests.pods():
        if name := (pod["metadata"].get("labels") or {}).get(component):
            found[name] = pod
    assert set(found) == set(OWN)
    return found


def containers(pod):
    return [c for kind in ("containers", "initContainers") for c in pod["spec"].get(kind, [])]


@pytest.fixture(scope="module")
def before():
    return own_pods(render(EVERY_PART, environment="local"))


@pytest.fixture(scope="module")
def documented():
    return render(EVERY_PART, yaml.safe_load(page("yaml")[2]), environment="local")


def test_their_account_is_the_charts_and_has_no_token(before):
    for name, pod in before.items():
        account = "ml-pipelines-pod-janitor" if name == "pod-janitor" else "ml-pipelines-pod"
        assert pod["spec"]["serviceAccountName"] == account
        assert pod["spec"]["automountServiceAccountToken"] is False


def test_an_account_of_ones_own():
    account = {"create": False, "name": "mine"}
    manifests = render(EVERY_PART, {"pods": {"serviceAccount": account}}, environment="local")
    assert ("ServiceAccount", "ml-pipelines-pod") not in manifests.names()
    assert own_pods(manifests)["setup"]["spec"]["serviceAccountName"] == "mine"


def test_what_the_page_adds_reaches_every_own_pod(before, documented):
    mount = {"name": "company-ca", "mountPath": "/etc/company", "readOnly": True}
    variable = {"name": "SSL_CERT_FILE", "value": "/etc/company/ca.crt"}
    for name, pod in own_pods(documented).items():
        assert pod["metadata"]["labels"]["team"] == "ml-platform"
        assert pod["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"
        assert pod["spec"]["priorityClassName"] == "platform"
        assert {"name": "company-ca", "configMap": {"name": "company-ca"}} in pod["spec"]["volumes"]
        assert [c["name"] for c in containers(pod)] == [c["name"] for c in containers(before[name])]
        for container in containers(pod):
            assert mount in container["volumeMounts"]
            assert variable in container["env"]
    for found in documented.objects:
        kubernetes_validate.validate(found, "1.34", strict=True)


def without(pod):
    """A pod without what the page adds to each."""
    pod = yaml.safe_load(yaml.safe_dump(pod))
    pod["metadata"].get("annotations", {}).pop("sidecar.istio.io/inject", None)
    pod["metadata"]["labels"].pop("team", None)
    pod["spec"].pop("priorityClassName", None)
    pod["spec"]["volumes"] = [v for v in pod["spec"]["volumes"] if v["name"] != "company-ca"]
    for container in containers(pod):
        container["volumeMounts"] = [
            m for m in container["volumeMounts"] if m["name"] != "company-ca"
        ]
        container["env"] = [v for v in container.get("env", []) if v["name"] != "SSL_CERT_FILE"]
    pod["metadata"]["annotations"] = pod["metadata"].get("annotations", {})
    return pod


def test_it_adds_and_takes_nothing_away(before, documented):
    for name, pod in own_pods(documented).items():
        assert without(pod) == without(before[name]), name


def test_a_label_that_a_selector_needs_stays():
    mine = {"app.kubernetes.io/component": "mine", "app.kubernetes.io/name": "mine", "a": "b"}
    manifests = render(EVERY_PART, {"pods": {"labels": mine}}, environment="local")
    for found in manifests.of("Deployment", "StatefulSet"):
        selector = found["spec"]["selector"]["matchLabels"].items()
        assert selector <= found["spec"]["template"]["metadata"]["labels"].items()
    assert own_pods(manifests)["mlflow"]["metadata"]["labels"]["a"] == "b"


def test_objects_of_ones_own_are_templates(documented):
    account = documented.one("ServiceAccount", "ml-tasks")
    assert account["metadata"]["namespace"] == "ml-pipelines"
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-mine\n"
    manifests = render({"extraObjects": [text, {"kind": "Secret", "metadata": {"name": "a"}}]})
    assert {("ConfigMap", "ml-pipelines-mine"), ("Secret", "a")} <= manifests.names()
