"""Which version of a model is the champion, the one that inference loads: decided on evidence."""

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy
from pydantic import BaseModel, Field, ValidationError

from classic_example import evaluate, inference, lineage
from classic_example.data import Labels, Row, read_labelled
from classic_example.errors import WorkloadError, names, not_there
from classic_example.files import read_json, write_json
from classic_example.model_files import LINEAGE_FILE
from classic_example.registry import base
from classic_example.registry.base import ModelRef, Registry


class Rules(BaseModel, extra="forbid", regex_engine="python-re"):
    """What a model has to reach to get the alias: a JSON object in the variable GATE.

    Accuracies are shares of 1: `margin` is how much more than the baseline's it takes, `tolerance`
    how much less than the champion's is still as good. A p value below `significance` is evidence.
    With `approval` a model that passes waits until somebody promotes it.
    """

    alias: str = Field("champion", pattern=r"^(?!latest$|v?\d+$)[A-Za-z0-9][A-Za-z0-9._-]*$")
    margin: float = Field(0.01, ge=-1, le=1)
    tolerance: float = Field(0.01, ge=0, le=1)
    significance: float = Field(0.05, ge=0, le=1)
    data: Literal["same", "any"] = "same"
    approval: bool = False


def rules() -> Rules:
    """Return the rules as the environment has them. Raises WorkloadError for an odd one."""
    try:
        return Rules.model_validate_json(os.environ.get("GATE") or "{}")
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, ("GATE", *wrong["loc"])))
        raise WorkloadError(f"rules of the gate: {where}: {wrong['msg']}") from None


def gate(registry: Registry, reference: str, model: Path, data: Path) -> dict[str, Any]:
    """Compare a version with baseline and champion on gold.csv; promote it if it stands the test.

    `model` has the version's files, `data` train.csv and gold.csv, rows that took part in no
    training and no choice. The version gets the decision as tags, the model a file gate.json.
    Raises WorkloadError for the rules, the files, the registry.
    """
    law, ref = rules(), ModelRef.parse(reference)
    if not (data / "gold.csv").is_file():
        raise not_there(data / "gold.csv", "load-data, of data with labels,")
    known = registry.find(ref)
    known = {key: known[key] for key in ("version", "version_url")}
    version, champion = known["version"], find_champion(registry, ref.name, law.alias)
    if champion.get("version") == version:
        # By an earlier try that was killed after it, or by somebody.
        return {"decision": "promoted", "reason": "it is the champion", **known}
    figures, against = compare(registry, law, champion, model, data)
    if find_champion(registry, ref.name, law.alias).get("version") != champion.get("version"):
        # By a run at the same time: it is that one which has to be matched.
        return gate(registry, reference, model, data)
    decision = "refused" if against else "passed" if law.approval else "promoted"
    reason = "; ".join(against) or f"no worse than {champion.get('version', 'the baseline')}"
    result = {"decision": decision, "reason": reason, **known, **figures}
    write_json(model / "gate.json", result)
    low, high = figures["accuracy_interval"]
    reached = f"{figures['accuracy']:.4f} ({low:.4f} to {high:.4f})"
    tags = {"gate_decision": decision, "gate_reason": reason, "gate_accuracy": reached}
    if decision == "promoted":
        run = lineage.of_this_run()
        by = " ".join(["gate", *(run[key] for key in ("dag_id", "run_id") if key in run)])
        promote(registry, f"{ref.name}:{version}", law.alias, by, reason, **tags)
    else:
        registry.mark(ModelRef(ref.name, version), tags)
    return result


def compare(
    registry: Registry, law: Rules, champion: dict[str, Any], model: Path, data: Path
) -> tuple[dict[str, Any], list[str]]:
    """Return the figures of a model beside baseline and champion, and what speaks against it."""
    challenger = inference.load_model(model)
    labels = Labels.named(challenger.labels)
    gold, _ = read_labelled(data / "gold.csv", labels)
    train, _ = read_labelled(data / "train.csv", labels)
    simple, _ = evaluate.baseline_predictions(train, gold)
    results = [was_right(challenger, gold, labels), simple == [row.label for row in gold]]
    against = []
    if champion:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            reference = f"{champion['name']}:{champion['version']}"
            base.load_from_registry(registry, reference, Path(scratch, "champion"))
            other = inference.load_model(Path(scratch, "champion"))
        if set(other.labels) == set(labels.names):
            results.append(was_right(other, gold, labels))
        else:
            against.append(
                f"its labels are {names(labels.names)}, the champion's {names(other.labels)}: they "
                "cannot be compared; promote it by hand, or give it a name of its own"
            )
        known = (read_json(model / LINEAGE_FILE), champion["tags"])
        source, champions = (one.get("data_source", "unknown data") for one in known)
        if source != champions and law.data == "same":
            against.append(
                f"it was trained on {source}, the champion on {champions}; if that is meant, let "
                "the gate take any data (pipelines.model.gate.data)"
            )
    figures, missed = judge(law, *results)
    return {"champion_version": champion.get("version", ""), **figures}, against + missed


