"""`model_card`: what the card of a folder says, and what it leaves out. `test_train_hf` tests the card of a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from card_validation import card_errors
from huggingface_hub import EvalResult, ModelCard
from safetensors.torch import save_file

from configuration_multitask import MultiTaskConfig
from model_card import build_card, eval_results

TASKS: dict[str, Any] = {
    "ner": {"kind": "token-classification", "labels": ["O", "B-PER", "I-PER"]},
    "similarity": {"kind": "sentence-similarity"},
    "topic": {"kind": "text-classification", "labels": ["Sport|Games", "Weather"]},
}
SOURCE = {"config": None, "revision": None, "commit": None, "license": None, "language": []}
TRAIN = {"splits": {"train": "train", "test": "test"}, "rows": {"train": 1200, "test": 30}, "source_rows": {"test": 30}}
DATA: dict[str, Any] = {
    "ner": {
        **SOURCE,
        **TRAIN,
        "dataset": "lhoestq/conll2003",
        "location": "hub",
        "commit": "c" * 40,
        "license": "other",
        "language": ["en"],
    },
    "similarity": {**SOURCE, **TRAIN, "dataset": "mteb/stsbenchmark-sts", "location": "data_root/stsb"},
    "topic": {
        **SOURCE,
        **TRAIN,
        "dataset": {"train": "a.csv", "test": "b.csv"},
        "location": "files",
        "language": ["de"],
    },
}
SCORES = {
    "test_ner_f1": 0.87654321,
    "test_ner_strict_f1": 0.8,
    "test_ner_rows": 30,
    "test_ner_runtime": 1.5,
    "test_ner_samples_per_second": 1234.56,
    "test_similarity_spearman": float("nan"),
    "test_similarity_pearson": 0.25,
    "test_topic_accuracy": 0.5,
    "test_mean_score": 0.6,
    "test_protocol": {name: {**source, "rows_scored": 30, "scorer": "by hand"} for name, source in DATA.items()},
}
FACTS = {
    "encoder": "tester/encoder",
    "base_model": "tester/encoder",
    "data": DATA,
    "hyperparameters": {"learning_rate": 0.0003, "seed": 7, "processes": 2},
    "hardware": "two cores",
    "plan": "the plan",
    "notes": ["Task 'topic': a note."],
    "sample_texts": ["Anna ran.", "Rain."],
    "versions": {"torch": "2.13.0"},
}


def answer(texts: Any) -> list[dict[str, Any]]:
    """What a model could say."""
    span = {"entity_group": "PER", "score": 0.912345, "word": "Anna", "start": 0, "end": 4}
    scores = {"Sport|Games": 0.25, "Weather": 0.75}
    return [{"topic": {"label": "Weather", "score": 0.75, "scores": scores}, "ner": [span]} for _ in texts]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `save_pretrained` writes."""
    MultiTaskConfig(tasks=TASKS).save_pretrained(tmp_path)
    save_file({"a": torch.zeros(100, 10), "b": torch.zeros(24)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def run_folder(folder: Path) -> Path:
    """And what a run adds."""
    (folder / "run_facts.json").write_text(json.dumps(FACTS))
    (folder / "test_results.json").write_text(json.dumps(SCORES))
    return folder


def metadata(card: ModelCard) -> dict[str, Any]:
    """The block at the head of a card."""
    return yaml.safe_load(card.content.split("---")[1])


def test_the_metadata_says_what_the_hub_searches(run_folder: Path) -> None:
    data = metadata(build_card(run_folder, "tester/news", answer))
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-classification")
    assert data["base_model"] == "tester/encoder" and data["language"] == ["de", "en"] and "license" not in data
    assert data["datasets"] == ["lhoestq/conll2003", "mteb/stsbenchmark-sts"], "files are no data sets of the Hub"
    assert data["metrics"] == ["accuracy", "f1", "pearsonr"]


def test_the_hub_accepts_the_metadata(run_folder: Path) -> None:
    assert card_errors(build_card(run_folder, "tester/news", answer).content) == []


def test_the_model_index_parses_back_to_the_same_results(run_folder: Path) -> None:
    written = eval_results(run_folder, "tester/news", TASKS)
    parsed = ModelCard(build_card(run_folder, "tester/news", answer).content).data.eval_results
    assert parsed == written
    assert written[0] == EvalResult(
        task_type="token-classification",
        task_name="ner",
        dataset_type="lhoestq/conll2003",
        dataset_name="lhoestq/conll2003",
        dataset_split="test",
        dataset_revision="c" * 40,
        dataset_args={"rows": 30},
        metric_type="f1",
        metric_name="f1",
        metric_value=0.8765,
        metric_args={"scorer": "by hand"},
        source_name="test_results.json",
        source_url="https://huggingface.co/tester/news/blob/main/test_results.json",
    )


def test_what_is_no_number_is_no_result(run_folder: Path) -> None:
    found = {(result.task_name, result.metric_name) for result in eval_results(run_folder, "tester/news", TASKS)}
    assert found == {("ner", "f1"), ("ner", "strict_f1"), ("similarity", "pearson"), ("topic", "accuracy")}
    assert "| similarity | test | 30 | spearman | - | pearson 0.2500 |" in build_card(run_folder, "n", answer).content


def test_a_local_copy_is_said_and_stands_for_no_revision(run_folder: Path) -> None:
    card = build_card(run_folder, "tester/news", answer)
    assert (
        "| similarity | mteb/stsbenchmark-sts (local copy) | not recorded | not stated | 1,200 | - | 30 |" in card.text
    )
    assert f"| ner | lhoestq/conll2003 | {'c' * 40} | other | 1,200 | - | 30 |" in card.text
    assert "| topic | a.csv, b.csv |" in card.text


def test_widget_examples_are_the_models_answers_by_score(run_folder: Path) -> None:
    output = [{"label": "Weather", "score": 0.75}, {"label": "Sport|Games", "score": 0.25}]
    texts = FACTS["sample_texts"]
    examples = [
        {"text": text, "group": "topic", "example_title": f"topic {place}", "output": output}
        for place, text in enumerate(texts, start=1)
    ]
    assert metadata(build_card(run_folder, "n", answer))["widget"] == examples


def test_a_model_of_tags_shows_entities(run_folder: Path) -> None:
    tasks = {"ner": TASKS["ner"]}
    MultiTaskConfig(tasks=tasks).save_pretrained(run_folder)
    data = metadata(build_card(run_folder, "n", answer))
    assert data["pipeline_tag"] == "token-classification"
    span = {"entity_group": "PER", "score": 0.9123, "word": "Anna", "start": 0, "end": 4}
    assert [example["output"] for example in data["widget"]] == [[span], [span]]


def test_a_similarity_model_shows_a_sentence_and_others(run_folder: Path) -> None:
    MultiTaskConfig(tasks={"similarity": TASKS["similarity"]}).save_pretrained(run_folder)
    data = metadata(build_card(run_folder, "n", None))
    assert data["pipeline_tag"] == "sentence-similarity"
    assert data["widget"] == [{"source_sentence": "Anna ran.", "sentences": ["Rain."]}]


def test_sizes_are_those_of_the_weights(folder: Path) -> None:
    size = (folder / "model.safetensors").stat().st_size
    assert f"1,024 numbers in {size / 1e6:,.1f} MB of safetensors" in build_card(folder, "n", None).text


def test_the_speed_is_what_scoring_measured_and_says_on_what(run_folder: Path) -> None:
    text = build_card(run_folder, "n", None).text
    assert "Scoring read, rows a second: ner 1,234.6, on two cores a process, 2 processes." in text
    facts = json.loads((run_folder / "run_facts.json").read_text())
    del facts["hardware"]  # of a run of before
    (run_folder / "run_facts.json").write_text(json.dumps(facts))
    assert "rows a second: ner 1,234.6." in build_card(run_folder, "n", None).text


def test_a_label_with_a_bar_keeps_the_table(run_folder: Path) -> None:
    assert r"| topic | text-classification, single_label_classification | Sport\|Games, Weather |" in (
        build_card(run_folder, "n", answer).text
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("modules.json", "SentenceTransformer("),
        ("handler.py", "`handler.py` is its entry point"),
        ("curves.png", "](curves.png)"),
        ("confusion_topic.png", "](confusion_topic.png)"),
    ],
)
def test_a_door_or_a_picture_is_named_if_its_file_is_there(run_folder: Path, name: str, said: str) -> None:
    (run_folder / "all_results.json").write_text(
        json.dumps({"train_runtime": 12.0, "epoch": 3.0, "train_samples_per_second": 5.0})
    )
    assert said not in build_card(run_folder, "n", None).text
    (run_folder / name).write_text("{}")
    assert said in build_card(run_folder, "n", None).text


def test_a_page_says_that_it_does_not_run_the_code(folder: Path) -> None:
    assert "does not run a repository's own code" in build_card(folder, "n", None).text


@pytest.mark.parametrize("tasks", [{}, TASKS], ids=["no task", "three tasks"])
def test_a_folder_without_a_run_has_a_card_that_says_less(folder: Path, tasks: dict[str, Any]) -> None:
    """Its doors, tasks and size, and no heading over nothing."""
    MultiTaskConfig(tasks=tasks).save_pretrained(folder)
    card = build_card(folder, "tester/plain", None)
    assert card_errors(card.content) == []
    headings = [line for line in card.text.splitlines() if line.startswith("## ")]
    assert headings == ["## Use", "## Size and speed", "## Limits", "## Licence and citation"]
    assert "model-index" not in metadata(card) and "None" not in card.text


def test_a_run_of_before_the_facts_is_described_by_its_protocol(run_folder: Path) -> None:
    (run_folder / "run_facts.json").unlink()
    card = build_card(run_folder, "n", None)
    assert "| ner | lhoestq/conll2003 |" in card.text and metadata(card)["datasets"][0] == "lhoestq/conll2003"
