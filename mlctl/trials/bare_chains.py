"""Chains of pods without Airflow: what a task may be compared with.

    python bare_chains.py NAMESPACE POD CHAINS LENGTH

It runs beside Airflow, in the scheduler's container, with its packages and its rights. POD is the
JSON of a pod, of which each pod of a chain is a copy: it is created, a watch says that it has
succeeded, and the next one is created at once. Nothing reads its log, and all are deleted at the
end. Prints as JSON the `pods`, seconds from creation to that event, and the `makespan` of all.
"""

import json
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from kubernetes import client, config, watch


def chain(namespace: str, pod: dict, length: int) -> list[float]:
    """Return the seconds of each pod of a chain. Raises RuntimeError when one fails."""
    api, seconds = client.CoreV1Api(client.ApiClient()), []
    for _ in range(length):
        name = f"bare-{secrets.token_hex(5)}"
        began = time.monotonic()
        created = api.create_namespaced_pod(
            namespace, pod | {"metadata": pod["metadata"] | {"name": name}}
        )
        events = watch.Watch().stream(
            api.list_namespaced_pod,
            namespace,
            field_selector=f"metadata.name={name}",
            resource_version=created.metadata.resource_version,
        )
        phase = next(
            one["object"].status.phase
            for one in events
            if one["object"].status.phase in ("Succeeded", "Failed")
        )
        seconds.append(time.monotonic() - began)
        if phase == "Failed":
            raise RuntimeError(f"the pod {name} failed")
    return seconds


def main(namespace: str, pod: dict, chains: int, length: int) -> None:
    """Run that many chains at once, and print what they took."""
    config.load_incluster_config()
    selector = ",".join(f"{key}={value}" for key, value in pod["metadata"]["labels"].items())
    try:
        with ThreadPoolExecutor(chains) as pool:
            began = time.monotonic()
            started = [pool.submit(chain, namespace, pod, length) for _ in range(chains)]
            pods = [one for chain_of_pods in started for one in chain_of_pods.result()]
            makespan = time.monotonic() - began
    finally:
        api = client.CoreV1Api()
        for one in api.list_namespaced_pod(namespace, label_selector=selector).items:
            api.delete_namespaced_pod(one.metadata.name, namespace, grace_period_seconds=0)
    json.dump({"pods": pods, "makespan": makespan}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
