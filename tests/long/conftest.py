"""A cluster for each test alone, which is deleted at the end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mlctl.base.progress import Phases
from mlctl.clients.forward import free_port
from mlctl.stack import Stack


@contextmanager
def own_cluster() -> Iterator[Stack]:
    """Yield a cluster that is to be made; it is deleted at the end."""
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("CLUSTER", "embedded")
        environ.setenv("CLUSTER_NAME", os.environ.get("CLUSTER_NAME") or "ml-pipelines-long")
        environ.setenv("API_PORT", os.environ.get("API_PORT") or str(free_port(16443)))
        made = Stack()
        yield made
        made.cluster.clean(Phases())


@pytest.fixture
def stack() -> Iterator[Stack]:
    with own_cluster() as made:
        yield made
