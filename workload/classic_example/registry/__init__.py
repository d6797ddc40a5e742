"""Model registries: one interface, Weights & Biases or MLflow behind it, chosen by REGISTRY."""

import os

from classic_example.errors import WorkloadError
from classic_example.registry.base import ModelRef, Registry

__all__ = ["ModelRef", "Registry", "registry_from_environment"]


def registry_from_environment() -> Registry:
    """Return the registry that REGISTRY names.

    Without REGISTRY, the one that is configured: W&B when it has a key, else MLflow when it has an
    address.

    Raises:
        WorkloadError: REGISTRY is unknown, or nothing is configured.
    """
    wanted = os.environ.get("REGISTRY", "").strip().lower()
    if not wanted:
        if os.environ.get("WANDB_API_KEY"):
            wanted = "wandb"
        elif os.environ.get("MLFLOW_TRACKING_URI"):
            wanted = "mlflow"
        else:
            raise WorkloadError(
                "no model registry is configured; set REGISTRY=wandb with WANDB_API_KEY, or "
                "REGISTRY=mlflow with MLFLOW_TRACKING_URI"
            )
    if wanted == "wandb":
        from classic_example.registry.wandb_registry import WandbRegistry

        return WandbRegistry()
    if wanted == "mlflow":
        from classic_example.registry.mlflow_registry import MlflowRegistry

        return MlflowRegistry.from_environment()
    raise WorkloadError(f"REGISTRY={wanted!r} is not known; allowed: wandb, mlflow")
