"""Files on a claim, as the pods of tasks see them: through a pod that mounts it."""

from mlctl.clients.helper_pod import HelperPod
from mlctl.clients.kube import Kube

USER = 10001
"""The identity of the task pods: their files belong to it."""


class Volume(HelperPod):
    """A pod with a claim at /volume for one block; each look at the files is a command in it."""

    def __init__(self, kube: Kube, claim: str, image: str, *, read_only: bool = True) -> None:
        mount = {"name": "storage", "mountPath": "/volume", "readOnly": read_only}
        super().__init__(
            kube,
            f"on the claim {claim}",
            USER,
            {"app.kubernetes.io/name": "ml-pipelines-volume-reader"},
            {"name": "reader", "image": image, "volumeMounts": [mount]},
            volumes=[{"name": "storage", "persistentVolumeClaim": {"claimName": claim}}],
        )

    def read(self, path: str) -> str:
        """Return the text of a file; ``path`` is relative to the volume's root.

        Raises UserError when the file is not there.
        """
        return self.run("cat", f"/volume/{path}")

    def files(self, below: str = "") -> list[str]:
        """Return the paths of all files below a directory, relative to the volume's root."""
        found = self.run("find", "/volume", "-type", "f", "-printf", "%P\\n").splitlines()
        return sorted(path for path in found if path.startswith(f"{below}/" if below else ""))
