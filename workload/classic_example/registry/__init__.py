"""Model registries: one interface, Weights & Biases or MLflow behind it, chosen by REGISTRY."""

import os

from classic_example.errors import WorkloadError
from classic_example.registry.base import ModelRef, Registry

__all__ = ["ModelRef", "Registry", "registry_from_environment"]


def registry_from_environment() -> Registry:
    """Return the registry that REGISTRY names, else a configured one; or raise WorkloadError."""
    names = ("WANDB_API_KEY", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "REGISTRY")
    key, server, experiment, wanted = (os.environ.get(name, "").strip() for name in names)
    match wanted.lower() or ("wandb" if key else "mlflow" if server else ""):
        case "wandb":
            from classic_example.registry.wandb_registry import WandbRegistry

            return WandbRegistry()
        case "mlflow":
            from classic_example.registry.mlflow_registry import MlflowRegistry

            return MlflowRegistry(server, experiment or "ml-pipelines")
        case "":
            raise WorkloadError(
                "no model registry is configured; set REGISTRY=wandb with WANDB_API_KEY, or "
                "REGISTRY=mlflow with MLFLOW_TRACKING_URI"
            )
    raise WorkloadError(f"REGISTRY={wanted!r} is not known; allowed: wandb, mlflow")
