"""The fault a user can act on, and how its text is made safe to print."""

import base64
import os
import re
from pathlib import Path

# Environment variables whose values must never reach a log.
SECRET_VARIABLES = (
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "HF_TOKEN",
)


class WorkloadError(Exception):
    """An expected fault; its text is one line that names the thing and the way out."""


class PostponedError(WorkloadError):
    """A fault that may be gone at the next try: what was made until then is kept for it."""


def names(items: object) -> str:
    """Return items as `a, b, c`, cut after 20."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:20]) + (", ..." if len(texts) > 20 else "")


def not_there(path: Path | str, maker: str) -> WorkloadError:
    """Return the error for an input that is missing; `maker` names what makes it.

    In a run of a pipeline that step has succeeded before this one was started. The input is gone
    since then, as happens when a single task of a run that has ended is cleared.
    """
    if os.environ.get("ML_PIPELINES_RUN_ID"):
        return WorkloadError(
            f"{path} is gone: clean_up removes the files of a run when it ends; clear all tasks of "
            "this run, or start a new one"
        )
    return WorkloadError(f"{path} does not exist; {maker} makes it")


def scrub(text: str) -> str:
    """Return `text` without the value of any secret variable, plain or as basic-auth base64."""
    for name in SECRET_VARIABLES:
        if secret := os.environ.get(name, "").strip():
            basic = base64.b64encode(f"api:{secret}".encode()).decode()
            text = text.replace(secret, "***").replace(basic, "***")
    # A password in an address: http://user:password@host
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)


def one_line(error: BaseException, limit: int = 600) -> str:
    """Return the text of `error` on one line without secrets, at most `limit` characters."""
    text = scrub(" ".join(str(error).split()) or type(error).__name__)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def reason(error: BaseException) -> str:
    """Return why a connection failed, without the layers of wrapping."""
    text = one_line(error, 2000)
    known = re.search(
        "Connection refused|Name or service not known|Temporary failure in name resolution|"
        "No route to host|Network is unreachable|timed out|certificate verify failed|"
        "Remote end closed connection",
        text,
    )
    return known[0] if known else text[:200]
