"""Parameters per run: what they may be, when wrong ones are refused, and how tasks get them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import airflow
import jinja2
import pytest
from airflow.exceptions import ParamValidationError

from tests.helpers.pipelines import COMMANDS, stored

try:
    from airflow.sdk.definitions.param import process_params
    from airflow.serialization.serialized_objects import DagSerialization as Serialization
    from airflow.utils.types import DagRunTriggeredByType
except ImportError:
    from airflow.models.param import process_params
    from airflow.serialization.serialized_objects import SerializedDAG as Serialization

AIRFLOW_2 = airflow.__version__.startswith("2.")
# Of Airflow's own dependencies, when a run is made.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

VARIABLE = "ML_PIPELINES_PARAMS"
NAMES = {
    "training_dag": ["max_steps", "learning_rate", "base_model", "data_source", "model_name"],
    "inference_dag": ["model_name", "model_version", "sample_size", "data_source"],
}
UNSET = {dag_id: dict.fromkeys(names) for dag_id, names in NAMES.items()}
EVERY_PARAM = [(dag_id, name) for dag_id, names in NAMES.items() for name in names]


@pytest.fixture
def context(context_of: Callable[..., dict]) -> Callable[[Any, dict], dict]:
    """The context of a task in a run that was started with `conf`."""

    def make(task: Any, conf: dict[str, Any]) -> dict[str, Any]:
        run = SimpleNamespace(conf=conf) if AIRFLOW_2 else conf
        params = process_params(task.dag, task, run, suppress_exception=False)
        of_run = context_of(task, "run", {"train_model": {}})
        return {**of_run, "params": params, "ds": "2026-01-01"}

    return make


@pytest.fixture
def container(context: Callable[[Any, dict], dict]) -> Callable[..., tuple[list, dict]]:
    """Command and variables of a task's container in a run that was started with `conf`."""

    def make(task: Any, conf: dict[str, Any] | None = None) -> tuple[list[str], dict[str, str]]:
        of_run = context(task, conf or {})
        task.render_template_fields(of_run)
        # The hook would look for a kubeconfig.
        vars(task)["hook"] = SimpleNamespace(is_in_cluster=True, get_namespace=lambda: "default")
        base = task.build_pod_request_obj(of_run).spec.containers[0]
        return base.command, {one.name: one.value for one in base.env}

    return make


def trigger(dag: Any, conf: dict[str, Any]) -> Any:
    """Start a run of the DAG as the scheduler and the page have it."""
    when = datetime(2026, 1, 1, tzinfo=UTC)
    dates = {"execution_date": when}
    if not AIRFLOW_2:
        triggered_by = DagRunTriggeredByType.TEST
        dates = {"logical_date": when, "run_after": when, "triggered_by": triggered_by}
    return Serialization.from_dict(json.loads(stored(dag))).create_dagrun(
        run_id="manual__1",
        run_type="manual",
        state="queued",
        data_interval=(when, when),
        conf=conf,
        **dates,
    )


@pytest.mark.parametrize("dag_id", list(UNSET))
def test_defaults_say_that_nothing_is_set_and_start_a_scheduled_run(load_dag, dag_id: str) -> None:
    dag = load_dag(dag_id)
    assert dag.params.validate() == UNSET[dag_id]
    # What Airflow asks of a DAG with a schedule, where nobody fills in a form.
    dag.validate()


@pytest.mark.parametrize(("dag_id", "name"), EVERY_PARAM)
def test_form_has_title_description_type_and_limits(load_dag, dag_id: str, name: str) -> None:
    param = load_dag(dag_id).params.get_param(name)
    schema = param.schema
    assert schema["title"]
    assert param.description.endswith(".")
    assert {"minimum", "maximum"} <= schema.keys() or "pattern" in schema
    assert schema["type"][0] == "null"
    # The description says what an empty field means, and the limits.
    assert "Empty: " in param.description
    if "integer" in schema["type"]:
        assert f"{schema['minimum']} to {schema['maximum']}" in param.description
    if "maxLength" in schema:
        assert f"at most {schema['maxLength']} " in param.description


