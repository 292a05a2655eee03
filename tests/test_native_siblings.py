"""What a hosted widget can run of a model: which parts, that they answer as it does, and what their cards show."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from card_validation import card_errors
from huggingface_hub import ModelCard
from tiny_models import TINY_TASKS, tiny_encoder, tiny_tokenizer
from torch import nn
from transformers import pipeline

from configuration_multitask import MultiTaskConfig
from hub_folder import answers_elsewhere, compare_answers
from hub_repository import SIBLING_KEY
from modeling_multitask import MultiTaskModel
from native_siblings import EMBEDDING, READER, TOLERANCE, answers_here, widget_examples, write_siblings

TEXTS = ["Anna won a wonderful game.", "Rain."]
NATIVE_HEAD = {"head": "mlp", "head_activation": "tanh", "pooling": "cls"}
SCORES = {
    "test_protocol": {
        "ner": {
            "dataset": "example/entities",
            "location": "hub",
            "commit": "abc",
            "splits": {"test": "test"},
            "rows_scored": 12,
            "scorer": "seqeval, spans",
        }
    },
    "test_ner_f1": 0.5,
    "test_ner_loss": 1.0,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path, list[Any], dict[str, str]]:
    """Model, tokenizer, its folder, the siblings and the refused: `topic` has the native form, `tags` has not."""
    tasks = {name: copy.deepcopy(TINY_TASKS[name]) for name in ("topic", "tags", "ner", "similarity")}
    tasks["topic"] |= NATIVE_HEAD
    encoder = tiny_encoder("bert")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = MultiTaskConfig(encoder_config=encoder.config, tasks=tasks, max_seq_length=64)
        model, tokenizer = MultiTaskModel(settings, encoder=encoder).eval(), tiny_tokenizer("bert")
        for parameter in model.heads.parameters():
            nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "test_results.json").write_text(json.dumps(SCORES))
    (folder / "run_facts.json").write_text(json.dumps({"license": "apache-2.0", "sample_texts": TEXTS}))
    root = tmp_path_factory.mktemp("siblings")
    return model, tokenizer, folder, *write_siblings(model, tokenizer, folder, root, "alice/news")


def test_every_head_has_a_sibling_or_a_reason_and_the_embedding_has_one(written) -> None:
    model, _, _, siblings, refused = written
    heads = {name for name, spec in model.config.tasks.items() if spec["kind"].endswith("classification")}
    assert {sibling.name for sibling in siblings} == {"topic", "ner", EMBEDDING}
    assert {sibling.name for sibling in siblings} | refused.keys() == heads | {EMBEDDING}
    assert "computes pooling cls" in refused["tags"]
    for sibling in siblings:
        assert sibling.repo_id == f"alice/news-{sibling.name}"
        assert json.loads((sibling.folder / "config.json").read_text())[SIBLING_KEY] == "alice/news"
        assert not list(sibling.folder.glob("*.py"))


def test_a_folder_that_answers_otherwise_is_found_out(written, tmp_path: Path) -> None:
    model, tokenizer, _, siblings, _ = written
    ner = next(sibling for sibling in siblings if sibling.name == "ner")
    there = answers_elsewhere(ner.folder, READER)
    assert compare_answers(answers_here(model, tokenizer, "ner"), there, TOLERANCE) < TOLERANCE
    with pytest.raises(ValueError, match="must answer elsewhere as it does here"):
        compare_answers(answers_here(model, tokenizer, "topic"), there, TOLERANCE)


def test_the_examples_of_a_card_are_what_its_own_folder_answers(written) -> None:
    _, _, _, siblings, _ = written
    for sibling in siblings:
        content = (sibling.folder / "README.md").read_text()
        assert card_errors(content) == [] and "{{" not in content
        data = ModelCard.load(sibling.folder / "README.md").data
        assert (data.base_model, data.license) == ("alice/news", "apache-2.0")
        if sibling.name == EMBEDDING:
            assert data.pipeline_tag == "sentence-similarity" and data["library_name"] == "sentence-transformers"
            assert data["widget"] == [{"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}]
        else:
            options = (
                data["inference"]["parameters"] if data.pipeline_tag == "token-classification" else {"top_k": None}
            )
            answers = pipeline(data.pipeline_tag, model=str(sibling.folder), device="cpu", **options)(TEXTS)
            for shown, answer in zip(data["widget"], answers, strict=True):
                assert [{**part, "score": pytest.approx(part["score"], abs=1e-3)} for part in answer] == shown["output"]


def test_a_token_head_answers_by_words(written) -> None:
    """As the widget is told to, and not as it would by itself."""
    ner = next(sibling for sibling in written[3] if sibling.name == "ner")
    data = ModelCard.load(ner.folder / "README.md").data
    assert data["inference"] == {"parameters": {"aggregation_strategy": "first"}}
    simple = pipeline("token-classification", model=str(ner.folder), device="cpu", aggregation_strategy="simple")(TEXTS)
    shown = [[span["end"] for span in example["output"]] for example in data["widget"]]
    assert shown != [[span["end"] for span in spans] for spans in simple], "premise: here it makes a difference"


def test_a_regression_has_no_examples_for_a_widget_of_labels(tmp_path: Path) -> None:
    assert widget_examples(tmp_path, "text-classification", ["Rain."], {"problem_type": "regression"}) is None


def test_the_card_has_the_scores_of_its_task_alone_and_where_they_are_from(written) -> None:
    _, _, _, siblings, _ = written
    for sibling in siblings:
        card = ModelCard.load(sibling.folder / "README.md")
        results = card.data.eval_results or []
        assert [(result.metric_name, result.metric_value) for result in results] == [("f1", 0.5)] * (
            sibling.name == "ner"
        )
        assert ("seqeval, spans" in card.content) == (sibling.name == "ner")
        assert all(result.source_url.startswith("https://huggingface.co/alice/news/") for result in results)
