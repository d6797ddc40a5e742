"""Container images of the project: built without a registry, a Docker engine or a daemon."""
