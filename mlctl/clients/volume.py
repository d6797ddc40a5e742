"""Files on a claim, as the pods of tasks see them: through a pod that mounts it."""

from mlctl.clients.helper_pod import HelperPod
from mlctl.clients.kube import Kube


class Volume(HelperPod):
    """A pod with a claim at /volume for one block; each look at the files is a command in it."""

    def __init__(self, kube: Kube, claim: str, image: str, *, read_only: bool = True) -> None:
        # The identity of the task pods: their files belong to it.
        identity = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
        mount = {"name": "storage", "mountPath": "/volume", "readOnly": read_only}
        reader = {
            "name": "reader",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [mount],
        }
        spec = {
            "automountServiceAccountToken": False,
            "securityContext": identity | {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [reader],
            "volumes": [{"name": "storage", "persistentVolumeClaim": {"claimName": claim}}],
        }
        labels = {"app.kubernetes.io/name": "ml-pipelines-volume-reader"}
        super().__init__(kube, "volume-reader", f"on the claim {claim}", spec, labels)

    def read(self, path: str) -> str:
        """Return the text of a file; ``path`` is relative to the volume's root.

        Raises UserError when the file is not there.
        """
        return self.run("cat", f"/volume/{path}")

    def files(self, below: str = "") -> list[str]:
        """Return the paths of all files below a directory, relative to the volume's root."""
        found = self.run("find", "/volume", "-type", "f", "-printf", "%P\\n").splitlines()
        return sorted(path for path in found if path.startswith(f"{below}/" if below else ""))
