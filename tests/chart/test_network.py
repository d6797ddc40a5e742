"""Who may reach whom: every pod of the render, those of the official chart included, and strangers.

The rules are judged by tests/helpers/policies.py; tests/cluster tries the same kinds of rule for
real.
"""

import pytest
import yaml

from tests.helpers.helm import (
    AIRFLOW_3,
    OPTIONAL_PARTS,
    OWN_DATABASE_SECRET,
    HelmError,
    page,
    render,
    rendered,
)
from tests.helpers.manifests import Manifests
from tests.helpers.policies import Peer, Policies

HERE, TEAM, FRONT, SCRAPER = "ml-pipelines", "team", "ingress-nginx", "monitoring"
ON = {
    "networkPolicies": {
        "enabled": True,
        "ingress": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": FRONT}}}],
        "scrapers": [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": SCRAPER}}}
        ],
    },
    "pipelines": {"namespaces": [TEAM]},
    "janitor": {"database": {"keepDays": 30}},
    # All that the official chart can have, as it has policies for some of it.
    "airflow": {"networkPolicies": {"enabled": True}} | OPTIONAL_PARTS,
} | OWN_DATABASE_SECRET
POSTGRES, MLFLOW, WEB, TRIGGERER, STATSD, PGBOUNCER = 5432, 5000, 8080, 8794, 9125, 6543
SCRAPED = 9102

OUTSIDE = {
    "stranger in the namespace": Peer(HERE, {"app": "stranger"}),
    # Labels alone do not make it one of ours.
    "stranger that poses as Airflow": Peer(
        "elsewhere", {"tier": "airflow", "component": "scheduler", "release": HERE}
    ),
    "stranger that poses as a task": Peer("elsewhere", {"kubernetes_pod_operator": "True"}),
    "pod of another release": Peer(
        HERE,
        {
            "app.kubernetes.io/name": "ml-pipelines",
            "app.kubernetes.io/instance": "other",
            "app.kubernetes.io/component": "janitor",
        },
    ),
    "ingress": Peer(FRONT, {"app": "ingress-nginx"}),
    "prometheus": Peer(SCRAPER, {"app.kubernetes.io/name": "prometheus"}),
    "internet": Peer(address="203.0.113.7"),
    "cloud": Peer(address="169.254.169.254"),
    "neighbour": Peer(address="10.1.2.3"),
}


@pytest.fixture(scope="module")
def manifests() -> Manifests:
    return render(ON)


@pytest.fixture(scope="module")
def peers(manifests: Manifests) -> dict[str, Peer]:
    """Every pod that the render holds, by its component, tasks, and what is outside."""
    found = dict(OUTSIDE)
    for _, pod in manifests.pods():
        labels = pod["metadata"]["labels"]
        name = labels.get("app.kubernetes.io/component") or labels["component"]
        found[name] = Peer(HERE, labels)
        if name in ("janitor", "storage"):
            found[f"{name} in {TEAM}"] = Peer(TEAM, labels)
    # As the operator makes them: its own label, whatever else the DAG says.
    found["task"] = Peer(HERE, {"kubernetes_pod_operator": "True", "dag_id": "a_dag"})
    found[f"task in {TEAM}"] = Peer(TEAM, found["task"].labels)
    return found


AIRFLOW = {"dag-processor", "pgbouncer", "scheduler", "triggerer", "webserver", "worker"}
EVERY_AIRFLOW = AIRFLOW | {"airflow-cleanup-pods", "statsd"}
TASKS = {"task", f"task in {TEAM}"}

# target -> its port -> who may reach it. Whatever is not named here may not.
ALLOWED = {
    ("postgres", POSTGRES): AIRFLOW | {"database-janitor", "setup"},
    # The janitor of the registry is the one in the namespace of the release.
    ("mlflow", MLFLOW): TASKS | {"ingress", "janitor", "test"},
    ("webserver", WEB): {"ingress", "test"},
    ("triggerer", TRIGGERER): {"webserver"},
    # Both Jobs carry their labels, to reach the database through PgBouncer.
    ("pgbouncer", PGBOUNCER): EVERY_AIRFLOW | {"database-janitor", "setup"},
    ("statsd", STATSD): EVERY_AIRFLOW | {"database-janitor", "setup"},
}


def test_all_parts_are_there(peers):
    assert peers.keys() - OUTSIDE.keys() == EVERY_AIRFLOW | TASKS | {
        *("database-janitor", "janitor", f"janitor in {TEAM}", "logs", "mlflow", "pod-janitor"),
        *("postgres", "setup", "storage", f"storage in {TEAM}", "test"),
    }


@pytest.mark.parametrize(("target", "port"), ALLOWED)
def test_a_server_is_reached_by_those_that_need_it_and_nobody_else(manifests, peers, target, port):
    policies = Policies(manifests)
    protocol = "UDP" if target == "statsd" else "TCP"
    allowed = {
        name
        for name, peer in peers.items()
        if name != target and policies.let(peer, peers[target], port, protocol)
    }
    assert allowed == ALLOWED[target, port] - {target}


