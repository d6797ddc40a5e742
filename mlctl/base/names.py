"""What the parts of an installation are called, each name once."""

DAG_IDS = TRAINING, INFERENCE = "training_dag", "inference_dag"
"""The pipelines that ship with this project, in the order in which `make run` runs them."""

APPROVAL = "approve_model"
"""The task of a training at which a person is asked, where the values want that."""

AIRFLOW_IMAGES = {"2": "airflow", "3": "airflow3"}
"""Which image has which Airflow; its major version is what the variable AIRFLOW says."""

RELEASE = "ml-pipelines"
NAMESPACE = "ml-pipelines"
AIRFLOW_SERVICE, AIRFLOW_PORT = f"{RELEASE}-webserver", 8080
MLFLOW_SERVICE, MLFLOW_PORT = f"{RELEASE}-mlflow", 5000
SETTINGS_CONFIG_MAP = f"{RELEASE}-settings"

REPOSITORY = "localhost/ml-pipelines"
"""What the full names of this project's images begin with."""