if AIRFLOW_2:

    @pytest.mark.parametrize(("dag_id", "name"), EVERY_PARAM)
    def test_form_of_airflow_2_shows_every_parameter(load_dag, dag_id: str, name: str) -> None:
        """By the page's own template; that of Airflow 3 is JavaScript."""
        page = Path(airflow.__file__).parent / "www" / "templates" / "airflow" / "trigger.html"
        macro = page.read_text().partition("{% macro form_element")[2].partition("{% endmacro %}")
        form = "".join(["{% macro form_element", *macro[:2], "{{ form_element(key, details) }}"])
        details = load_dag(dag_id).params.get_param(name).dump()
        shown = jinja2.Template(form).render(key=name, details=details)

        schema = details["schema"]
        assert f'name="element_{name}"' in shown
        assert schema["title"] in shown
        assert details["description"] in shown
        # An empty field is sent as null. A choice would be sent as the text "None".
        assert 'value=""' in shown
        assert "<select" not in shown
        assert "required" not in shown
        if "integer" in schema["type"]:
            assert f'min="{schema["minimum"]}" max="{schema["maximum"]}"' in shown
        for proposal in schema.get("examples", ()):
            assert f"<option>{proposal}</option>" in shown


@pytest.mark.parametrize(
    ("dag_id", "conf"),
    [
        ("training_dag", {"max_steps": 0}),
        ("training_dag", {"max_steps": 100_001}),
        ("training_dag", {"max_steps": 1.5}),
        ("training_dag", {"max_steps": "50"}),
        ("training_dag", {"max_steps": True}),
        ("training_dag", {"learning_rate": 0}),
        ("training_dag", {"learning_rate": 1.1}),
        ("training_dag", {"learning_rate": "0,001"}),
        ("training_dag", {"base_model": ""}),
        ("training_dag", {"base_model": "a b"}),
        ("training_dag", {"base_model": "$(WANDB_API_KEY)"}),
        ("training_dag", {"base_model": "a" * 201}),
        ("training_dag", {"data_source": "imdb"}),
        ("training_dag", {"data_source": "glue2"}),
        ("training_dag", {"data_source": "unglue"}),
        ("training_dag", {"data_source": "ftp://host/file.csv"}),
        ("training_dag", {"data_source": "s3://bucket/a b.csv"}),
        ("training_dag", {"model_name": "a:latest"}),
        ("training_dag", {"model_name": "-a"}),
        ("training_dag", {"model_name": "a" * 129}),
        ("inference_dag", {"model_name": "a/b"}),
        ("inference_dag", {"model_version": ""}),
        ("inference_dag", {"model_version": "a:b"}),
        ("inference_dag", {"sample_size": 0}),
        ("inference_dag", {"sample_size": 1_000_001}),
        ("inference_dag", {"data_source": "None"}),
    ],
    ids=str,
)
def test_wrong_value_is_refused_when_a_run_is_triggered(load_dag, dag_id: str, conf: dict) -> None:
    (name,) = conf
    with pytest.raises(ParamValidationError, match=f"Invalid input for param {name}: "):
        trigger(load_dag(dag_id), conf)


@pytest.mark.parametrize(
    ("dag_id", "conf"),
    [
        ("training_dag", {"max_steps": 1, "learning_rate": 1e-8, "data_source": "auto"}),
        ("training_dag", {"max_steps": 100_000, "learning_rate": 1, "data_source": "glue"}),
        ("training_dag", {"base_model": "/opt/models/all-MiniLM-L6-v2", "model_name": "a" * 128}),
        ("training_dag", {"base_model": "prajjwal1/bert-tiny", "data_source": "bundled"}),
        ("inference_dag", {"model_name": "other_1.2", "model_version": "v3", "sample_size": 1}),
        ("inference_dag", {"model_version": "champion", "sample_size": 1_000_000}),
        ("inference_dag", {"data_source": "s3://bucket/reviews/*.parquet"}),
        ("training_dag", {"data_source": "abfss://box@account.dfs.core.windows.net/a.csv"}),
        *UNSET.items(),
    ],
    ids=str,
)
def test_values_up_to_the_limits_are_taken(load_dag, dag_id: str, conf: dict) -> None:
    params = copy.deepcopy(load_dag(dag_id).params)
    params.update(conf)
    assert params.validate() == {**UNSET[dag_id], **conf}


