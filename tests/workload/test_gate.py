"""The gate: what is evidence, which models it lets through, and the way back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from classic_example import cli as command_line
from classic_example import gate as gates
from classic_example.errors import WorkloadError
from classic_example.evaluate import interval, mcnemar
from classic_example.gate import Rules, gate, judge, promote, rollback
from classic_example.registry.base import ModelRef, unknown_alias
from workload_helpers import Cli, named_sentences, relabelled

ROWS = 1000
NOBODY = {"alias": "", "by": "", "reason": ""}


def right(share: float, seed: int = 0) -> numpy.ndarray:
    """Return for each of ROWS rows whether a model of this accuracy is right."""
    found = numpy.arange(ROWS) < round(share * ROWS)
    return numpy.random.default_rng(seed).permutation(found)


def changed(of: numpy.ndarray, worse: int, better: int, seed: int) -> numpy.ndarray:
    """Return a model that has other rows right: some fewer, some more."""
    source, new = numpy.random.default_rng(seed), of.copy()
    new[source.choice(numpy.flatnonzero(of), worse, replace=False)] = False
    new[source.choice(numpy.flatnonzero(~of), better, replace=False)] = True
    return new


def refusals(*models: numpy.ndarray, **rules: Any) -> list[str]:
    return judge(Rules(**rules), *models)[1]


BASELINE, CHAMPION = right(0.78, seed=1), right(0.82, seed=2)


def test_mcnemar_is_the_binomial_test_of_the_rows_that_differ():
    one, other = numpy.array([True] * 10 + [False] * 2), numpy.array([False] * 8 + [True] * 4)
    # 8 against 2: 2 * (1 + 10 + 45) / 2**10
    assert mcnemar(one, other) == pytest.approx(112 / 1024)
    assert mcnemar(other, one) == mcnemar(one, other)
    assert mcnemar(one, one) == 1


def test_interval_is_that_of_the_normal_distribution_where_rows_are_many():
    low, high = interval(CHAMPION)
    error = 1.96 * (0.82 * 0.18 / ROWS) ** 0.5
    assert [low, high] == pytest.approx([0.82 - error, 0.82 + error], abs=0.002)
    assert interval(CHAMPION) == [low, high]
    low, high = interval(CHAMPION, BASELINE)
    error = 1.96 * numpy.std(CHAMPION.astype(int) - BASELINE) / ROWS**0.5
    assert [low, high] == pytest.approx([0.04 - error, 0.04 + error], abs=0.002)
    assert interval(CHAMPION, CHAMPION) == [0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_each_of_20_worse_models_is_refused(seed: int):
    """Some by a little more than the tolerance, some by far."""
    worse = changed(CHAMPION, 30 + 18 * seed, 15, seed)
    assert refusals(worse, BASELINE, CHAMPION)
    # So is one within the tolerance, if it is not by chance: fewer rows differ than with others.
    assert refusals(changed(CHAMPION, 9, 0, seed), BASELINE, CHAMPION) == [
        "it is worse than the champion, and not by chance (p 0.0039)"
    ]


@pytest.mark.parametrize("seed", range(5))
def test_equal_and_better_models_pass(seed: int):
    for worse, better in ((0, 0), (40, 40), (30, 21), (10, 40)):
        assert refusals(changed(CHAMPION, worse, better, seed), BASELINE, CHAMPION) == []


def test_a_first_model_has_to_beat_the_baseline_with_evidence():
    assert refusals(CHAMPION, BASELINE) == []
    assert refusals(right(0.51), BASELINE) == [
        "its accuracy of 0.5100 is not 0.01 (margin) above the baseline's 0.7800"
    ]
    lucky = changed(BASELINE, 60, 75, seed=3)
    assert refusals(lucky, BASELINE) == ["1000 rows do not show that it beats the baseline"]
    assert refusals(lucky, BASELINE, significance=1) == []


def test_rules_are_met_to_the_row():
    assert refusals(right(0.79), BASELINE, right(0.8), significance=0) == []
    assert len(refusals(right(0.789), BASELINE, right(0.8), significance=0)) == 2
    assert (
        refusals(right(0.789), BASELINE, right(0.8), significance=0, margin=0, tolerance=0.02) == []
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"margin": 2}', "GATE.margin: Input should be less than or equal to 1"),
        ('{"margins": 0}', "GATE.margins: Extra inputs are not permitted"),
        ('{"alias": "latest"}', "GATE.alias: String should match pattern"),
        ('{"data": "glue"}', "GATE.data: Input should be 'same' or 'any'"),
        ("high", "GATE: Invalid JSON"),
    ],
)
def test_odd_rules_are_refused(monkeypatch: pytest.MonkeyPatch, text: str, told: str):
    monkeypatch.setenv("GATE", text)
    with pytest.raises(WorkloadError, match="^rules of the gate: " + told):
        gates.rules()


class Shelf:
    """A registry whose versions are directories: v1, v2 ..."""

    name = "shelf"

    def __init__(self, *models: Path) -> None:
        self.models = {f"v{at}": model for at, model in enumerate(models, 1)}
        self.tags: dict[str, dict[str, str]] = {
            version: {"data_source": "one"} for version in self.models
        }
        self.aliases: dict[str, str] = {}

    def find(self, ref: ModelRef) -> dict[str, Any]:
        version = self.aliases.get(ref.alias, ref.alias)
        if version not in self.models:
            raise unknown_alias(self.name, ref, [*self.models, *self.aliases])
        tags = dict(self.tags[version])
        return {"name": ref.name, "version": version, "version_url": "", "tags": tags}

    def download(self, ref: ModelRef, directory: Path) -> dict[str, Any]:
        found = self.find(ref)
        shutil.copytree(self.models[found["version"]], directory, dirs_exist_ok=True)
        return found

    def mark(self, ref: ModelRef, tags: dict[str, str], alias: str = "") -> None:
        self.tags[self.find(ref)["version"]] |= tags
        if alias:
            self.aliases[alias] = ref.alias


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(*[Path("nowhere")] * 4)


def test_promotion_is_noted_and_the_way_back_leads_to_the_first(shelf: Shelf):
    with pytest.raises(WorkloadError, match=r"no version or alias 'champion'; .*make promote V=N"):
        rollback(shelf, "m", **NOBODY)
    for version in ("v1", "v2", "v4", "v4"):
        promote(shelf, f"m:{version}", "", "ann", f"try {version}")
    assert shelf.aliases == {"champion": "v4"}
    assert shelf.tags["v4"].pop("promoted_at").endswith("+00:00")
    assert shelf.tags["v4"] == {
        "data_source": "one",
        "promoted_by": "ann",
        "promoted_over": "v2",
        "promotion_reason": "try v4",
    }
    assert rollback(shelf, "m", "", "bob", "bad on Mondays")["version"] == "v2"
    assert shelf.tags["v2"]["promotion_reason"] == "rollback from v4 bad on Mondays"
    assert shelf.tags["v2"]["promoted_by"] == "bob"
    assert rollback(shelf, "m", "", "bob", "") == {
        "name": "m",
        "alias": "champion",
        "version": "v1",
        "before": "v2",
    }
    with pytest.raises(WorkloadError, match="m v1 was promoted over no other version"):
        rollback(shelf, "m", **NOBODY)
    assert shelf.aliases == {"champion": "v1"}


def test_way_back_to_a_version_that_is_gone_says_what_there_is(shelf: Shelf):
    promote(shelf, "m:v1", "", "", "")
    promote(shelf, "m:v2", "", "", "")
    del shelf.models["v1"]
    with pytest.raises(WorkloadError, match="no version or alias 'v1'; there are: v2, v3, v4"):
        rollback(shelf, "m", **NOBODY)


def test_another_alias_is_another_champion(shelf: Shelf, monkeypatch: pytest.MonkeyPatch):
    promote(shelf, "m:v1", "", "", "")
    promote(shelf, "m:v2", "shadow", "", "")
    monkeypatch.setenv("GATE", '{"alias": "blue"}')
    promote(shelf, "m:v3", "", "", "")
    assert shelf.aliases == {"champion": "v1", "shadow": "v2", "blue": "v3"}


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with train.csv and gold.csv, whose labels are names."""
    directory = tmp_path_factory.mktemp("gold")
    for name, offset in (("train", 0), ("gold", 400)):
        named_sentences(directory / f"{name}.csv", offset)
    return directory


