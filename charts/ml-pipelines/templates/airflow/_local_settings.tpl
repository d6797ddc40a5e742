{{/*
What every Airflow process runs at its start: airflow.airflowLocalSettings includes it. Airflow would
copy the names that it leaves behind into its own settings: that is one.

The provider's modules are mended when they are imported, before anybody takes a name out of them:
importing them here would cost each process 0.3 s. Airflow runs this before it imports any.
*/}}
{{- define "ml-pipelines.airflowLocalSettings" -}}
class _NoAuthManager:
    @staticmethod
    def get_cli_commands():
        return []


def _ml_pipelines():
    import json
    import logging
    import os
    import sys
    import time
    from contextlib import suppress
    from datetime import datetime, timedelta
    from importlib import import_module
    from importlib.machinery import PathFinder

    from airflow import policies, settings
    from airflow.configuration import conf
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    # Airflow 2.9 forks (its health server, the DAG processor, each task) while pooled database
    # connections are open. The child's first query tests an inherited one with SELECT 1, and only
    # then sees that it is the parent's; the parent may lose an answer that it waits for, without
    # end. So a child begins with an empty pool. (Airflow 3 does the same by itself.)
    def forget_inherited_connections():
        engine = getattr(settings, "engine", None)
        if engine is not None:
            engine.dispose(close=False)

    os.register_at_fork(after_in_child=forget_inherited_connections)

    # A worker of Airflow 2.9 that finds no database ends, which costs a try: one that starts, or
    # hands over a result, while the database fails over waits for it. Others are restarted.
    def wait_for_database(dialect, _record, arguments, options):
        give_up = time.monotonic() + 300
        while True:
            try:
                return dialect.connect(*arguments, **options)
            except dialect.dbapi.OperationalError as error:
                if time.monotonic() >= give_up:
                    raise
                logging.getLogger("airflow.task").warning("Waiting for the database: %s", error)
            time.sleep(2)

    # Such a worker asks the auth manager for the commands that it adds to the command line, and for
    # nothing else: that of FAB brings Flask along, a seventh of what a worker imports.
    if sys.argv[1:3] == ["tasks", "run"]:
        event.listen(Engine, "do_connect", wait_for_database)
        conf.read_dict({"core": {"auth_manager": f"{__name__}._NoAuthManager"}})

    # Of an id without a Latin letter or digit only a hash is left, behind a dash; Kubernetes
    # refuses a label or name that begins with one.
    def mend_labels(module):
        make = module.make_safe_label_value
        module.make_safe_label_value = lambda string: make(string).lstrip("-")

    def mend_names(module):
        add = module.add_unique_suffix
        module.add_unique_suffix = lambda **arguments: add(**arguments).lstrip("-")

    # The profile "restricted" admits the sidecar that hands XComs over; its user is the pod's.
    def mend_sidecar(module):
        from kubernetes.client import models

        sidecar = module.PodDefaults.SIDECAR_CONTAINER
        sidecar.security_context = models.V1SecurityContext(
            allow_privilege_escalation=False,
            capabilities=models.V1Capabilities(drop=["ALL"]),
            seccomp_profile=models.V1SeccompProfile(type="RuntimeDefault"),
        )
        sidecar.resources.limits = {"memory": "64Mi"}

    # For the page Airflow 2.9 reads a whole log, and holds it several times: one of 300 MB ends the
    # webserver. Of a long one it gets beginning and end. (Airflow 3 reads it line by line.)
    def mend_logs(module):
        part = 4 << 20
        handler = module.FileTaskHandler
        if not isinstance(vars(handler)["_read_from_local"], staticmethod):
            return

        def read(worker_log_path):
            messages, logs = [], []
            for path in sorted(worker_log_path.parent.glob(f"{worker_log_path.name}*")):
                messages.append(f"  * {path}")
                size = path.stat().st_size
                with path.open("rb") as file:
                    text = file.read(2 * part)
                    if size > 2 * part:
                        file.seek(-part, os.SEEK_END)
                        begin = text[:part].rpartition(b"\n")[0]
                        end = file.read().partition(b"\n")[2]
                        out = (size - len(begin) - len(end)) / 1e6
                        note = f"... {out:.0f} MB are left out here; they are in {path} ..."
                        text = b"\n".join([begin, note.encode(), end])
                logs.append(text.decode(errors="replace"))
            return ["Found local files:", *messages] if messages else [], logs

        handler._read_from_local = staticmethod(read)

    # Tasks may run in namespaces that the values list; of others the API server says it at length.
    def mend_refusals(module):
        tell = module.ApiException.__str__

        def told(self):
            said = str(self.body)
            if self.status != 403 or " in the namespace " not in said:
                return tell(self)
            with suppress(ValueError, KeyError):
                said = json.loads(said)["message"]
            return f"{said} (list the namespace in pipelines.namespaces of the chart's values)"

        module.ApiException.__str__ = told

    provider = "airflow.providers.cncf.kubernetes"
    mends = {
        # It forks for each file of DAGs: what nearly all import is there before, and a second of
        # each is saved. (parsing_pre_import_modules looks into the file alone, not further.)
        "airflow.dag_processing.manager": lambda _: import_module(f"{provider}.operators.pod"),
        "kubernetes.client.exceptions": mend_refusals,
        "airflow.utils.log.file_task_handler": mend_logs,
        f"{provider}.pod_generator": mend_labels,
        f"{provider}.kubernetes_helper_functions": mend_names,
        f"{provider}.utils.xcom_sidecar": mend_sidecar,
    }

    # What of Airflow 3 is changed for tasks that its triggerer runs, by a package of its image.
    with suppress(ImportError):
        from one_pod.changes import MENDS

        mends.update(MENDS)

    def values():
        path = os.environ.get("ML_PIPELINES_SETTINGS") or "/opt/airflow/ml-pipelines/settings.json"
        with suppress(FileNotFoundError), open(path) as file:  # the webserver has none
            return json.load(file)
        return {}

    # And of Airflow 2.9, for workers that go on with another task.
    with suppress(ImportError):
        from next_task import executor

        executor.values = values
        mends.update(executor.MENDS)

    class Mending:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name not in mends:
                return None
            spec = PathFinder.find_spec(name, path, target)
            execute = spec.loader.exec_module

            def execute_and_mend(module):
                execute(module)
                mends[name](module)

            spec.loader.exec_module = execute_and_mend
            return spec

    sys.meta_path.insert(0, Mending)
    refusals = "kubernetes.client.exceptions"
    if refusals in sys.modules:  # Airflow 2 has imported it by now
        mends[refusals](sys.modules[refusals])

    # pipelines.dags of the values, for DAGs of any author. First, so that a policy below has the
    # last word.
    class FromValues:
        @policies.hookimpl(tryfirst=True)
        def dag_policy(self, dag):
            wanted = values().get("dags", {}).get(dag.dag_id, {})
            for name in ("max_active_runs", "max_active_tasks"):
                setattr(dag, name, int(wanted.get(name, getattr(dag, name))))
            if "dagrun_timeout" in wanted:
                dag.dagrun_timeout = timedelta(seconds=wanted["dagrun_timeout"])
            if "schedule" in wanted:
                self.schedule(dag, wanted["schedule"])

        # Another DAG gets the schedule, so that it becomes what Airflow makes of it. What a DAG
        # waits for besides the clock stays.
        @staticmethod
        def schedule(dag, schedule):
            from airflow import DAG

            try:
                from airflow.sdk import AssetOrTimeSchedule

                of_assets, assets = "assets", getattr(dag.timetable, "asset_condition", None)
            except ImportError:  # Airflow 2
                from airflow.timetables.datasets import DatasetOrTimeSchedule as AssetOrTimeSchedule

                of_assets, assets = "datasets", dag.dataset_triggers
            begin = datetime(2000, 1, 1, tzinfo=dag.timezone)
            other = DAG(dag.dag_id, schedule=schedule, start_date=begin)
            other.timetable.validate()
            if assets:
                clock = AssetOrTimeSchedule(timetable=other.timetable, **{of_assets: assets})
                other = DAG(dag.dag_id, schedule=clock if schedule else assets, start_date=begin)
            for name in ("timetable", "schedule_interval"):
                if hasattr(other, name):
                    setattr(dag, name, getattr(other, name))

    of_airflow_2 = getattr(settings, "POLICY_PLUGIN_MANAGER", None)
    (of_airflow_2 or settings.get_policy_plugin_manager()).register(FromValues())


_ml_pipelines()
del _ml_pipelines
{{- end }}