@pytest.mark.parametrize(("dag_id", "task_id"), list(COMMANDS))
def test_commands_without_parameters_are_the_documents(
    load_dag, container, dag_id: str, task_id: str
) -> None:
    command, variables = container(load_dag(dag_id).get_task(task_id))
    assert command == COMMANDS[dag_id, task_id]
    assert json.loads(variables[VARIABLE]) == UNSET[dag_id]


@pytest.mark.parametrize(("dag_id", "task_id"), list(COMMANDS))
def test_tasks_get_the_parameters_of_their_run(
    load_dag, container, dag_id: str, task_id: str
) -> None:
    conf = {"model_name": "other", "data_source": "glue"}
    # Airflow takes one that the DAG does not have; the workload refuses it.
    conf["odd"] = 'a "quoted" <text>, it\'s {{ ds }} $(HOME) \\ und größer'
    command, variables = container(load_dag(dag_id).get_task(task_id), conf)
    assert json.loads(variables[VARIABLE]) == {**UNSET[dag_id], **conf}
    assert "$" not in variables[VARIABLE]  # Kubernetes would put a variable in, be it a secret
    documents = COMMANDS[dag_id, task_id]
    assert command == [word.replace("airflow-pipeline", "other") for word in documents]


def test_version_is_part_of_the_reference(load_dag, container) -> None:
    command, _ = container(
        load_dag("inference_dag").get_task("load_model"), {"model_version": "v3"}
    )
    assert "airflow-pipeline:v3" in command


@pytest.mark.parametrize("name", ["models", "größe", "it's"])
def test_name_of_the_values_holds_where_none_is_set(
    load_dag, settings_file, container, name: str
) -> None:
    settings_file({"model": {"name": name}, "presets": {"registry": {}}})
    for dag_id, task_id, word in (
        ("inference_dag", "load_model", f"{name}:latest"),
        ("training_dag", "upload_model", name),
    ):
        task = load_dag(dag_id).get_task(task_id)
        assert word in container(task)[0]
        assert task.dag.params.get_param("model_name").description.endswith(f"Empty: {name}.")


def test_variables_of_the_values_stay_beside_the_parameters(
    load_dag, settings_file, container
) -> None:
    env = [{"name": "TRAIN_MAX_STEPS", "value": "50"}]
    pod = {"spec": {"containers": [{"name": "base", "image": "i", "env": env}]}}
    settings_file({"tasks": {"train_model": {"pod": pod}}, "presets": {"registry": {}}})
    _, variables = container(load_dag("training_dag").get_task("train_model"))
    assert variables["TRAIN_MAX_STEPS"] == "50"
    assert json.loads(variables[VARIABLE])["max_steps"] is None


@pytest.mark.parametrize(
    ("name", "announced"), [(None, True), ("airflow-pipeline", True), ("other", False)]
)
def test_a_model_of_another_name_does_not_start_inference(
    load_dag, context, name: str | None, announced: bool
) -> None:
    task = load_dag("training_dag").get_task("upload_model")
    # Airflow calls it before the task, and takes the outlets of the same object at its end.
    task._pre_execute_hook(context(task, {"model_name": name}))
    assert bool(task.outlets) is announced


@pytest.mark.parametrize("dag_id", list(NAMES))
def test_data_of_the_values_is_loaded(load_dag, settings_file, container, dag_id: str) -> None:
    data = {
        "source": "s3://bucket/{{ ds }}/*.parquet",
        "textColumn": "text",
        "labelColumn": "stars",
        "onBadRow": "skip",
    }
    settings_file({"data": data, "presets": {"registry": {}}})
    command, variables = container(load_dag(dag_id).get_task("load_data"), {"data_source": "glue"})
    assert command == COMMANDS[dag_id, "load_data"]
    assert {name: text for name, text in variables.items() if name.startswith("DATA_")} == {
        "DATA_SOURCE": "s3://bucket/2026-01-01/*.parquet",
        "DATA_TEXT_COLUMN": "text",
        "DATA_LABEL_COLUMN": "stars",
        "DATA_ON_BAD_ROW": "skip",
    }
    # The workload takes it from there.
    assert json.loads(variables[VARIABLE])["data_source"] == "glue"