def test_figures_are_scraped_by_those_that_the_values_name(manifests, peers):
    policies = Policies(manifests)
    reaching = {name for name in OUTSIDE if policies.let(peers[name], peers["statsd"], SCRAPED)}
    assert reaching == {"prometheus"}
    assert not policies.let(peers["prometheus"], peers["statsd"], STATSD, "UDP")
    off = render(ON, {"networkPolicies": {"scrapers": []}})
    assert not Policies(off).let(peers["prometheus"], peers["statsd"], SCRAPED)


def test_no_pod_of_ours_can_be_reached_on_any_other_port(manifests, peers):
    policies = Policies(manifests)
    scraped = {("pgbouncer", 9127), ("statsd", SCRAPED)}
    open_ones = {
        (name, source, port)
        for name, peer in peers.items()
        if name not in OUTSIDE
        for source, other in peers.items()
        for port in (22, WEB, MLFLOW, POSTGRES, 8793, TRIGGERER, SCRAPED, 9127)
        if name != source
        and (name, port) not in ALLOWED.keys() | scraped
        and policies.let(other, peer, port)
    }
    assert open_ones == set()


@pytest.mark.parametrize("task", sorted(TASKS))
def test_tasks_reach_names_the_registry_and_https_outside(manifests, peers, task):
    policies = Policies(manifests)
    reached = {
        (name, port)
        for name, peer in peers.items()
        for port in (22, 443, 6443, WEB, MLFLOW, POSTGRES)
        if policies.let(peers[task], peer, port)
    }
    assert reached == {("mlflow", MLFLOW), ("internet", 443)}
    name_server = Peer("kube-system", {"k8s-app": "kube-dns"})
    for protocol in ("TCP", "UDP"):
        assert policies.let(peers[task], name_server, 53, protocol)
        # On an address of the node.
        assert policies.let(peers[task], peers["cloud"], 53, protocol)
    assert not policies.let(peers[task], name_server, 443)


@pytest.mark.parametrize("name", ["logs", "mlflow", "postgres", "storage", f"storage in {TEAM}"])
def test_what_asks_nobody_may_ask_nobody(manifests, peers, name):
    policies = Policies(manifests)
    reached = {
        (other, port)
        for other, peer in peers.items()
        for port in (53, 443, WEB, MLFLOW, POSTGRES)
        if other != name and policies.let(peers[name], peer, port)
    }
    assert reached == set()


@pytest.mark.parametrize(
    "name", ["scheduler", "worker", "webserver", "triggerer", "setup", "pod-janitor"]
)
def test_what_needs_the_api_server_or_a_database_elsewhere_may_go_out(manifests, peers, name):
    policies = Policies(manifests)
    assert policies.let(peers[name], peers["internet"], 443)
    assert policies.let(peers[name], peers["neighbour"], POSTGRES)


def test_where_tasks_may_go_is_a_value(peers):
    database = {"to": [{"ipBlock": {"cidr": "10.1.2.0/24"}}], "ports": [{"port": 3306}]}
    policies = Policies(render(ON, {"networkPolicies": {"egress": [database]}}))
    for task in TASKS:
        assert policies.let(peers[task], peers["neighbour"], 3306)
        assert not policies.let(peers[task], peers["internet"], 443)
        assert policies.let(peers[task], peers["mlflow"], MLFLOW)


def test_they_are_off_unless_asked_for():
    assert rendered("local").of("NetworkPolicy") == []
    assert render().of("NetworkPolicy") == []


def test_production_has_them_and_they_close_the_page_to_strangers(peers):
    policies = Policies(rendered("production"))
    stranger = peers["stranger in the namespace"]
    assert not policies.let(stranger, peers["webserver"], WEB)
    assert policies.let(peers["test"], peers["webserver"], WEB)


def test_on_airflow_3_workers_and_what_reads_dags_reach_the_api_server(peers):
    policies = Policies(rendered(f"production {AIRFLOW_3}"))
    reaching = {name for name in peers if policies.let(peers[name], peers["webserver"], WEB)}
    assert reaching == {"dag-processor", "scheduler", "test", "triggerer", "worker"}


def test_one_switch_without_the_other_is_refused():
    with pytest.raises(HelmError, match=r"networkPolicies\.enabled and airflow\.networkPolicies"):
        render({"networkPolicies": {"enabled": True}})


def test_an_ingress_that_nobody_lets_in_is_refused():
    web = {"ingress": {"web": {"enabled": True}}, "networkPolicies": {"enabled": True}}
    with pytest.raises(
        HelmError, match=r"networkPolicies\.ingress: airflow\.ingress\.web\.enabled"
    ):
        render({"networkPolicies": {"enabled": True}, "airflow": web})


def test_a_monitor_that_reaches_nothing_is_refused():
    figures = {"metrics": {"serviceMonitor": {"enabled": True}}}
    with pytest.raises(HelmError, match=r"networkPolicies\.scrapers: metrics\.serviceMonitor"):
        render(ON, figures, {"networkPolicies": {"scrapers": []}})


def test_the_page_shows_how_to_let_an_ingress_in(peers):
    (shown,) = [text for text in page("yaml") if "networkPolicies" in text]
    policies = Policies(render(ON, yaml.safe_load(shown)))
    assert policies.let(peers["ingress"], peers["webserver"], WEB)
    assert not policies.let(peers["stranger in the namespace"], peers["webserver"], WEB)
