"""The export command: what it writes, and what it refuses in one line with exit code 2."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_encoder, tiny_tokenizer
from transformers import AutoModelForTokenClassification

import export_hf
from configuration_multitask import MultiTaskConfig
from export_scores import compare, read_rows, score
from modeling_multitask import MultiTaskModel
from saved_model import open_model

RECIPE = """
encoder: unused
tasks:
  ner: {dataset: "builtin:entities", columns: {tokens: tokens, label: ner_tags}, max_rows: {test: 24}}
  topic: {dataset: "builtin:topic", max_rows: {test: 24}}
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved model with entities and a mean-pooled topic, its labels those of the built-in example data."""
    tags = ["O", *(f"{mark}-{kind}" for kind in ("PER", "ORG", "LOC", "DATE") for mark in "BI")]
    tasks: dict[str, Any] = {
        "ner": {"kind": "token-classification", "labels": tags},
        "topic": {"kind": "text-classification", "labels": ["Technology", "Weather", "Other"]},
    }
    encoder = tiny_encoder("bert")
    folder = tmp_path_factory.mktemp("saved")
    MultiTaskModel(MultiTaskConfig(encoder_config=encoder.config, tasks=tasks), encoder=encoder).save_pretrained(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs the command and returns the one line that it leaves with."""

    def run(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            export_hf.main([*words, "--offline"])
        assert left.value.code == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("export_hf.py: error: ")
        return line

    return run


def test_a_head_and_the_embedding_are_written_as_native_folders(saved: str, tmp_path: Path, capsys):
    head, embedding = tmp_path / "head", tmp_path / "embedding"
    export_hf.main([saved, "--format", "native", "--task", "ner", "--output", str(head), "--offline"])
    assert f"Written to {head}" in capsys.readouterr().out
    assert AutoModelForTokenClassification.from_pretrained(head).config.id2label[1] == "B-PER"
    export_hf.main([saved, "--format", "native", "--output", str(embedding), "--offline"])
    assert {"modules.json", "1_Pooling", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in embedding.iterdir()
    }


def test_a_folder_with_files_is_written_only_when_said(saved: str, tmp_path: Path, refusal: Callable[..., str]):
    (tmp_path / "notes.txt").write_text("mine")
    command = [saved, "--format", "native", "--task", "ner", "--output", str(tmp_path)]
    assert "empty folder" in refusal(*command) and "--overwrite_output" in refusal(*command)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    export_hf.main([*command, "--offline", "--overwrite_output"])
    assert (tmp_path / "model.safetensors").is_file() and (tmp_path / "notes.txt").read_text() == "mine"
    assert "is a file" in refusal(*command[:-1], str(tmp_path / "notes.txt"))
    assert "not in its place" in refusal(*command[:-1], saved, "--overwrite_output")


def test_a_head_without_a_native_class_and_an_unknown_task_are_refused(saved: str, tmp_path: Path, refusal):
    command = [saved, "--format", "native", "--output", str(tmp_path / "out"), "--task"]
    assert "pooling cls (here mean)" in refusal(*command, "topic")
    assert "this model's tasks are: ner, topic" in refusal(*command, "entities")
    assert not (tmp_path / "out").exists()


def test_options_of_another_format_are_refused(saved: str, tmp_path: Path, refusal: Callable[..., str]):
    out = str(tmp_path / "out")
    assert "--task is of --format native" in refusal(saved, "--format", "onnx", "--output", out, "--task", "ner")
    native = (saved, "--format", "native", "--output", out)
    assert "--precision and --data are of graphs" in refusal(*native, "--precision", "int8")
    assert "--precision and --data are of graphs" in refusal(*native, "--data", "recipe.yaml")
    assert "one of fp32, int8; got bf16" in refusal(saved, "--format", "onnx", "--precision", "bf16", "--output", out)
    assert not (tmp_path / "out").exists()


def test_the_change_of_a_score_is_after_less_before():
    before = {"topic": {"metric": "accuracy", "rows": 4, "score": 0.75}}
    after = {"topic": {"metric": "accuracy", "rows": 4, "score": 0.5}}
    row = compare(before, after)["topic"]
    assert row == {"metric": "accuracy", "rows": 4, "before": 0.75, "after": 0.5, "change": -0.25}


@pytest.mark.slow
@pytest.mark.parametrize(("graph_format", "package"), [("onnx", "onnxscript"), ("openvino", "openvino")])
def test_a_graph_is_written_with_its_score_beside_that_of_the_model(
    saved: str, tmp_path: Path, graph_format: str, package: str
):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(RECIPE)
    export_hf.main([saved, "--format", graph_format, "--output", str(out), "--data", str(recipe), "--offline"])
    results = json.loads((out / "export_results.json").read_text())
    assert (results["format"], results["precision"], results["split"]) == (graph_format, "fp32", "test")
    assert set(results["tasks"]) == {"ner", "topic"}
    for row in results["tasks"].values():
        assert row["rows"] == 24 and row["change"] == pytest.approx(0, abs=0.01)
    model, tokenizer = open_model(saved, offline=True)
    expected = score(model, tokenizer, read_rows(model, tokenizer, str(recipe)))
    assert {name: row["before"] for name, row in results["tasks"].items()} == pytest.approx(
        {name: row["score"] for name, row in expected.items()}
    )
