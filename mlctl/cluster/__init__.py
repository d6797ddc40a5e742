"""Clusters to run on: embedded (this machine, no Docker), kind, or an existing one."""
