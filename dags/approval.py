"""Airflow 2's stand-in for ApprovalOperator of Airflow 3: a task that waits for a person."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NoReturn

from airflow.exceptions import AirflowSkipException
from airflow.models import BaseOperator
from airflow.triggers.temporal import TimeDeltaTrigger


class ApprovalOperator(BaseOperator):
    """Waits in the triggerer until somebody marks it as a success, or as failed, in the page.

    `make approve` marks it too. After `response_timeout` what follows is skipped. Who has marked it
    is in Airflow's audit log.
    """

    template_fields = ("subject", "body")

    def __init__(
        self, *, subject: str, body: str, response_timeout: timedelta, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.subject, self.body, self.response_timeout = subject, body, response_timeout

    def execute(self, context: Any) -> NoReturn:
        """Tell what is asked, and leave the worker."""
        self.log.info("%s %s", self.subject, self.body)
        self.log.info("To approve mark this task as success, to reject as failed")
        self.defer(trigger=TimeDeltaTrigger(self.response_timeout), method_name="give_up")

    def give_up(self, context: Any, event: Any = None) -> NoReturn:
        """Skip what follows."""
        raise AirflowSkipException(f"nobody has answered within {self.response_timeout}")
