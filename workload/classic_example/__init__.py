"""Sentence classification workload: data, training, registry and batch inference.

Every command of :mod:`classic_example.cli` is one step of a pipeline and runs in its own container.
"""
