"""How long a pod may take to start: the limits that the DAGs' operator has, for the triggerer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from one_pod import failures
from one_pod.manifest import View

LIMITS = tuple(f"{of}_timeout_seconds" for of in ("schedule", "startup", "stuck"))
SCHEDULE, STARTUP, STUCK = LIMITS


def starting(container: str, limits: dict[str, Any]) -> Callable[[View, float], list[str]]:
    """Tells of a pod that is Pending what is new, and why to give it up; '' where there is nothing.

    It is asked with the pod and a time in seconds. `limits`: seconds, by the operator's arguments.
    """
    told, since = {""}, {}

    def look(pod: View, now: float) -> list[str]:
        reason, message = failures.waiting_for(pod, container) or ("", "")
        news = "" if reason in told else failures.explain_wait(reason, message)
        told.add(reason)
        if reason in failures.HOPELESS_WAITS:
            return [news, f"cannot start: {reason}"]
        if reason not in failures.STUCK_WAITS:
            since.pop(STUCK, None)
        elif now - since.setdefault(STUCK, now) >= limits[STUCK]:
            return [news, f"cannot start: {reason} for {limits[STUCK]} s ({STUCK})"]
        limit = SCHEDULE if pod.spec.node_name is None else STARTUP
        if now - since.setdefault(limit, now) >= limits[limit]:
            return [news, f"did not start within {limits[limit]} s ({limit})"]
        return [news, ""]

    return look
