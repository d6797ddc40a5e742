"""Clusters to run on: embedded (this machine, no Docker), kind, or an existing one."""

from mlctl.cluster.provider import Provider, provider

__all__ = ["Provider", "provider"]
