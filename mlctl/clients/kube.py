"""What the commands and tests ask a cluster for, through kubectl."""

import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from mlctl.base.errors import UserError
from mlctl.base.wheels import kubectl


class KubectlError(UserError):
    """kubectl ended with an error; the text is what it printed."""


class Kube:
    """One namespace of one cluster."""

    def __init__(self, kubeconfig: Path | str, namespace: str) -> None:
        self.kubeconfig = Path(kubeconfig)
        self.namespace = namespace

    def command(self, *words: str) -> list[str]:
        """Return the kubectl command line for this cluster and namespace."""
        config = ["--kubeconfig", str(self.kubeconfig)] if str(self.kubeconfig) != "." else []
        return [str(kubectl()), *config, "--namespace", self.namespace, *words]

    def run(
        self, *words: str, stdin: str | None = None, timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return the finished process.

        Raises KubectlError when it fails (unless ``check`` is False) or takes longer than
        ``timeout`` seconds.
        """
        # Without an input of its own kubectl would read the terminal's.
        feed: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        try:
            result = subprocess.run(
                self.command(*words),
                **feed,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise KubectlError(f"kubectl {words[0]} gave no answer in {timeout:.0f} s") from None
        if check and result.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(words[:4])}: {result.stderr.strip()}")
        return result

    def transfer(self, *words: str, source: Path | None = None, target: Path | None = None) -> None:
        """Run kubectl with a file as its input, or one that takes its output, byte for byte.

        Raises KubectlError when it fails.
        """
        nothing = Path(os.devnull)
        with (source or nothing).open("rb") as feed, (target or nothing).open("wb") as sink:
            result = subprocess.run(
                self.command(*words), stdin=feed, stdout=sink, stderr=subprocess.PIPE
            )
        if result.returncode != 0:
            said = result.stderr.decode(errors="replace").strip()
            raise KubectlError(f"kubectl {' '.join(words[:4])}: {said}")

    def fetch_tar(self, *words: str, target: Path) -> None:
        """Run kubectl and write what it prints, a tar, into a file.

        Raises KubectlError when it fails, and when the tar broke off: kubectl does not always see
        that.
        """
        self.transfer(*words, target=target)
        try:
            with tarfile.open(target) as tar:
                tar.getmembers()
        except tarfile.TarError as error:
            raise KubectlError(f"{target.name} broke off on its way ({error}): again") from None

    def problem(self) -> str:
        """Return why the API server is not ready, '' when it is."""
        try:
            self.run("get", "--raw", "/readyz", "--request-timeout=10s")
        except KubectlError as error:
            return str(error)
        return ""

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return one object, or None when there is none."""
        result = self.run("get", kind, name, "--output", "json", "--ignore-not-found")
        return json.loads(result.stdout) if result.stdout.strip() else None

    def items(
        self, kind: str, selector: str = "", *, all_namespaces: bool = False
    ) -> list[dict[str, Any]]:
        """Return the objects of a kind in the namespace, or in all of them."""
        only = ["--selector", selector] if selector else []
        only += ["--all-namespaces"] if all_namespaces else []
        return json.loads(self.run("get", kind, "--output", "json", *only).stdout)["items"]

    def secret(self, name: str, key: str) -> str:
        """Return one value of a Secret. Raises KubectlError when there is none."""
        template = f'{{{{index .data "{key}" | base64decode}}}}'
        return self.run("get", "secret", name, "--output", f"go-template={template}").stdout

    def logs(self, pod: str, container: str, lines: int, *, previous: bool = False) -> str:
        """Return the last lines of a container's log; an unreadable log is described."""
        earlier = ["--previous"] if previous else []
        result = self.run(
            "logs", pod, "--container", container, f"--tail={lines}", *earlier, check=False
        )
        return result.stdout if result.returncode == 0 else result.stderr

    def apply(self, manifest: dict[str, Any]) -> None:
        """Create the object or bring it up to date."""
        self.run("apply", "--filename", "-", stdin=json.dumps(manifest))
