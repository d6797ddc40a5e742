"""Many runs of both DAGs and of a mapped one at once, each checked by what it left behind.

It needs the release with its own MLflow (`make up`). The mapped DAG is this trial's own, and has no
runs where none can be published from here.

A run of inference_dag alone, before and after, says what the predictions of a model are when
nothing runs beside it: every other run must have written the same bytes for the same weights. All
training runs have the same seed, so that all their models must have the same weights.

The figures go to build/soak.json:

    {"runs", "seconds", "ok", "alone": [run], "training_dag": [run], "inference_dag": [run],
     "soak_mapped": [run]}

where a run is what `Checked` holds.
"""

import json
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from mlctl.base.errors import UserError
from mlctl.base.names import DAG_IDS, INFERENCE, MLFLOW_PORT, MLFLOW_SERVICE, TRAINING
from mlctl.base.paths import BUILD, write_report
from mlctl.base.progress import Phase, Phases, show_table
from mlctl.base.waiting import until, within
from mlctl.clients.airflow import FINISHED_RUN, Airflow, run_seconds
from mlctl.clients.forward import Forward
from mlctl.clients.mlflow import Mlflow
from mlctl.clients.pods import CHECKED
from mlctl.clients.volume import Volume
from mlctl.cluster.provider import Breakable
from mlctl.commands.telling import explain_failure, say
from mlctl.stack import Stack
from mlctl.trials.own_dag import published

REPORT = BUILD / "soak.json"
RUNS = 20
"""Of each DAG, where nothing else is asked for."""
POLL_SECONDS = 3.0
SECONDS_PER_RUN = 600
"""Limit for all, by their number; on two cores a run of each pipeline takes 100 s together."""
POD_SECONDS = 60
"""The pods of an ended run are gone after so long."""

MAPPED, NUMBERS = "soak_mapped", 20
SUM = sum(number**2 for number in range(1, NUMBERS + 1))
ABOUT_MAPPED = f"{NUMBERS} numbers, squared by a pod each"
MAPPED_DAG = f'''"""Numbers from a task, a pod for each that squares it, and their sum."""

import json
from datetime import UTC, datetime

from airflow import DAG
from ml_pipelines import PodOperator

NUMBERS = json.dumps([{{"N": str(number + 1)}} for number in range({NUMBERS})])
SQUARE = "echo $((N * N)) | tee /tmp/$N /dev/termination-log"
ADD_UP = """
for file in /tmp/*; do total=$((total + $(cat $file))); done
rm /tmp/*
printf '{{"total": %d}}' $total > /dev/termination-log
"""

with DAG(
    dag_id="{MAPPED}",
    description="{ABOUT_MAPPED}",
    schedule=None,
    start_date=datetime(2021, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=100,
) as dag:
    numbers = PodOperator(
        task_id="numbers", cmds=["sh", "-c", f"echo '{{NUMBERS}}' > /dev/termination-log"]
    )
    square = PodOperator.partial(task_id="square", cmds=["sh", "-ec", SQUARE])
    square.expand(env_vars=numbers.output) >> PodOperator(
        task_id="add_up", cmds=["sh", "-ec", ADD_UP]
    )
'''

# What an ended run may keep in its directory; everything else is left behind.
KEPT = {TRAINING: set(), INFERENCE: {"pred.csv", "pred.json"}, MAPPED: set()}

# Run in a pod with the claim: prints {directory: {"sha256", "rows", "about"} or null}.
READ_PREDICTIONS = """
import csv, hashlib, io, json, pathlib, sys
found = {}
for name in sys.argv[1:]:
    path = pathlib.Path("/volume", name, "pred.csv")
    found[name] = None
    if path.is_file():
        content = path.read_bytes()
        about = path.with_name("pred.json")
        found[name] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "rows": sum(1 for _ in csv.DictReader(io.StringIO(content.decode()))),
            "about": json.loads(about.read_text()) if about.is_file() else {},
        }
print(json.dumps(found))
"""


