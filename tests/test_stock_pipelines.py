"""Stock and own pipelines, in a process without this project: every head reachable, answers those of `predict`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from elsewhere import run_elsewhere
from numpy.testing import assert_allclose
from transformers import AutoTokenizer

from modeling_multitask import MultiTaskModel

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float32_answers")]

TEXTS = [
    "Anna won the game in Paris.",
    "The new phone is fast, and the team is very good today.",
    "It rained in Berlin.",
    "John has a very old city of cold people!",
]
STRATEGIES = ("none", "simple", "first", "average", "max")

READER = """
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, pipeline
folder, texts, strategies = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
options = {"trust_remote_code": True, "device": "cpu"}


def plain(value):
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return value.item() if hasattr(value, "item") else value


def stock(kind, task):
    return pipeline(kind, model=folder, model_kwargs={"task_name": task}, **options)


for task in ("topic", "tags", "rating"):
    pipe = stock("text-classification", task)
    found[task] = pipe(texts, top_k=None)
    found[task + " batched"] = pipe(texts, top_k=None, batch_size=3)
found["default"] = pipeline("text-classification", model=folder, **options)(texts, top_k=None)
found["joint"] = stock("text-classification", "joint")({"text": texts[0], "text_pair": texts[1]}, top_k=None)

tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
view = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, task_name="topic")
found["topic by instance"] = pipeline("text-classification", model=view, tokenizer=tokenizer)(texts, top_k=None)

for task in ("ner", "upos"):
    for strategy in strategies:
        pipe = stock("token-classification", task)
        kept = {"aggregation_strategy": strategy, "ignore_labels": [] if strategy == "none" else ["O"]}
        found[f"{task} {strategy}"] = plain(pipe(texts, **kept))
        found[f"{task} {strategy} batched"] = plain(pipe(texts, batch_size=3, **kept))

found["states"] = pipeline("feature-extraction", model=folder, **options)(texts)

found["refused"] = {}
for auto, kind in ((AutoModelForSequenceClassification, "text-classification"),
                   (AutoModelForTokenClassification, "token-classification")):
    for name in ("tpoic", "similarity"):
        for door, opened in (("class", lambda: auto.from_pretrained(folder, trust_remote_code=True, task_name=name)),
                             ("pipeline", lambda: stock(kind, name))):
            try:
                opened()
            except ValueError as error:
                found["refused"][f"{kind} {name} {door}"] = str(error)

pipe = pipeline(model=folder, bf16=False, **options)
found["own class"] = type(pipe).__name__
found["own"] = pipe(texts)
found["own batched"] = pipe(texts, batch_size=3)
pipe = pipeline("multitask", model=folder, bf16=False, **options)
found["own named"] = pipe(texts)
found["own chosen"] = pipe(texts, tasks=["ner", "topic"], top_k=2, aggregation_strategy="none", batch_size=2)
"""


@pytest.fixture(scope="module")
def found(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the other process answered."""
    arguments = (str(model_folder), json.dumps(TEXTS), json.dumps(STRATEGIES))
    return run_elsewhere(READER, tmp_path_factory.mktemp("elsewhere"), *arguments)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> MultiTaskModel:
    """The saved model, in this process."""
    return MultiTaskModel.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    """Its tokenizer."""
    return AutoTokenizer.from_pretrained(model_folder)


def scores_of(entries: list[dict[str, Any]]) -> dict[str, float]:
    """`[{"label", "score"}]` as label -> score."""
    return {entry["label"]: entry["score"] for entry in entries}


@pytest.mark.parametrize("form", ["", " batched", " by instance"])
def test_text_classification_gives_the_probabilities_of_one_class(found, model, tokenizer, form: str):
    for stock, answer in zip(found[f"topic{form}"], model.predict(TEXTS, tokenizer), strict=True):
        assert scores_of(stock) == pytest.approx(answer["topic"]["scores"], abs=1e-5)
        assert stock[0]["label"] == answer["topic"]["label"]


@pytest.mark.parametrize("form", ["", " batched"])
def test_text_classification_gives_sigmoids_of_several_labels_and_the_raw_number_of_regression(
    found, model, tokenizer, form: str
):
    answers = model.predict(TEXTS, tokenizer)
    for stock, answer in zip(found[f"tags{form}"], answers, strict=True):
        assert scores_of(stock) == pytest.approx(answer["tags"]["scores"], abs=1e-5)
    numbers = [stock[0]["score"] for stock in found[f"rating{form}"]]
    assert any(not 0 <= number <= 1 for number in numbers), "premise: no sigmoid gives these"
    assert numbers == pytest.approx([answer["rating"]["score"] for answer in answers], abs=1e-5)


