"""The export command: what it writes, and what it refuses in one line with exit code 2."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_encoder, tiny_tokenizer
from transformers import AutoModelForTokenClassification

import export_hf
from configuration_multitask import MultiTaskConfig
from modeling_multitask import MultiTaskModel


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved model with two entity tags and a mean-pooled topic."""
    tasks: dict[str, Any] = {
        "ner": {"kind": "token-classification", "labels": ["O", "B-PER"]},
        "topic": {"kind": "text-classification", "labels": ["no", "yes"]},
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
    assert AutoModelForTokenClassification.from_pretrained(head).config.label2id == {"O": 0, "B-PER": 1}
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