@dataclass
class Checked:
    """A run that has ended, and what is wrong with it."""

    dag_id: str
    run_id: str
    state: str
    seconds: float | None
    """From its start, waiting for its turn not included."""
    retries: int = 0
    """Tries of all tasks beyond their first."""
    model_version: str = ""
    """Registered by a training run, applied by an inference run."""
    weights: str = ""
    """SHA-256 of the model's weights."""
    accuracy: float | None = None
    predictions: str = ""
    """SHA-256 of the predictions file."""
    rows: int | None = None
    faults: list[str] = field(default_factory=list)


def start(airflow: Airflow, run_ids: Mapping[str, Sequence[str]]) -> None:
    """Trigger runs of several DAGs under the given ids, the DAGs in turn."""
    for dag_id in run_ids:
        airflow.unpause(dag_id)
    turns = max(len(ids) for ids in run_ids.values())
    for turn in range(turns):
        for dag_id, ids in run_ids.items():
            if turn < len(ids):
                airflow.trigger(dag_id, run_id=ids[turn])


def wait(
    airflow: Airflow, run_ids: Mapping[str, Sequence[str]], timeout: float, phase: Phase
) -> None:
    """Return when all runs have ended, well or badly; tell each end.

    Raises UserError after ``timeout`` seconds, with the number of runs in each state.
    """
    told: set[tuple[str, str]] = set()

    def ended() -> bool:
        counts = {}
        for dag_id, ids in run_ids.items():
            runs = airflow.runs(dag_id, ids)
            counts[dag_id] = Counter(run["state"] for run in runs)
            for run in runs:
                key = (dag_id, run["dag_run_id"])
                if run["state"] in FINISHED_RUN and key not in told:
                    told.add(key)
                    seconds = run_seconds(run) or 0
                    phase.say(f"{dag_id} {run['dag_run_id']}: {run['state']} in {seconds:.0f} s")
        states = "; ".join(f"{dag_id}: {_counted(count)}" for dag_id, count in counts.items())
        phase.note(states)
        return len(told) == sum(len(ids) for ids in run_ids.values())

    until(timeout, ended, lambda: f"not ended: {phase.detail}", poll=POLL_SECONDS)