def test_text_classification_reads_a_pair_jointly(found, model, tokenizer):
    (answer,) = model.predict([(TEXTS[0], TEXTS[1])], tokenizer)
    assert scores_of(found["joint"]) == pytest.approx(answer["joint"]["scores"], abs=1e-5)


def test_without_a_name_the_first_head_of_the_kind_answers(found, model):
    first = next(name for name, spec in model.config.tasks.items() if spec["kind"] == "text-classification")
    assert first == "joint", "premise"
    assert set(scores_of(found["default"][0])) == set(model.config.tasks[first]["labels"])


@pytest.mark.parametrize("form", ["", " batched"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_token_classification_gives_the_spans_of_every_strategy(found, model, tokenizer, strategy: str, form: str):
    answers = model.predict(TEXTS, tokenizer, tasks=["ner"], aggregation_strategy=strategy)
    assert any(answer["ner"] for answer in answers), "premise"
    name = "entity" if strategy == "none" else "entity_group"
    for stock, answer in zip(found[f"ner {strategy}{form}"], answers, strict=True):
        assert [(span[name], span["start"], span["end"]) for span in stock] == [
            (span[name], span["start"], span["end"]) for span in answer["ner"]
        ]
        assert [span["score"] for span in stock] == pytest.approx([span["score"] for span in answer["ner"]], abs=1e-5)


def test_the_strategies_differ(found):
    spans = {strategy: json.dumps(found[f"ner {strategy}"]) for strategy in STRATEGIES}
    assert len(set(spans.values())) == len(STRATEGIES), "premise: else one of them could answer for another"


@pytest.mark.parametrize("form", ["", " batched"])
def test_token_classification_gives_plain_tags(found, model, tokenizer, form: str):
    answers = model.predict(TEXTS, tokenizer, tasks=["upos"], aggregation_strategy="none")
    for stock, answer in zip(found[f"upos none{form}"], answers, strict=True):
        assert [(tag["entity"], tag["start"], tag["end"]) for tag in stock] == [
            (tag["entity"], tag["start"], tag["end"]) for tag in answer["upos"]
        ]


def test_feature_extraction_gives_the_encoders_token_states(found, model, tokenizer):
    for text, states in zip(TEXTS, found["states"], strict=True):
        with torch.no_grad():
            expected = model.encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state
        assert_allclose(states, expected, atol=1e-5)


def test_a_task_that_cannot_answer_is_refused_with_the_list_of_those_that_can(found):
    assert len(found["refused"]) == 8
    for where, message in found["refused"].items():
        kind, name, _ = where.split()
        of_kind = "joint, rating, tags, topic" if kind == "text-classification" else "ner, upos"
        assert f"here are: {of_kind}, but task_name is '{name}'" in message


def assert_same(answers: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Same tasks, decisions and numbers."""
    for piped, predicted in zip(answers, expected, strict=True):
        assert piped.keys() == predicted.keys()
        assert_allclose(piped["sentence_embedding"], predicted["sentence_embedding"], atol=1e-6)
        assert piped["topic"]["scores"] == pytest.approx(predicted["topic"]["scores"], abs=1e-6)
        assert [(e["start"], e["end"], e["word"]) for e in piped["ner"]] == [
            (e["start"], e["end"], e["word"]) for e in predicted["ner"]
        ]


@pytest.mark.parametrize("form", ["own", "own batched", "own named"])
def test_the_folders_own_pipeline_answers_with_every_task_named_or_not(found, model, tokenizer, form: str):
    assert found["own class"] == "MultiTaskPipeline"
    assert_same(found[form], model.predict(TEXTS, tokenizer))


def test_the_folders_own_pipeline_takes_tasks_top_k_strategy_and_batch_size(found, model, tokenizer):
    expected = model.predict(TEXTS, tokenizer, tasks=["ner", "topic"], top_k=2, aggregation_strategy="none")
    assert set(found["own chosen"][0]) == {"ner", "topic", "sentence_embedding"}
    assert_same(found["own chosen"], expected)
    assert [tag["entity"] for tag in found["own chosen"][0]["ner"]] == [tag["entity"] for tag in expected[0]["ner"]]
