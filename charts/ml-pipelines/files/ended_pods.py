"""Deletes the pods of tasks that have ended, once nobody needs them any more.

What the chart's second CronJob runs; only the standard library. A task that succeeds deletes its
pod, and one that fails leaves it for a look at it, with the label `already_checked`. Without that
label nobody has seen the pod's end, as its worker died: a next try may come to take its success
over, so that it stays longer. Pods that run are never touched.

What goes is printed. A namespace that cannot be cleaned is printed too and makes the status 1,
after all others had their turn.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from janitor import Failed, Refused, ask

# What every KubernetesPodOperator writes on its pods, and on those whose end it has seen.
OURS = "kubernetes_pod_operator=True"
CHECKED = "already_checked"
ENDED = ("Succeeded", "Failed")
PAGE = 500
# How often a list is begun anew that took longer than the API server remembers it.
RESTARTS = 3


class Cluster:
    """The API server, as the account whose token and CA are in a directory."""

    def __init__(self, url: str, account: Path) -> None:
        self.url = url
        self.token = (account / "token").read_text(encoding="utf-8").strip()
        self.context = None
        if url.startswith("https:"):
            self.context = ssl.create_default_context(cafile=str(account / "ca.crt"))
            # Python 3.13 wants extensions that the certificates of many API servers do not have.
            self.context.verify_flags &= ~ssl.VERIFY_X509_STRICT

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the answer, an empty one when the object is not there (any more).

        Raises Refused, or Failed when there is no answer.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("Authorization", f"Bearer {self.token}")
        request.add_header("Content-Type", "application/json")
        # 409: a pod of the same name is another one by now.
        gone = {"DELETE": (404, 409)}.get(method, ())
        found = ask(
            "Kubernetes",
            request,
            missing=lambda status, _: status in gone,
            context=self.context,
        )
        return found or {}

    def pods(self, namespace: str) -> Iterator[dict[str, Any]]:
        """Yield the pods of tasks, page by page; some twice when the list had to be begun anew.

        Raises Refused or Failed.
        """
        restarts, token = 0, ""
        while True:
            query = {"labelSelector": OURS, "limit": PAGE, **({"continue": token} if token else {})}
            path = f"/api/v1/namespaces/{namespace}/pods?{urllib.parse.urlencode(query)}"
            try:
                page = self.call("GET", path)
            except Refused as error:
                if error.status != 410 or restarts == RESTARTS:
                    raise
                restarts, token = restarts + 1, ""
                continue
            yield from page.get("items", [])
            token = page["metadata"].get("continue", "")
            if not token:
                return

    def delete(self, pod: dict[str, Any]) -> None:
        """Delete just this pod. Raises Refused or Failed."""
        metadata = pod["metadata"]
        self.call(
            "DELETE",
            f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}",
            {"preconditions": {"uid": metadata["uid"]}},
        )


def last_change(pod: dict[str, Any]) -> float:
    """Return when a pod that has ended has done so, as a POSIX time.

    An evicted pod has no containers that say it: then it is the last change of a condition.
    """
    status = pod["status"]
    containers = status.get("containerStatuses", []) + status.get("initContainerStatuses", [])
    times = [one["state"].get("terminated", {}).get("finishedAt") for one in containers]
    times += [one.get("lastTransitionTime") for one in status.get("conditions", [])]
    times.append(pod["metadata"]["creationTimestamp"])
    return max(datetime.fromisoformat(text).timestamp() for text in times if text)


def clean(
    cluster: Cluster, namespace: str, keep_seconds: float, unwatched_hours: float, dry_run: bool
) -> int:
    """Delete what has ended long enough ago and return how many pods that were.

    Raises Refused or Failed.
    """
    deleted, seen, now = 0, set(), time.time()
    for pod in cluster.pods(namespace):
        metadata = pod["metadata"]
        if pod["status"].get("phase") not in ENDED or metadata["uid"] in seen:
            continue
        seen.add(metadata["uid"])
        checked = metadata["labels"].get(CHECKED) == "True"
        age = now - last_change(pod)
        if age < (keep_seconds if checked else unwatched_hours * 3600):
            continue
        if not dry_run:
            cluster.delete(pod)
        deleted += 1
        verb = "would delete" if dry_run else "deleted"
        what = f"{namespace}/{metadata['name']}"
        why = "" if checked else ", and nobody has seen its end"
        print(f"{verb} {what}: it ended {age / 60:.0f} minutes ago{why}", flush=True)
    return deleted


def in_cluster() -> str:
    """Return the address of the API server that a pod finds in its environment."""
    host = os.environ["KUBERNETES_SERVICE_HOST"]
    host = f"[{host}]" if ":" in host else host
    return f"https://{host}:{os.environ['KUBERNETES_SERVICE_PORT']}"


def main(argv: list[str] | None = None) -> int:
    """Clean up as the arguments say and return the exit status."""
    parser = argparse.ArgumentParser(description="Delete the pods of tasks that have ended.")
    parser.add_argument("--namespace", action="append", required=True, dest="namespaces")
    parser.add_argument("--keep-seconds", type=float, required=True)
    parser.add_argument("--unwatched-hours", type=float, required=True)
    parser.add_argument("--account", type=Path, required=True, help="directory of token and ca.crt")
    parser.add_argument("--api-server", help="without it the one of this cluster")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, delete nothing")
    wanted = parser.parse_args(argv)
    cluster = Cluster(wanted.api_server or in_cluster(), wanted.account)
    deleted, status = 0, 0
    for namespace in wanted.namespaces:
        try:
            deleted += clean(
                cluster, namespace, wanted.keep_seconds, wanted.unwatched_hours, wanted.dry_run
            )
        except Failed as error:
            print(f"ERROR: namespace {namespace}: {error}", flush=True)
            status = 1
    print(f"{deleted} {'to delete' if wanted.dry_run else 'deleted'}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
