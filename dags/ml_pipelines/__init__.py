"""What the DAG files share: settings, the run's directory and the operator that runs a pod."""
