"""A plain folder opens with the stock classes, without remote code, and gives the numbers of the model it is from."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from numpy.testing import assert_allclose
from tiny_models import HIDDEN_SIZE, TINY_TASKS, tiny_encoder, tiny_tokenizer
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

from cased_vocabulary import cased_tokenizer
from configuration_multitask import POOLINGS, MultiTaskConfig
from encoder_source import ALL_MINILM_L6_V2, find_encoder
from modeling_multitask import MultiTaskModel
from native_export import check_same_logits, plain_head, write_embedding, write_head, write_native

TEXTS = ["Anna won the game in Paris.", "The new phone is FAST, and the team is very good today."]
ACTIVATIONS = {"distilbert": "relu", "electra": "gelu"}
SENTENCE_TASKS = ("topic", "tags", "rating")


def build(family: str, cased: bool = False, **config: Any) -> tuple[MultiTaskModel, PreTrainedTokenizerFast]:
    """A model whose sentence heads have the form of the family's own class, all weights drawn wide."""
    encoder, tokenizer = tiny_encoder(family), tiny_tokenizer(family)
    tasks = copy.deepcopy(TINY_TASKS)
    for name in SENTENCE_TASKS:
        form = {"head": "mlp", "head_activation": ACTIVATIONS.get(family, "tanh"), "pooling": "cls"}
        tasks[name] |= form
    settings = MultiTaskConfig(encoder_config=encoder.config, tasks=tasks, **{"max_seq_length": 64} | config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MultiTaskModel(settings, encoder=encoder).eval()
        if cased:
            tokenizer, bases, cases = cased_tokenizer(tokenizer)
            model.read_case(bases, cases)
            nn.init.normal_(model.get_input_embeddings().case.weight, std=0.5)
        for parameter in [*model.heads.parameters(), *model.projection.parameters()]:
            nn.init.normal_(parameter, std=0.5)
    return model, tokenizer


def open_plain(auto: Any, folder: Path) -> tuple[Any, Any]:
    """The folder as the stock class opens it, every weight found and none left over; and its tokenizer."""
    plain, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert type(plain).__module__.startswith("transformers.models."), "premise: no code of ours"
    return plain, AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def check_logits(auto: Any, name: str, folder: Path, model: MultiTaskModel, tokenizer: Any) -> None:
    """Assert that the folder's model and tokenizer give the head's logits, and its labels."""
    plain, own_tokenizer = open_plain(auto, folder)
    batch = own_tokenizer(TEXTS, padding=True, return_tensors="pt")
    ours = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], ours["input_ids"]) and not ours["attention_mask"].all(), "premise"
    expected = model(**ours, tasks=[name]).logits[name]
    real = ours["attention_mask"].bool() if expected.dim() == 3 else ...
    assert_allclose(plain(**batch).logits[real], expected[real], atol=1e-5)
    assert expected[real].std() > 0.01, "premise: not the same number everywhere"
    labels = model.config.tasks[name]["labels"]
    assert [plain.config.id2label[index] for index in range(len(labels))] == labels


@pytest.mark.parametrize("name", ["ner", "upos"])
def test_a_token_head_is_the_familys_own_class(family: str, name: str, tmp_path: Path):
    model, tokenizer = build(family)
    if family == "modernbert":
        with pytest.raises(ValueError, match=r"differs in head\.dense\.weight"):
            write_head(model, tokenizer, name, tmp_path)
        assert not list(tmp_path.iterdir())
        return
    write_head(model, tokenizer, name, tmp_path)
    check_logits(AutoModelForTokenClassification, name, tmp_path, model, tokenizer)