def _counted(count: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {state}" for state, number in sorted(count.items()))


def look_at(
    stack: Stack,
    volume: Volume,
    airflow: Airflow,
    mlflow: Mlflow,
    run_ids: Mapping[str, Sequence[str]],
) -> list[Checked]:
    """Return what ended runs came to, with the faults that each shows by itself."""
    inference = {run_id: stack.run_path(INFERENCE, run_id) for run_id in run_ids.get(INFERENCE, ())}
    predictions = read_predictions(volume, inference.values())
    files = volume.files()
    checked = []
    for dag_id, ids in run_ids.items():
        for run in airflow.runs(dag_id, ids):
            one = Checked(dag_id, run["dag_run_id"], run["state"], run_seconds(run))
            _look_at_tasks(airflow, one)
            _look_at_files(stack.run_path(dag_id, one.run_id), files, one)
            if dag_id == TRAINING:
                trained, uploaded = (
                    airflow.result(dag_id, one.run_id, task_id)
                    for task_id in ("train_model", "upload_model")
                )
                _look_at_model(mlflow, trained, uploaded, one)
            elif dag_id == MAPPED:
                _look_at_sum(airflow.result(dag_id, one.run_id, "add_up"), one)
            else:
                _look_at_predictions(predictions[inference[one.run_id]], one)
            checked.append(one)
    return checked


def read_predictions(
    volume: Volume, directories: Iterable[str]
) -> dict[str, dict[str, Any] | None]:
    """Return hash, rows and description of the predictions in directories of the storage.

    None where there are no predictions.
    """
    return json.loads(volume.run("python", "-c", READ_PREDICTIONS, *directories))


def _look_at_tasks(airflow: Airflow, one: Checked) -> None:
    if one.state != "success":
        one.faults.append(f"the run is {one.state}")
    for task in airflow.tasks(one.dag_id, one.run_id):
        one.retries += max(0, task.try_number - 1)
        # The gate refuses a model.
        if task.state != "success" and (task.name, task.state) != ("gate_model", "skipped"):
            one.faults.append(f"{task.name} is {task.state}")


def _look_at_files(path: str, files: Collection[str], one: Checked) -> None:
    names = {name.removeprefix(f"{path}/") for name in files if name.startswith(f"{path}/")}
    if left := sorted(names - KEPT[one.dag_id]):
        one.faults.append(f"left behind: {', '.join(left)}")


def _look_at_model(
    mlflow: Mlflow, trained: Mapping[str, Any], uploaded: Mapping[str, Any], one: Checked
) -> None:
    one.accuracy = trained.get("accuracy")
    if not uploaded:
        one.faults.append("no model was registered")
        return
    one.model_version = uploaded["version"]
    version = mlflow.version(uploaded["name"], one.model_version)
    one.weights = version["tags"].get("model_sha256", "")
    # Written into the model's directory by train_model: whose files upload_model has taken.
    model = version["source"].removeprefix("models:/")
    files = f"ajax-api/2.0/mlflow/logged-models/{model}/artifacts/files"
    trained_by = mlflow.get(files, artifact_file_path="model/lineage.json").json()
    if trained_by.get("run_id") != one.run_id:
        one.faults.append(f"{one.model_version} was trained by the run {trained_by.get('run_id')}")


def _look_at_predictions(found: Mapping[str, Any] | None, one: Checked) -> None:
    if found is None:
        one.faults.append("there are no predictions")
        return
    one.predictions, one.rows = found["sha256"], found["rows"]
    about = found["about"]
    one.model_version = about.get("model", {}).get("version", "")
    one.weights = about.get("model", {}).get("tags", {}).get("model_sha256", "")
    if about.get("predictions", {}).get("sha256") != one.predictions:
        one.faults.append("pred.json describes other predictions")
    made_by = about.get("made_by", {}).get("run_id")
    if made_by != one.run_id:
        one.faults.append(f"the predictions are those of the run {made_by}")


def _look_at_sum(result: Mapping[str, Any], one: Checked) -> None:
    if (total := result.get("total")) != SUM:
        one.faults.append(f"the squares add up to {total}, not {SUM}")


def compare(checked: Sequence[Checked], alone: Sequence[Checked]) -> None:
    """Add the faults that show only beside other runs.

    ``alone`` are inference runs that had the cluster for themselves.
    """
    training = [one for one in checked if one.dag_id == TRAINING]
    weights = Counter(one.weights for one in training if one.weights)
    usual = weights.most_common(1)[0][0] if weights else ""
    versions = Counter(one.model_version for one in training if one.model_version)
    for one in training:
        if one.weights and one.weights != usual:
            one.faults.append(f"other weights than {weights[usual]} runs of the same seed")
        if versions[one.model_version] > 1:
            one.faults.append(f"{one.model_version} is registered for several runs")
    known = {one.weights: one.predictions for one in alone}
    for one in checked:
        if one.dag_id != INFERENCE or not one.predictions:
            continue
        if one.weights not in known:
            one.faults.append(f"no run alone has used the weights of {one.model_version}")
        elif one.predictions != known[one.weights]:
            one.faults.append("other predictions than those of a run alone")


def leftover_pods(stack: Stack) -> list[str]:
    """Return the pods of runs that are still there POD_SECONDS after the last run has ended.

    Not those that have failed: they stay for a look.
    """
    selector = f"dag_id in ({', '.join(KEPT)}),!{CHECKED}"
    within(POD_SECONDS, lambda: not stack.kube.items("pods", selector), poll=1)
    return [pod["metadata"]["name"] for pod in stack.kube.items("pods", selector)]


def run_alone(
    stack: Stack, airflow: Airflow, mlflow: Mlflow, dag_id: str, phases: Phases
) -> Checked:
    """Run a DAG with nothing beside it. Raises UserError when it does not go well."""
    with phases.phase(f"{dag_id} alone") as phase:
        (run_id,) = new_run_ids("alone", 1)
        start(airflow, {dag_id: [run_id]})
        wait(airflow, {dag_id: [run_id]}, 2 * SECONDS_PER_RUN, phase)
        with stack.volume() as volume:
            (one,) = look_at(stack, volume, airflow, mlflow, {dag_id: [run_id]})
        if one.faults:
            if one.state != "success":
                explain_failure(airflow, dag_id, run_id)
            raise UserError(f"{dag_id} alone: {', '.join(one.faults)}")
        phase.say(f"model {one.model_version}, weights {one.weights[:10]}")
    return one


def new_run_ids(name: str, count: int) -> list[str]:
    """Return ids that no run has yet."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return [f"{name}__{stamp}+{number}" for number in range(1, count + 1)]


def main(stack: Stack, count: int, mapped: int) -> int:
    """Many runs of both DAGs and of a mapped one at once, each checked (build/soak.json)."""
    if stack.uses_wandb() or stack.kube.get("service", MLFLOW_SERVICE) is None:
        raise UserError("the models are compared in the MLflow of the release: mlflow.enabled=true")
    phases = Phases()
    run_ids = {dag_id: new_run_ids("soak", count) for dag_id in DAG_IDS}
    with (
        stack.airflow() as airflow,
        Forward(stack.kube, MLFLOW_SERVICE, MLFLOW_PORT) as forward,
        ExitStack() as until_looked_at,
    ):
        if mapped and isinstance(stack.cluster, Breakable):
            dag = published(stack, airflow, MAPPED, MAPPED_DAG, ABOUT_MAPPED, phases)
            until_looked_at.enter_context(dag)
            run_ids[MAPPED] = new_run_ids("soak", mapped)
        mlflow = Mlflow(forward)
        if not mlflow.has_model(stack.settings["model"]["name"]):
            run_alone(stack, airflow, mlflow, TRAINING, phases)
        alone = [run_alone(stack, airflow, mlflow, INFERENCE, phases)]
        title = " and ".join(f"{len(ids)} x {dag_id}" for dag_id, ids in run_ids.items())
        with phases.phase(title) as phase:
            started = time.monotonic()
            start(airflow, run_ids)
            runs = sum(map(len, run_ids.values()))
            phase.say(f"{runs} runs triggered in {phase.age:.1f} s")
            wait(airflow, run_ids, SECONDS_PER_RUN * (2 + runs), phase)
            seconds = round(time.monotonic() - started, 1)
        pods = leftover_pods(stack)
        # The champion is one of theirs now.
        alone.append(run_alone(stack, airflow, mlflow, INFERENCE, phases))
        with phases.phase("look at what the runs left"), stack.volume() as volume:
            checked = look_at(stack, volume, airflow, mlflow, run_ids)
            compare(checked, alone)
    ok = not pods and not any(one.faults for one in checked)
    by_dag = {id_: [one for one in checked if one.dag_id == id_] for id_ in run_ids}
    report = {
        "runs": count,
        "seconds": seconds,
        "ok": ok,
        "leftover_pods": pods,
        "alone": [asdict(one) for one in alone],
        **{dag_id: [asdict(one) for one in runs] for dag_id, runs in by_dag.items()},
    }
    write_report(REPORT, report)
    show(checked, alone)
    for dag_id, ended in by_dag.items():
        right = sum(not one.faults for one in ended)
        say(f"{dag_id:<14} {right} of {len(ended)} right, {sum(r.retries for r in ended)} retries")
    if pods:
        say(f"pods left behind: {', '.join(pods)}")
    say(f"all together   {seconds:.0f} s; {REPORT}")
    return 0 if ok else 1


def show(checked: Sequence[Checked], alone: Sequence[Checked]) -> None:
    """Print a line for each run."""
    show_table(
        ("run", "state", "seconds", "retries", "model", "weights", "predictions", "right"),
        (
            (
                f"{one.dag_id} {'alone' if one in alone else one.run_id.rpartition('+')[2]}",
                one.state,
                f"{one.seconds or 0:.0f}",
                one.retries,
                one.model_version,
                one.weights[:10],
                one.predictions[:10],
                "; ".join(one.faults) or "yes",
            )
            for one in [*alone, *checked]
        ),
    )
