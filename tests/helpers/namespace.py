"""A namespace without a cluster."""

from typing import Any

from mlctl.clients.kube import Kube


class Namespace(Kube):
    """Answers with the objects that are given for each kind (``pods=[...]``)."""

    def __init__(self, **kinds: list[dict[str, Any]]) -> None:
        self.kinds = kinds

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        return self.kinds.get(kind, [])

    def logs(self, pod: str, container: str, lines: int, *, previous: bool = False) -> str:
        return "before the restart" if previous else "after the restart"