@pytest.fixture(scope="module")
def models(
    trained: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """Return a good model, one that says the opposite, and one with other labels."""
    directory = tmp_path_factory.mktemp("models")
    _, source = trained
    good = relabelled(source, directory / "good", "negative", "positive")
    (good / "lineage.json").write_text(json.dumps({"data_source": "one"}))
    bad = relabelled(good, directory / "bad", "positive", "negative")
    return good, bad, relabelled(good, directory / "other", "no", "yes")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run a command of the command line against a shelf."""

    def run(shelf: Shelf, *words: object) -> dict[str, Any]:
        monkeypatch.setattr("classic_example.registry.registry_from_environment", lambda: shelf)
        return command_line.run(**vars(command_line.parser().parse_args(list(map(str, words)))))

    return run


@pytest.fixture
def guessing_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a baseline that can be beaten: the words of the tests are easy."""
    monkeypatch.setattr(
        "classic_example.evaluate.baseline_predictions",
        lambda _, rows: (numpy.array([at % 3 == 0 for at in range(len(rows))], int), 0),
    )


@pytest.mark.usefixtures("guessing_baseline")
def test_gate_promotes_a_good_model_and_refuses_a_bad_one(
    run: Callable[..., dict[str, Any]],
    models: tuple[Path, ...],
    gold: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    good, bad, other = models
    shelf = Shelf(good, bad, good, other)
    monkeypatch.setenv("ML_PIPELINES_DAG_ID", "training_dag")
    monkeypatch.setenv("ML_PIPELINES_RUN_ID", "manual__1")
    # No champion yet.
    assert run(shelf, "gate", "m:v2", bad, gold)["decision"] == "refused"
    assert shelf.aliases == {}
    first = run(shelf, "gate", "m:v1", good, gold)
    assert first == json.loads((good / "gate.json").read_text())
    assert (first["decision"], first["accuracy"], first["rows"]) == ("promoted", 1, 60)
    assert (first["champion_version"], first["accuracy_interval"]) == ("", [1, 1])
    assert shelf.aliases == {"champion": "v1"}
    assert shelf.tags["v1"]["gate_accuracy"] == "1.0000 (1.0000 to 1.0000)"
    assert shelf.tags["v1"]["promoted_by"] == "gate training_dag manual__1"
    # The same again, as a retry would do it.
    again = run(shelf, "gate", "m:v1", good, gold)
    assert (again["decision"], again["reason"]) == ("promoted", "it is the champion")

    refused = run(shelf, "gate", "m:v2", bad, gold)
    assert refused["decision"] == "refused"
    assert (refused["champion_version"], refused["champion_accuracy"]) == ("v1", 1)
    assert refused["p_value"] < 1e-9
    assert "0.01 (tolerance) below the champion's 1.0000" in refused["reason"]
    assert shelf.tags["v2"]["gate_decision"] == "refused"
    assert shelf.tags["v2"]["gate_reason"] == refused["reason"]
    assert "promoted_at" not in shelf.tags["v2"]

    # What passes may have to wait for a person.
    monkeypatch.setenv("GATE", '{"approval": true}')
    assert run(shelf, "gate", "m:v3", good, gold)["decision"] == "passed"
    assert shelf.aliases == {"champion": "v1"}
    approved = run(shelf, "promote", "m:v3", "--by", "ann", "--reason", "looked at it")
    assert (approved["version"], approved["before"]) == ("v3", "v1")
    assert shelf.tags["v3"]["gate_decision"] == "passed"
    monkeypatch.delenv("GATE")
    assert run(shelf, "rollback", "m")["version"] == "v1"
    assert run(shelf, "gate", "m:v3", good, gold)["decision"] == "promoted"
    assert shelf.tags["v3"]["promoted_over"] == "v1"

    # Labels and data of another kind.
    for path in gold.iterdir():
        text = path.read_text().replace("negative", "no").replace("positive", "yes")
        (tmp_path / path.name).write_text(text)
    reason = run(shelf, "gate", "m:v4", other, tmp_path)["reason"]
    assert "labels are no, yes, the champion's negative, positive: they cannot be" in reason
    shelf.tags["v3"]["data_source"] = "two"
    reason = run(shelf, "gate", "m:v1", good, gold)["reason"]
    assert reason.startswith("it was trained on one, the champion on two; if that is meant, ")
    monkeypatch.setenv("GATE", '{"data": "any"}')
    assert run(shelf, "gate", "m:v1", good, gold)["decision"] == "promoted"


@pytest.mark.usefixtures("guessing_baseline")
def test_a_champion_of_meanwhile_is_the_one_to_match(
    models: tuple[Path, ...], gold: Path, monkeypatch: pytest.MonkeyPatch
):
    good, bad, _ = models
    shelf, judged = Shelf(bad, bad, good), gates.judge
    shelf.aliases["champion"] = "v1"

    def judge_while_another_run_promotes(*models: Any) -> Any:
        shelf.aliases["champion"] = "v3"
        return judged(*models)

    monkeypatch.setattr(gates, "judge", judge_while_another_run_promotes)
    monkeypatch.setenv("GATE", '{"margin": 0, "significance": 0}')
    assert gate(shelf, "m:v2", bad, gold)["champion_version"] == "v3"
    assert shelf.aliases == {"champion": "v3"}


def test_data_without_gold_rows_is_refused_before_anything_is_asked(
    cli: Cli, models: tuple[Path, ...], data_directory: Path
):
    env = {"REGISTRY": "mlflow", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    error = cli("gate", "m:v1", models[0], data_directory, env=env).error
    assert "gold.csv does not exist; load-data, of data with labels, makes it" in error