@pytest.mark.parametrize("name", SENTENCE_TASKS)
def test_a_sentence_head_of_the_familys_form_is_its_own_class(family: str, name: str, tmp_path: Path):
    model, tokenizer = build(family)
    if family == "modernbert":
        with pytest.raises(ValueError, match="has layers that this head has not"):
            write_head(model, tokenizer, name, tmp_path)
        return
    write_head(model, tokenizer, name, tmp_path)
    check_logits(AutoModelForSequenceClassification, name, tmp_path, model, tokenizer)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_debertas_class_takes_any_activation(activation: str, tmp_path: Path):
    model, tokenizer = build("deberta-v2")
    model.config.tasks["topic"]["head_activation"] = activation
    model.heads["topic"] = model._new_head(model.config.tasks["topic"]).eval()
    nn.init.normal_(model.heads["topic"].dense.weight, std=0.5)
    nn.init.normal_(model.heads["topic"].out.weight, std=0.5)
    write_head(model, tokenizer, "topic", tmp_path)
    check_logits(AutoModelForSequenceClassification, "topic", tmp_path, model, tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "mean"}, r"pooling cls \(here mean\)"),
        ({"head": "linear", "head_activation": None}, r"head mlp \(here linear\)"),
        ({"head_activation": "relu"}, r"head_activation tanh \(here relu\)"),
        (None, r"projection_dim None \(here 24\)"),
    ],
)
def test_another_form_is_refused_with_the_doors_that_work(change: dict[str, Any] | None, message: str, tmp_path: Path):
    model, tokenizer = build("bert", projection_dim=None if change else 24)
    model.config.tasks["topic"] |= change or {}
    with pytest.raises(ValueError, match=message) as error:
        write_native(model, tokenizer, tmp_path, "topic")
    for door in ("AutoModelForSequenceClassification", "trust_remote_code=True", "pipeline(", "--format onnx"):
        assert door in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_class_that_computes_something_else_is_found_out():
    model, tokenizer = build("bert")
    plain = plain_head(model, "topic")
    check_same_logits(model, plain, tokenizer, "topic")
    nn.init.zeros_(plain.bert.pooler.dense.weight)
    with pytest.raises(ValueError, match="the logits of BertForSequenceClassification differ by"):
        check_same_logits(model, plain, tokenizer, "topic")


@pytest.mark.parametrize("name", ["ner", "topic"])
def test_a_vocabulary_with_case_is_spelled_out(name: str, tmp_path: Path):
    model, tokenizer = build("bert", cased=True)
    write_head(model, tokenizer, name, tmp_path)
    auto = AutoModelForTokenClassification if name == "ner" else AutoModelForSequenceClassification
    check_logits(auto, name, tmp_path, model, tokenizer)
    plain, own_tokenizer = open_plain(auto, tmp_path)
    assert plain.config.vocab_size == len(own_tokenizer) == len(tokenizer) > len(tiny_tokenizer("bert"))
    ids = own_tokenizer("fast FAST")["input_ids"][1:-1]
    vectors = plain.get_input_embeddings()(torch.tensor(ids))
    assert len(ids) == 2 and not torch.equal(*vectors), "case is read"


def test_the_widgets_call_finds_our_simple_spans_and_cuts_where_we_do(tmp_path: Path):
    model, tokenizer = build("bert")
    write_head(model, tokenizer, "ner", tmp_path)
    stock = pipeline("token-classification", model=str(tmp_path), aggregation_strategy="simple", device="cpu")
    ours = model.predict(TEXTS, tokenizer, tasks=["ner"], aggregation_strategy="simple")
    for found, answer in zip(stock(TEXTS), ours, strict=True):
        spans = [(span["entity_group"], span["start"], span["end"]) for span in answer["ner"]]
        assert len(spans) > 1 and [(span["entity_group"], span["start"], span["end"]) for span in found] == spans
    encoding = tokenizer(" ".join(TEXTS * 10), truncation=True, max_length=64, return_offsets_mapping=True)
    last = encoding["offset_mapping"][-2][1]
    spans = stock(" ".join(TEXTS * 10))  # more tokens than the encoder has positions
    assert spans and 0 <= last - max(span["end"] for span in spans) < 20


