"""`hub_folder`: which files of a model folder are published, what they say, and that the copy works elsewhere."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TINY_TASKS, tiny_encoder, tiny_tokenizer

from configuration_multitask import MultiTaskConfig
from hub_folder import check_elsewhere, copy_published, published_files
from modeling_multitask import MultiTaskModel

PUBLISHED = """config.json model.safetensors model-00001-of-00002.safetensors model.safetensors.index.json
modeling_multitask.py pipeline_multitask.py handler.py tokenizer.json tokenizer_config.json vocab.txt
sentencepiece.bpe.model modules.json sentence_bert_config.json config_sentence_transformers.json 1_Pooling/config.json
2_Dense/model.safetensors README.md curves.png confusion_part-of_speech.png test_results.json all_results.json
run_facts.json comparison.json""".split()
AT_HOME = """training_args.bin trainer_state.json optimizer.pt scheduler.pt rng_state.pth run_recipe.json notes.txt .env
checkpoint-10/model.safetensors checkpoint-10/config.json runs/events.out.tfevents.1 other.py
evaluation/test_results.json predictions/test_topic.parquet run.json train.log
my.json private.png pytorch_model.bin""".split()


@pytest.mark.parametrize("name", [*PUBLISHED, *AT_HOME])
def test_a_file_is_published_if_a_reader_needs_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    assert published_files(tmp_path) == ([Path(name)] if name in PUBLISHED else [])


def test_a_path_of_this_machine_is_published_by_its_last_part(tmp_path: Path) -> None:
    folder, target = tmp_path / "run", tmp_path / "copy"
    folder.mkdir()
    data = str(tmp_path / "customers.csv")
    facts = {
        "data": {"topic": {"dataset": data}},
        "notes": [f"Task 'topic': read from {data}, all of it."],
        "share": 0.5,
    }
    (folder / "run_facts.json").write_text(json.dumps(facts))
    (folder / "config.json").write_text(json.dumps({"untouched": "/"}))
    copy_published(folder, target)
    read = json.loads((target / "run_facts.json").read_text())
    assert read["data"]["topic"]["dataset"] == "customers.csv" and read["share"] == 0.5
    assert read["notes"] == ["Task 'topic': read from customers.csv, all of it."]
    assert (target / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert data in (folder / "run_facts.json").read_text(), "the run's own file stays as it is"


@pytest.fixture(scope="module")
def model_and_tokenizer() -> tuple[MultiTaskModel, Any]:
    """A task of every kind on a tiny BERT."""
    encoder = tiny_encoder("bert")
    config = MultiTaskConfig(encoder_config=encoder.config, tasks=copy.deepcopy(TINY_TASKS), projection_dim=24)
    return MultiTaskModel(config, encoder=encoder).eval(), tiny_tokenizer("bert")


@pytest.fixture
def saved(model_and_tokenizer, tmp_path: Path) -> Path:
    """Its folder."""
    for part in model_and_tokenizer:
        part.save_pretrained(tmp_path)
    return tmp_path


def test_all_that_is_saved_is_published(saved: Path) -> None:
    """Whichever file of code `save_pretrained` writes."""
    assert published_files(saved) == sorted(path.relative_to(saved) for path in saved.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_saved_folder_answers_elsewhere_bit_by_bit(saved: Path, model_and_tokenizer) -> None:
    assert check_elsewhere(saved, *model_and_tokenizer) == 0


@pytest.mark.slow
def test_other_code_in_the_folder_is_found_out(saved: Path, model_and_tokenizer) -> None:
    """The fresh process runs the folder's code, not this project's, which would answer as before."""
    code = saved / "modeling_multitask.py"
    text = code.read_text()
    assert "weights.sum(1).clamp(min=1.0)" in text, "the premise"
    code.write_text(text.replace("weights.sum(1).clamp(min=1.0)", "weights.sum(1).clamp(min=1.0).add(0.01)"))
    with pytest.raises(ValueError, match=r"its (embedding|logits of \w+) differ by .* Save the model again"):
        check_elsewhere(saved, *model_and_tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["pipeline_multitask.py", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_found_out(saved: Path, model_and_tokenizer, lost: str) -> None:
    """Although this process could import the module."""
    (saved / lost).unlink()
    with pytest.raises(ValueError, match="must open without this project; .* does not: "):
        check_elsewhere(saved, *model_and_tokenizer)


@pytest.mark.slow
def test_code_that_needs_this_project_is_found_out(saved: Path, model_and_tokenizer) -> None:
    """Where the project is installed it would open; its readers have only the folder."""
    code = saved / "modeling_multitask.py"
    text = code.read_text()
    assert "from .pipeline_multitask import" in text, "the premise"
    code.write_text(text.replace("from .pipeline_multitask import", "from pipeline_multitask import"))
    with pytest.raises(ValueError, match="must open without this project; .* pipeline_multitask"):
        check_elsewhere(saved, *model_and_tokenizer)
