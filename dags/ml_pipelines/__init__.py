"""What a DAG file needs: `from ml_pipelines import PodOperator`."""


def __getattr__(name: str) -> object:
    """Import the operator when it is asked for: other modules here are used without Airflow."""
    if name == "PodOperator":
        from ml_pipelines.operator import PodOperator

        return PodOperator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
