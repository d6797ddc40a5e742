"""What `helm test` runs inside the cluster; only the standard library, any failure is status 1."""

import base64
import json
import os
import time
import urllib.request
from pathlib import Path

TRIES = 24
PAUSE_SECONDS = 5


def get(url, password=None):
    request = urllib.request.Request(url)
    if password is not None:
        login = f"{os.environ['ADMIN_USERNAME']}:{password}".encode()
        request.add_header("Authorization", "Basic " + base64.b64encode(login).decode())
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()


def settings():
    content = json.loads(Path("/settings/settings.json").read_text(encoding="utf-8"))
    image = content["pod"]["spec"]["containers"][0]["image"]
    return f"image {image}, {len(content['tasks'])} tasks of their own"


def storage():
    file = Path(f"/storage/.helm-test-{time.time_ns()}")
    with file.open("x", encoding="utf-8") as opened:
        opened.write("written by helm test")
    file.unlink()
    return "a file can be written and removed"


def airflow():
    health = json.loads(get(os.environ["AIRFLOW_URL"] + "/health"))
    bad = [part for part in ("metadatabase", "scheduler") if health[part]["status"] != "healthy"]
    if bad:
        raise RuntimeError(f"not healthy: {', '.join(bad)}")
    return "database and scheduler are healthy"


def dags():
    api, password = os.environ["AIRFLOW_URL"] + "/api/v1", os.environ["ADMIN_PASSWORD"]
    for error in json.loads(get(api + "/importErrors", password))["import_errors"]:
        raise RuntimeError(f"{error['filename']}: {error['stack_trace']}")
    found = {dag["dag_id"] for dag in json.loads(get(api + "/dags", password))["dags"]}
    if not found:
        raise RuntimeError("no DAG is there yet")
    return f"the admin user can log in; there: {', '.join(sorted(found))}"


def mlflow():
    return f"answers {get(os.environ['MLFLOW_URL'] + '/health')}"


def check(name, function):
    """Print what a check found; it may fail for two minutes, right after an install it will."""
    for left in reversed(range(TRIES)):
        try:
            print(f"ok    {name}: {function()}", flush=True)
            break
        except Exception as error:
            if not left:
                print(f"FAIL  {name}: {type(error).__name__}: {error}", flush=True)
                return False
            time.sleep(PAUSE_SECONDS)
    return True


checks = {"settings": settings, "training storage": storage, "airflow": airflow}
if "ADMIN_PASSWORD" in os.environ:
    checks["dags"] = dags
if "MLFLOW_URL" in os.environ:
    checks["mlflow"] = mlflow
results = [check(name, function) for name, function in checks.items()]
raise SystemExit(0 if all(results) else 1)