def check_embeddings(folder: Path, model: MultiTaskModel, tokenizer: Any, expected: Any) -> None:
    """Assert that SentenceTransformer gives the model's embeddings, at its length and dimension."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    opened = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert_allclose(opened.encode([*TEXTS, " ".join(TEXTS * 10)]), expected, atol=1e-6)
    assert opened.get_embedding_dimension() == model.config.embedding_size
    assert opened.max_seq_length == model.max_length(tokenizer)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("config", [{}, {"projection_dim": 24, "normalize_embeddings": True}], ids=["bare", "all"])
def test_the_embedding_is_a_sentence_transformers_folder(pooling: str, config: dict[str, Any], tmp_path: Path):
    model, tokenizer = build("bert", pooling=pooling, **config)
    write_native(model, tokenizer, tmp_path)
    assert not list(tmp_path.glob("*.py"))
    expected = model.encode([*TEXTS, " ".join(TEXTS * 10)], tokenizer)
    assert expected.shape == (3, config.get("projection_dim", HIDDEN_SIZE))
    check_embeddings(tmp_path, model, tokenizer, expected)


def test_the_embedding_of_every_family_is_one(family: str, tmp_path: Path):
    model, tokenizer = build(family, cased=family == "bert", normalize_embeddings=True)
    write_embedding(model, tokenizer, tmp_path)
    check_embeddings(tmp_path, model, tokenizer, model.encode([*TEXTS, " ".join(TEXTS * 10)], tokenizer))


def test_a_similarity_task_is_its_embedding(tmp_path: Path):
    model, tokenizer = build("bert", normalize_embeddings=True)
    model.config.tasks["similarity"]["pooling"] = "max"
    write_native(model, tokenizer, tmp_path, "similarity")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    first, second = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    cosine = model.predict([tuple(TEXTS)], tokenizer, tasks=["similarity"], bf16=False)[0]["similarity"]["score"]
    assert first @ second == pytest.approx(cosine, abs=1e-6)


def test_an_unknown_task_is_refused_with_the_known_ones(tmp_path: Path):
    model, tokenizer = build("bert")
    with pytest.raises(ValueError, match="Unknown tasks .'entities'.; this model's tasks are: anchor, ner"):
        write_native(model, tokenizer, tmp_path, "entities")


@pytest.mark.slow
@pytest.mark.real_data
def test_the_widgets_call_on_real_text_gives_the_spans_of_the_models_own_folder(data_root: Path, tmp_path: Path):
    """Raw text of CoNLL-2003 through all-MiniLM, its vocabulary cased: the same spans but for ties of rounding."""
    source = find_encoder(ALL_MINILM_L6_V2, offline=True).path
    model = MultiTaskModel.from_backbone(source, tasks={"ner": TINY_TASKS["ner"]})
    tokenizer, bases, cases = cased_tokenizer(AutoTokenizer.from_pretrained(source))
    model.read_case(bases, cases)
    nn.init.normal_(model.get_input_embeddings().case.weight, std=0.05)
    nn.init.normal_(model.heads["ner"].out.weight, std=0.5)
    model.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    write_head(model, tokenizer, "ner", tmp_path / "plain")
    rows = load_dataset("parquet", data_files=str(next((data_root / "conll2003").glob("*test*.parquet"))))["train"]
    texts = [" ".join(words) for words in rows["tokens"][:300]]
    found = []
    for folder, options in ((tmp_path / "whole", {"trust_remote_code": True}), (tmp_path / "plain", {})):
        stock: Any = pipeline(
            "token-classification", model=str(folder), aggregation_strategy="simple", device="cpu", **options
        )
        found.append(
            {
                (row, span["entity_group"], span["start"], span["end"])
                for row, text in enumerate(texts)
                for span in stock(text)
            }
        )
    ours, plain = found
    assert len(ours) > 300, "premise"
    assert len(ours & plain) >= 0.999 * len(ours | plain)
