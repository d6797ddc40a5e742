"""Model registries: one interface, Weights & Biases or MLflow behind it, chosen by REGISTRY."""

import os

from classic_example.errors import WorkloadError
from classic_example.registry.base import ModelRef, Registry

__all__ = ["ModelRef", "Registry", "registry_from_environment"]


def registry_from_environment() -> Registry:
    """Return the registry that REGISTRY names, else W&B if it has a key, else MLflow.

    Raises:
        WorkloadError: REGISTRY is unknown, or nothing is configured.
    """
    has_key, has_server = map(os.environ.get, ("WANDB_API_KEY", "MLFLOW_TRACKING_URI"))
    configured = "wandb" if has_key else "mlflow" if has_server else ""
    match wanted := os.environ.get("REGISTRY", "").strip().lower() or configured:
        case "wandb":
            from classic_example.registry.wandb_registry import WandbRegistry

            return WandbRegistry()
        case "mlflow":
            from classic_example.registry.mlflow_registry import MlflowRegistry

            return MlflowRegistry.from_environment()
        case "":
            raise WorkloadError(
                "no model registry is configured; set REGISTRY=wandb with WANDB_API_KEY, or "
                "REGISTRY=mlflow with MLFLOW_TRACKING_URI"
            )
    raise WorkloadError(f"REGISTRY={wanted!r} is not known; allowed: wandb, mlflow")
