"""A ResourceQuota that workers and the pods that they wait for share."""

from __future__ import annotations

import heapq
import random
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any

import pytest
from airflow.exceptions import AirflowException
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from greenlet import getcurrent, greenlet

from tests.dags.cluster import LABELS, RUNNING, Clock, Cluster, ended, until
from tests.dags.conftest import interruptions

WORKING = until(60, ended(0, message='{"accuracy": 0.82}'))
# A worker's pod, until it runs the task.
WORKER_SECONDS = 8
TaskDeferred = interruptions()[-1]


@pytest.fixture(params=[True, False], ids=["triggerer", "no triggerer"])
def triggerer(request, settings_file) -> bool:
    settings_file({"triggerer": request.param})
    return request.param


class Together:
    """Runs functions at once on one played clock: who sleeps makes way for the next."""

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.order, self.hub = clock, count(), getcurrent()
        self.due: list[tuple[float, int, greenlet]] = []
        monkeypatch.setattr(clock, "advance", self.advance)

    def advance(self, seconds: float) -> None:
        self._wake(getcurrent(), self.clock.now + seconds)
        self.hub.switch()

    def start(self, do: Callable[[], Any]) -> None:
        self._wake(greenlet(do, self.hub), self.clock.now)

    def run(self) -> None:
        """Return when all have come to their end."""
        while self.due:
            moment, _, one = heapq.heappop(self.due)
            self.clock.now = max(moment, self.clock.now)
            one.switch()

    def _wake(self, one: greenlet, moment: float) -> None:
        heapq.heappush(self.due, (moment, next(self.order), one))


class Airflow:
    """An executor that starts a worker for each task as soon as there is room, in their order."""

    def __init__(self, clock: Clock, together: Together, cluster: Cluster, run_task: Any) -> None:
        self.clock, self.together, self.cluster, self.run_task = clock, together, cluster, run_task
        self.queue: list[tuple[str, Any, Any]] = []
        self.outcomes: dict[str, Any] = {}

    def run(self, tasks: dict[str, Any]) -> dict[str, Any]:
        """How each task has ended, by the id of its run."""
        self.queue = [(run_id, task, None) for run_id, task in tasks.items()]
        self.together.start(lambda: self._schedule(len(tasks)))
        self.together.run()
        return self.outcomes

    def _schedule(self, number: int) -> None:
        while len(self.outcomes) < number:
            while self.queue and self.cluster.has_room:
                self.cluster.workers += 1
                self.together.start(partial(self._work, *self.queue.pop(0)))
            self.clock.sleep(1)

    def _work(self, run_id: str, task: Any, how: Any) -> None:
        self.clock.sleep(WORKER_SECONDS)
        event = None if how is None else "time"
        done = self.run_task(task, self.cluster, event, how, run_id=run_id)
        self.cluster.workers -= 1
        if isinstance(done.error, TaskDeferred):
            self.clock.sleep((done.error.trigger.moment - datetime.now(UTC)).total_seconds())
            self.queue.append((run_id, task, done.error))
        else:
            self.outcomes[run_id] = done


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("number", [10, 30])
def test_waiting_workers_do_not_starve_their_own_pods(
    clock, make_task, run_task, monkeypatch, triggerer, number: int, seed: int
) -> None:
    random.seed(seed)
    cluster = Cluster(clock, WORKING)
    cluster.quota = 10
    airflow = Airflow(clock, Together(clock, monkeypatch), cluster, run_task)
    tasks = {f"manual__{one}": make_task(dag_id=f"dag_{one}") for one in range(number)}
    outcomes = airflow.run(tasks)
    failed = [one.message for one in outcomes.values() if one.error is not None]
    if not triggerer:
        # What the triggerer is for: they wait for each other until the limit.
        assert len(failed) >= 5
        assert all("exceeded quota" in one for one in failed)
        return
    assert failed == []
    assert len(cluster.created) == number
    assert cluster.deleted == cluster.created
    # Each was told why it waits, and every result is there.
    assert {one.result["accuracy"] for one in outcomes.values()} == {0.82}


@pytest.fixture
def full(clock) -> Cluster:
    cluster = Cluster(clock, WORKING)
    cluster.quota = 0
    return cluster


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_task_leaves_its_worker_and_says_what_for(
    full, clock, make_task, run_task, settings_file, deferrable: bool
) -> None:
    settings_file({"triggerer": not deferrable})  # a deferrable task has one in any case
    task = make_task(deferrable=deferrable)
    done = run_task(task, full)
    assert isinstance(done.error, TaskDeferred)
    assert 5 <= clock.passed <= 22
    pause = (done.error.trigger.moment - datetime.now(UTC)).total_seconds()
    assert 15 < pause <= 60
    (line,) = [line for line in done.log.text.splitlines() if "waits: pods" in line]
    assert re.fullmatch(r"Pod a-task-\w+ waits: pods .*exceeded quota: team, limited: pods=0", line)
    # It has no pod yet that on_kill would wait for.
    assert task.pod is None


def test_a_task_that_comes_back_follows_the_pod_that_is_its_own(
    full, clock, make_task, run_task, settings_file
) -> None:
    settings_file({"triggerer": True})
    left = run_task(make_task(), full)
    full.add("old", [(0, RUNNING), (90, WORKING[-1][1])], **LABELS)
    done = run_task(make_task(), full, "time", left.error)
    assert done.error is None
    assert done.result["accuracy"] == 0.82
    assert full.created == []
    assert full.deleted == ["old"]


def test_a_stock_operator_fails_at_once_as_the_docs_say(full, clock, make_task, run_task) -> None:
    done = run_task(make_task(KubernetesPodOperator, image="a:1"), full)
    assert "exceeded quota" in str(done.error)
    assert clock.passed < 1


def test_all_waiting_for_a_quota_has_one_limit(
    full, clock, make_task, run_task, settings_file
) -> None:
    settings_file({"triggerer": True})
    done, began = run_task(make_task(), full), clock.now
    while isinstance(done.error, TaskDeferred):
        clock.sleep(60)
        done = run_task(make_task(), full, "time", done.error)
    assert isinstance(done.error, AirflowException)
    assert "exceeded quota: team" in done.message
    assert 580 <= clock.now - began < 690
    assert full.created == []
