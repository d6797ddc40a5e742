"""What `helm test` runs inside the cluster; only the standard library, any failure is status 1."""

import base64
import json
import os
import time
import urllib.request
from pathlib import Path

TRIES = 24
PAUSE_SECONDS = 5
AIRFLOW = int(os.environ.get("AIRFLOW", "2"))


def get(url, authorization="", data=None):
    headers = {"Authorization": authorization, "Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()


def authorization():
    user, password = os.environ["ADMIN_USERNAME"], os.environ["ADMIN_PASSWORD"]
    if AIRFLOW == 2:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    login = json.dumps({"username": user, "password": password}).encode()
    answer = get(os.environ["AIRFLOW_URL"] + "/auth/token", data=login)
    return "Bearer " + json.loads(answer)["access_token"]


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
    path = "/health" if AIRFLOW == 2 else "/api/v2/monitor/health"
    health = json.loads(get(os.environ["AIRFLOW_URL"] + path))
    bad = [part for part in ("metadatabase", "scheduler") if health[part]["status"] != "healthy"]
    if bad:
        raise RuntimeError(f"not healthy: {', '.join(bad)}")
    return "database and scheduler are healthy"


def dags():
    api, login = f"{os.environ['AIRFLOW_URL']}/api/v{AIRFLOW - 1}", authorization()
    for error in json.loads(get(api + "/importErrors", login))["import_errors"]:
        raise RuntimeError(f"{error['filename']}: {error['stack_trace']}")
    found = {dag["dag_id"] for dag in json.loads(get(api + "/dags", login))["dags"]}
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