def was_right(model: Any, rows: list[Row], labels: Labels) -> numpy.ndarray:
    """Return for each row whether a model says its label, as inference has it."""
    probabilities, _ = inference.predict(model, [row.sentence for row in rows])
    numbers = [labels.numbers[label] for label in model.labels]
    return numpy.take(numbers, numpy.argmax(probabilities, axis=1)) == [row.label for row in rows]


def judge(
    law: Rules, right: numpy.ndarray, baseline: numpy.ndarray, champion: numpy.ndarray | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return the figures of a model, and the rules that it does not keep.

    The three say for the same rows whether they were right: booleans, shape (rows,). The p value
    and the interval of the difference are of the champion, without one of the baseline.
    """
    other = baseline if champion is None else champion
    # Rounded, since 0.81 + 0.01 is more than 0.82 to a computer.
    accuracy, simple, best = (round(float(one.mean()), 6) for one in (right, baseline, other))
    p_value = evaluate.mcnemar(right, other)
    figures = {
        "rows": len(right),
        "accuracy": accuracy,
        "accuracy_interval": evaluate.interval(right),
        "baseline_accuracy": simple,
        **({} if champion is None else {"champion_accuracy": best}),
        "difference_interval": evaluate.interval(right, other),
        "p_value": p_value,
    }
    against, short = [], f"its accuracy of {accuracy:.4f} is"
    if accuracy < round(simple + law.margin, 6):
        against.append(f"{short} not {law.margin:g} (margin) above the baseline's {simple:.4f}")
    if champion is None:
        if law.margin >= 0 and p_value >= law.significance:
            against.append(f"{len(right)} rows do not show that it beats the baseline")
    elif accuracy < round(best - law.tolerance, 6):
        less = f"more than {law.tolerance:g} (tolerance) below"
        against.append(f"{short} {less} the champion's {best:.4f}")
    elif accuracy < best and p_value < law.significance:
        against.append(f"it is worse than the champion, and not by chance (p {p_value:.2g})")
    return figures, against


def promote(
    registry: Registry, reference: str, alias: str, by: str, reason: str, **tags: str
) -> dict[str, Any]:
    """Move the alias to a version, whatever the gate says of it; its tags say when, who and why."""
    ref, alias = ModelRef.parse(reference), alias or rules().alias
    version = registry.find(ref)["version"]
    before = find_champion(registry, ref.name, alias).get("version", "")
    if version != before:
        audit = {
            "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "promoted_by": by,
            "promoted_over": before,
            "promotion_reason": reason,
            **tags,
        }
        known = {key: text for key, text in audit.items() if text}
        registry.mark(ModelRef(ref.name, version), known, alias)
    return {"name": ref.name, "alias": alias, "version": version, "before": before}


def rollback(registry: Registry, name: str, alias: str, by: str, reason: str) -> dict[str, Any]:
    """Give the alias back to the version that the champion was promoted over.

    Whom that one had followed stays noted: done again, it goes back one further. Raises
    WorkloadError when there is no champion, or none was before it.
    """
    champion = registry.find(ModelRef(name, alias or rules().alias))
    version, before = champion["version"], champion["tags"].get("promoted_over")
    if not before:
        raise WorkloadError(
            f"{name} {version} was promoted over no other version, so there is none to go back to; "
            "`make promote V=N` takes any"
        )
    followed = registry.find(ModelRef(name, before))["tags"].get("promoted_over", "")
    why = f"rollback from {version} {reason}".strip()
    return promote(registry, f"{name}:{before}", alias, by, why, promoted_over=followed)


def find_champion(registry: Registry, name: str, alias: str) -> dict[str, Any]:
    """Return what is known about the version with the alias, nothing where there is none yet."""
    try:
        return registry.find(ModelRef(name, alias))
    except base.UnknownVersion:
        return {}
