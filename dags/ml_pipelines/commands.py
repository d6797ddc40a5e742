"""Command lines of the task pods."""

from __future__ import annotations

from ml_pipelines.runs import MOUNT_PATH


def cli(*arguments: str) -> list[str]:
    """The workload's command line; no shell, so every argument arrives as it is written here."""
    return ["python", "classic_example/cli.py", *arguments]


def shell(script: str) -> list[str]:
    """One script for `sh`, which ends at the first failing command and at an unset variable."""
    return ["sh", "-ceu", script]


# `find` and not `rm -rf /tmp/*`: it also takes hidden files, and finds nothing to complain about
# in an empty directory. The mount point itself stays. The log lists what was removed.
EMPTY_RUN_DIRECTORY = shell(f"find {MOUNT_PATH} -mindepth 1 -print -delete")

# The predictions are what an inference run is for: they stay, the data and the model go. Into the
# space that run_inference leaves for it in pred.json comes the digest of the image it has run.
KEEP_PREDICTIONS = shell(
    f"""\
find {MOUNT_PATH} -mindepth 1 -maxdepth 1 ! -name pred.csv ! -name pred.json \\
  -print -exec rm -rf {{}} +
if [ -e {MOUNT_PATH}/pred.csv ]; then
  echo "predictions kept on the training storage: $ML_PIPELINES_RUN_DIRECTORY/pred.csv"
fi
if [ -e {MOUNT_PATH}/pred.json ]; then
  sed -i 's/^  "image_digest": ""/  "image_digest": "'"$ML_PIPELINES_INFERENCE_IMAGE_DIGEST"'"/' \\
    {MOUNT_PATH}/pred.json
fi"""
)
