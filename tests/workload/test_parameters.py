"""Parameters of a run: what they go over, and what is said of wrong ones."""

import json
from pathlib import Path

import pytest
from classic_example import lineage, parameters
from classic_example.config import read_config
from classic_example.errors import WorkloadError
from workload_helpers import Cli

CONFIG = {
    "model_name_or_path": "base-of-the-file",
    "tokenizer_name": "tokenizer-of-the-file",
    "train_file": "t",
    "validation_file": "v",
    "output_dir": "o",
    "max_steps": 350,
    "learning_rate": 1e-4,
}


@pytest.fixture
def set_parameters(monkeypatch: pytest.MonkeyPatch):
    """Start a run with parameters, as the pipeline hands them on."""

    def put(content: object) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        monkeypatch.setenv("ML_PIPELINES_PARAMS", text)

    return put


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.mark.parametrize("text", ["", "{}", '{"max_steps": null, "data_source": null}'])
def test_null_and_missing_parameters_set_nothing(
    set_parameters, config: Path, monkeypatch: pytest.MonkeyPatch, text: str
):
    set_parameters(text)
    monkeypatch.setenv("TRAIN_MAX_STEPS", "50")
    assert parameters.of_this_run().given() == {}
    assert "parameters" not in lineage.of_this_run()
    read = read_config(config)
    assert (read.max_steps, read.learning_rate) == (50, 1e-4)
    assert read.model_name_or_path == "base-of-the-file"
    assert read.tokenizer_name == "tokenizer-of-the-file"


def test_parameters_go_over_file_and_variables(
    set_parameters, config: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRAIN_MAX_STEPS", "50")
    monkeypatch.setenv("TRAIN_SEED", "7")
    set_parameters({"max_steps": 20, "learning_rate": 1, "sample_size": 3})
    read = read_config(config)
    assert (read.max_steps, read.learning_rate, read.seed) == (20, 1.0, 7)


def test_another_base_model_comes_with_its_own_tokenizer(set_parameters, config: Path):
    set_parameters({"base_model": "prajjwal1/bert-tiny"})
    read = read_config(config)
    assert (read.model_name_or_path, read.tokenizer_name) == ("prajjwal1/bert-tiny", None)


def test_whole_number_may_be_written_as_a_float(set_parameters):
    # JSON Schema, and so Airflow, takes 50.0 for an integer.
    set_parameters('{"max_steps": 50.0}')
    assert parameters.of_this_run().given() == {"max_steps": 50}


def test_lineage_has_those_that_were_set(set_parameters):
    set_parameters({"model_name": None, "sample_size": 3, "model_version": "latest"})
    assert lineage.of_this_run()["parameters"] == '{"model_version": "latest", "sample_size": 3}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"max_step": 5}, "the run has an unknown parameter 'max_step'; did you mean 'max_steps'?"),
        ({"zzzz": 5}, "unknown parameter 'zzzz'; there are: max_steps, learning_rate, base_model"),
        ({"max_steps": 0}, "parameters of the run: max_steps is 0: input should be greater than 0"),
        ({"max_steps": "five"}, "max_steps is 'five': input should be a valid integer"),
        ({"max_steps": 2.5}, "max_steps is 2.5: input should be a valid integer"),
        ({"learning_rate": 2}, "learning_rate is 2: input should be less than or equal to 1"),
        ({"base_model": 7}, "base_model is 7: input should be a valid string"),
        ({"sample_size": -1}, "sample_size is -1: input should be greater than 0"),
        ([], "ML_PIPELINES_PARAMS must hold a JSON object, not list"),
        ("{'max_steps': 5}", "ML_PIPELINES_PARAMS is not valid JSON: "),
    ],
)
def test_wrong_parameter_is_refused_in_plain_words(set_parameters, content: object, message: str):
    set_parameters(content)
    with pytest.raises(WorkloadError) as caught:
        parameters.of_this_run()
    assert message in str(caught.value)


def test_data_source_goes_over_the_variable(cli: Cli, tmp_path: Path):
    env = {"DATA_SOURCE": "glue", "ML_PIPELINES_PARAMS": '{"data_source": "bundled"}'}
    ended = cli("load-sst2-data", tmp_path, env=env)
    assert "vaderSentiment" in ended.result["source"]


def test_unknown_data_source_is_refused(cli: Cli, tmp_path: Path):
    ended = cli("load-sst2-data", tmp_path, env={"ML_PIPELINES_PARAMS": '{"data_source": "imdb"}'})
    assert ended.error == (
        "ERROR: parameters of the run: data_source='imdb' is not known; "
        "allowed: auto, glue, bundled, or an address of files"
    )
