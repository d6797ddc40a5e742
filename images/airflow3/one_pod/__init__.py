"""Runs a task's pod from Airflow 3's triggerer, without a worker. Part of its image, not of a DAG.

* launch.py: which tasks, and what the triggerer is given of them; the DAGs' operator asks it.
* trigger.py: what one try does, from its pod's creation to the end of the task.
* pods.py: requests to the API server, one watch for all tries, how many pods may run at once.
* start.py: how long a pod may take to start.
* log.py: a container's log into the task's log. manifest.py: a pod as JSON.
* changes.py: what of Airflow is changed for it, and why.

The image adds failures.py, lineage.py and pod_manager.py of dags/ml_pipelines/: words, results and
patience are the same with a worker.
"""
