"""Break one part after the other in the middle of training runs, and tell what it cost.

A lone undisturbed run is measured first. The table goes to the terminal, the same to
build/drill.json: [{"fault", "dag_state", "retries", "seconds_lost", "data_lost", "leftovers",
"ok"}]. The status is 1 unless every row is ok.
"""

import re
from typing import Any

from mlctl.base.errors import UserError
from mlctl.base.names import DAG_IDS, INFERENCE, TRAINING
from mlctl.base.paths import BUILD, write_report
from mlctl.base.progress import Phase, Phases, show_table
from mlctl.base.waiting import until, within
from mlctl.clients.airflow import FINISHED_RUN, Airflow, Task, run_seconds
from mlctl.cluster.provider import breakable
from mlctl.commands.telling import say, tell_change
from mlctl.stack import Stack
from mlctl.trials.drill.evidence import leftovers, lost, take
from mlctl.trials.drill.faults import Fault, Scene, chosen, remove_marks
from mlctl.trials.drill.report import COLUMNS, Row, cells

REPORT = BUILD / "drill.json"
RUN_SECONDS = 1200
# Airflow looks for workers that nobody follows once a minute (orphaned_tasks_check_interval).
LEFTOVER_SECONDS = 180


class Drill:
    """The release of a cluster, with the seconds of an undisturbed run."""

    def __init__(self, stack: Stack, airflow: Airflow) -> None:
        """Raises UserError where faults cannot be made, or would meet the work of others."""
        breakable(stack.cluster)
        if stack.uses_wandb():
            raise UserError("the drill counts the models in MLflow: wandb.enabled must be false")
        self.stack = stack
        self.airflow = airflow
        self.baseline = 0.0
        remove_marks(stack.kube)
        if going := self._going():
            raise UserError(f"{going} is under way: wait for its end first")

    def measure(self, phase: Phase) -> None:
        """Take the seconds of a lone run; have a prediction that could get lost."""
        ended = self._wait(self._start(TRAINING), TRAINING, phase)
        self._wait_for_the_end_of(TRAINING, ended["dag_run_id"], phase)
        self.baseline = run_seconds(ended) or 0.0
        phase.say(f"an undisturbed run takes {self.baseline:.0f} s")
        if not take(self.stack, self.airflow).predictions:
            self._wait(self._start(INFERENCE), INFERENCE, phase)
        # The first use of a DAG with a schedule starts the run of the day before, too.
        self.wait_for_peace(phase)

    def wait_for_peace(self, phase: Phase) -> None:
        """Wait until no run is under way. Raises UserError after RUN_SECONDS."""

        def quiet() -> bool:
            if going := self._going():
                phase.note(f"waiting for the end of {going}")
            return not going

        until(RUN_SECONDS, quiet, lambda: f"{self._going()} has not ended", poll=1)

    def _going(self) -> str:
        for dag_id in DAG_IDS:
            for run in self.airflow.all_runs(dag_id):
                if run["state"] not in FINISHED_RUN:
                    return f"{dag_id} {run['dag_run_id']}"
        return ""

    def __call__(self, fault: Fault, phase: Phase) -> Row:
        """Run one training with one fault and return what it came to."""
        before = take(self.stack, self.airflow)
        scene = Scene(self.stack, self.airflow, self._start(TRAINING), phase)
        fault.strike(scene)
        phase.say(f"done: {fault.what}")
        ended = self.airflow.wait_for_run(
            TRAINING,
            scene.run_id,
            timeout=RUN_SECONDS,
            on_change=lambda _, task: tell_change(phase.say, task),
            note=phase.note,
        )
        tasks = self.airflow.tasks(TRAINING, scene.run_id)
        left = self._wait_for_the_end_of(TRAINING, scene.run_id, phase)
        self.stack.release().wait_ready(phase)
        logs = self._lost_tries(scene.run_id, tasks)
        retries = sum(max(0, task.try_number - 1) for task in tasks)
        return Row(
            fault=fault.name,
            dag_state=ended["state"],
            retries=retries,
            seconds_lost=round((run_seconds(ended) or 0.0) - self.baseline, 1),
            data_lost=lost(before, take(self.stack, self.airflow), scene.run_id, ended["state"]),
            leftovers=left,
            shown="; ".join(f"{task_id}: {reason(log)}" for task_id, log in logs.items()),
            without_effect=(fault.costs_a_try and not retries)
            or bool(fault.said and not any(re.search(fault.said, log) for log in logs.values())),
        )

    def _start(self, dag_id: str) -> str:
        self.airflow.unpause(dag_id)
        return self.airflow.trigger(dag_id)

    def _wait(self, run_id: str, dag_id: str, phase: Phase) -> dict[str, Any]:
        ended = self.airflow.wait_for_run(dag_id, run_id, timeout=RUN_SECONDS, note=phase.note)
        if ended["state"] != "success":
            raise UserError(f"{dag_id} fails undisturbed, too ({run_id}): `make logs`")
        return ended

    def _wait_for_the_end_of(self, dag_id: str, run_id: str, phase: Phase) -> list[str]:
        """Wait until nothing of the run is left; return what does not go."""
        path = self.stack.run_path(dag_id, run_id)

        def gone() -> bool:
            if left := leftovers(self.stack, path):
                phase.note(f"waiting for the end of {left[0]}")
            return not left

        return [] if within(LEFTOVER_SECONDS, gone, poll=1) else leftovers(self.stack, path)

    def _lost_tries(self, run_id: str, tasks: list[Task]) -> dict[str, str]:
        """Return the logs of the tries that were not the last, by task."""
        return {
            task.task_id: "\n".join(
                self.airflow.log(TRAINING, run_id, task.task_id, number)
                for number in range(1, task.try_number)
            )
            for task in tasks
            if task.try_number > 1
        }


def reason(log: str) -> str:
    """Return why a try was lost, in the words of its log."""
    # Not the traceback: Airflow sorts its lines in between others.
    if found := re.findall(r"Failed to execute job \d+ for task \S+ \((.*); \d+\)", log):
        return found[-1]
    if "Detected zombie job" in log:
        return "its worker gave no sign of life any more"
    if "The executor reported" in log:
        return "its worker did not start"
    return "no reason in its log"


def main(stack: Stack, names: str) -> int:
    """Break one part after the other in the middle of training runs (build/drill.json)."""
    faults, phases = chosen(names, stack.settings["launch"]), Phases()
    rows: list[Row] = []
    with stack.airflow() as airflow:
        drill = Drill(stack, airflow)
        with phases.phase("a run without a fault") as phase:
            drill.measure(phase)
        try:
            for number, fault in enumerate(faults, 1):
                with phases.phase(f"{number}/{len(faults)} {fault.what}") as phase:
                    try:
                        rows.append(drill(fault, phase))
                    except UserError as error:
                        # The other faults are worth trying all the same, once this run is over.
                        rows.append(Row(fault.name, "unknown", 0, 0.0, shown=str(error)))
                        drill.wait_for_peace(phase)
                say("  ".join(cells(rows[-1])))
        finally:
            write_report(REPORT, [row.entry() for row in rows])
            say()
            show_table(COLUMNS, map(cells, rows))
    say(f"\nan undisturbed run took {drill.baseline:.0f} s; the table is in {REPORT}")
    return 0 if all(row.ok for row in rows) else 1
