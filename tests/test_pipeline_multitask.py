"""Answers: spans that are the text's own characters, agreement with the stock pipeline, one item = a batch."""

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import HIDDEN_SIZE, TINY_TASKS, tiny_encoder, tiny_tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast, TokenClassificationPipeline, pipeline

import pipeline_multitask
from configuration_multitask import MultiTaskConfig
from modeling_multitask import MultiTaskForTokenClassification, MultiTaskModel
from pipeline_multitask import (
    MultiTaskPipeline,
    batches_by_length,
    decode_answers,
    decode_classification,
    decode_spans,
    decode_tags,
    group_words,
    token_counts,
    tokenize,
    tokenize_windows,
    trimmed,
    word_tokens,
)

pytestmark = pytest.mark.usefixtures("float32_answers")

JOINT = {"kind": "text-classification", "labels": ["no", "yes"], "text_pair": True}
TASKS = {**TINY_TASKS, "joint": JOINT}
TEXTS = [
    "Anna won the game in Paris.",
    "Rain",
    "The new phone is fast, and the team of John is very good on this cold day in Berlin.",
    "It was not cold.",
    "",
]
UNICODE = [
    "Zoë Müller visited São Paulo in May.",
    "東京 and naïve café 😀 Berlin",
    "two  spaces, a tab\tand a line\nof ﬁne ½ text… ",
    " (Anna's) phone-case: e.g. 3.14%",
]
# The stock pipeline counts a token of nothing but space, and tokens that share a character, as words: none in these.
COMPARABLE = [
    "Anna won the game in Paris.",
    "he is John and she is not in Berlin, the good city.",
    "people of Paris and Berlin won on a cold day",
]
COMPARABLE_LETTERS = ["Zoë visited the naïve team, not Berlin's.", "Good phone-case: the new phone isn't fast!"]
COMPARABLE_WORDPIECE = [*TEXTS[:4], "Zoë Müller visited São Paulo in May.", "(Anna's) phone-case: e.g. 3.14%"]
# A tokenizer of each kind: WordPiece, byte-level with and without trimmed offsets, Metaspace with and without splitting
SPAN_FAMILIES = ["bert", "roberta", "modernbert", "xlm-roberta", "deberta-v2"]


def new_model(family: str = "bert", cls: type = MultiTaskModel, **config: Any) -> Any:
    """A model in evaluation mode with one task of every kind, its heads drawn wide so that tags vary."""
    encoder = tiny_encoder(family)
    config = {"tasks": copy.deepcopy(TASKS), **config}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(MultiTaskConfig(encoder_config=encoder.config, **config), encoder=encoder).eval()
        for parameter in model.heads.parameters():
            nn.init.normal_(parameter, std=0.7)
    return model


@pytest.fixture(scope="module")
def model() -> MultiTaskModel:
    """The tiny BERT with every task, shared: do not change it."""
    return new_model()


@pytest.fixture(scope="module")
def folder(model: MultiTaskModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory) -> Path:
    """The saved model and its tokenizer."""
    path = tmp_path_factory.mktemp("saved")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def assert_same_answers(actual: Any, expected: Any) -> None:
    """Equal in structure and words, numbers within 1e-5."""
    assert type(actual) is type(expected), (actual, expected)
    if isinstance(expected, dict):
        assert sorted(actual) == sorted(expected)
        for key in expected:
            assert_same_answers(actual[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), (actual, expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same_answers(one, other)
    elif isinstance(expected, float | np.ndarray):
        assert_allclose(actual, expected, atol=1e-5, rtol=1e-4)
    else:
        assert actual == expected


# Decoding, by hand

BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXT = "Jo Li in NY"
PLACES = [(0, 2), (3, 5), (6, 8), (9, 11)]
SPAN_CASES = [
    ("B-PER I-PER O B-LOC", [("PER", "Jo Li"), ("LOC", "NY")]),
    ("B-PER B-PER O B-LOC", [("PER", "Jo"), ("PER", "Li"), ("LOC", "NY")]),
    ("O O O O", []),
    ("I-PER I-PER O I-LOC", [("PER", "Jo Li"), ("LOC", "NY")]),  # an I- without its B- starts an entity
    ("B-PER I-LOC O B-LOC", [("PER", "Jo"), ("LOC", "Li"), ("LOC", "NY")]),
    ("B-PER O I-PER I-PER", [("PER", "Jo"), ("PER", "in NY")]),
    ("B-PER I-PER I-PER I-PER", [("PER", "Jo Li in NY")]),
    ("I-LOC B-LOC I-LOC O", [("LOC", "Jo"), ("LOC", "Li in")]),
]


@pytest.mark.parametrize(("tags", "expected"), SPAN_CASES, ids=[tags for tags, _ in SPAN_CASES])
def test_bio_tags_become_these_spans(tags: str, expected: list[tuple[str, str]]):
    units = [(BIO.index(tag), 0.5 + i / 10, *PLACES[i]) for i, tag in enumerate(tags.split())]
    spans = decode_spans(BIO, units, TEXT)
    assert [(span["entity_group"], span["word"]) for span in spans] == expected
    assert all(TEXT[span["start"] : span["end"]] == span["word"] for span in spans)


def test_the_score_of_a_span_is_the_mean_over_its_words():
    units = [(1, 0.9, 0, 2), (2, 0.5, 3, 5), (0, 0.8, 6, 8), (3, 0.6, 9, 11)]
    assert [span["score"] for span in decode_spans(BIO, units, TEXT)] == pytest.approx([0.7, 0.6])


def test_tags_that_are_no_bio_answer_one_a_word():
    units = [(0, 0.9, 0, 2), (1, 0.8, 2, 5)]
    assert decode_tags(["NOUN", "VERB"], units, TEXT) == [
        {"entity": "NOUN", "score": 0.9, "word": "Jo", "start": 0, "end": 2},
        {"entity": "VERB", "score": 0.8, "word": "Li", "start": 3, "end": 5},  # the space before it is not its own
    ]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("none", [(0, 0.6, 0, 3), (1, 0.9, 3, 5), (0, 0.5, 6, 8)]),
        ("simple", [(0, 0.6, 0, 3), (1, 0.9, 3, 5), (0, 0.5, 6, 8)]),
        ("first", [(0, 0.6, 0, 5), (0, 0.5, 6, 8)]),
        ("average", [(1, 0.65, 0, 5), (0, 0.5, 6, 8)]),
        ("max", [(1, 0.9, 0, 5), (0, 0.5, 6, 8)]),
    ],
)
def test_subwords_of_a_word_merge_as_the_strategy_says(strategy: str, expected: list[tuple]):
    probabilities = torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.5, 0.5]])
    offsets = torch.tensor([[0, 3], [3, 5], [6, 8]])
    units = group_words(probabilities, offsets, torch.tensor([False, True, False]), strategy)
    assert [unit[0] for unit in units] == [unit[0] for unit in expected]
    assert [unit[1] for unit in units] == pytest.approx([unit[1] for unit in expected])
    assert [unit[2:] for unit in units] == [unit[2:] for unit in expected]


@pytest.mark.parametrize(
    ("text", "start", "end", "expected"),
    [("a bc ", 1, 5, (2, 4)), ("abc", 0, 3, (0, 3)), ("a \t b", 1, 4, (4, 4)), ("", 0, 0, (0, 0))],
)
def test_white_space_at_the_ends_belongs_to_no_span(text: str, start: int, end: int, expected: tuple[int, int]):
    assert trimmed(text, start, end) == expected


def test_classification_answers_by_problem_type():
    config = MultiTaskConfig(tasks=TASKS).tasks
    one = decode_classification(config["topic"], torch.tensor([0.2, 0.5, 0.3]).log())
    assert one["label"] == "Technology" and one["score"] == pytest.approx(0.5)
    assert list(one["scores"]) == ["Technology", "Weather", "Sports"]
    assert list(one["scores"].values()) == pytest.approx([0.5, 0.3, 0.2])
    assert list(decode_classification(config["topic"], torch.tensor([1.0, 2.0, 3.0]), top_k=2)["scores"]) == [
        "Weather",
        "Technology",
    ]
    several = decode_classification(config["tags"], torch.tensor([3.0, -3.0, 0.0, -0.1]))
    assert several["labels"] == ["cheap", "new"]  # a probability of exactly one half is a yes
    assert list(several["scores"]) == ["cheap", "new", "safe", "fast"]
    assert decode_classification(config["tags"], torch.full((4,), -3.0))["labels"] == []
    assert decode_classification(config["rating"], torch.tensor([-2.5])) == {"score": -2.5}


def test_a_similarity_without_a_pair_has_no_answer():
    tasks = MultiTaskConfig(tasks=TASKS).tasks
    nothing = torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool)
    assert decode_answers(tasks, {"similarity": torch.tensor(float("nan"))}, "", *nothing) == {}
    assert decode_answers(tasks, {"similarity": torch.tensor(0.5)}, "", *nothing) == {"similarity": {"score": 0.5}}


# Spans on real text


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("family", SPAN_FAMILIES)
def test_every_span_is_the_texts_own_characters(family: str, strategy: str):
    model, tokenizer = new_model(family), tiny_tokenizer(family)
    answers = model.predict(UNICODE, tokenizer, tasks=["ner", "upos"], aggregation_strategy=strategy)
    found = 0
    for text, answer in zip(UNICODE, answers, strict=True):
        for name in ("ner", "upos"):
            ends = [0]
            for span in answer[name]:
                found += 1
                assert span["word"] == text[span["start"] : span["end"]]
                assert span["word"] == span["word"].strip()
                assert 0 < span["score"] <= 1
                assert span["word"] and (span["start"] >= ends[-1] or strategy in ("none", "simple"))
                ends.append(span["end"])
    assert found > 10, "premise: there are spans to look at"


@pytest.mark.parametrize("family", SPAN_FAMILIES)
def test_every_word_gets_one_tag_whatever_its_pieces_and_the_space_around_it(family: str):
    text = "😀 Zoë visited  the naïve team\nin 東 Berlin "
    answer = new_model(family).predict([text], tiny_tokenizer(family), tasks=["upos"])[0]
    assert [tag["word"] for tag in answer["upos"]] == text.split()


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
@pytest.mark.parametrize("family", SPAN_FAMILIES)
def test_spans_agree_with_the_stock_pipeline(family: str, strategy: str):
    tokenizer = tiny_tokenizer(family)
    view = new_model(family, MultiTaskForTokenClassification, task_name="ner")
    stock = TokenClassificationPipeline(
        model=view, tokenizer=tokenizer, task="token-classification", aggregation_strategy=strategy, device="cpu"
    )
    whole = new_model(family)
    found = 0
    letters = {"bert": COMPARABLE_WORDPIECE, "roberta": COMPARABLE_LETTERS, "modernbert": COMPARABLE_LETTERS}
    for text in COMPARABLE + letters.get(family, []):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Tokenizer does not support real words", UserWarning)
            expected = stock(text)
        own = whole.predict([text], tokenizer, tasks=["ner"], aggregation_strategy=strategy)[0]["ner"]
        assert [span["entity_group"] for span in own] == [span["entity_group"] for span in expected]
        places = [trimmed(text, span["start"], span["end"]) for span in expected]  # the stock one may keep a space
        assert [(span["start"], span["end"]) for span in own] == places
        assert_allclose([span["score"] for span in own], [span["score"] for span in expected], atol=1e-5)
        found += len(own)
    assert found > 5, "premise: there are spans to compare"


# predict and encode


def test_each_kind_of_task_answers_in_its_own_form(model: MultiTaskModel, tokenizer: PreTrainedTokenizerFast):
    single, pair = model.predict([TEXTS[0], (TEXTS[0], TEXTS[3])], tokenizer)
    assert sorted(single) == ["anchor", "ner", "rating", "sentence_embedding", "tags", "topic", "upos"]
    assert sorted(pair) == sorted([*single, "similarity", "joint"])  # these need two texts
    assert sorted(single["topic"]) == ["label", "score", "scores"]
    assert sum(single["topic"]["scores"].values()) == pytest.approx(1)
    assert sorted(single["tags"]) == ["labels", "scores"]
    assert isinstance(single["rating"]["score"], float)
    assert single["anchor"].shape == single["sentence_embedding"].shape == (HIDDEN_SIZE,)
    assert -1 <= pair["similarity"]["score"] <= 1
    assert pair["joint"]["label"] in ("no", "yes")
    assert {"entity_group", "score", "word", "start", "end"} == set(single["ner"][0])
    assert {"entity", "score", "word", "start", "end"} == set(single["upos"][0])


def test_a_pair_is_compared_by_the_cosine_and_read_jointly_by_a_joint_task(model, tokenizer):
    first, second = TEXTS[0], TEXTS[3]
    answer = model.predict([(first, second)], tokenizer)[0]
    a, b = model.encode([first, second], tokenizer, normalize=True)
    assert answer["similarity"]["score"] == pytest.approx(float(a @ b), abs=1e-5)
    with torch.no_grad():
        logits = model(**tokenizer(first, second, return_tensors="pt"), tasks=["joint"]).logits["joint"][0]
    scores = sorted(logits.softmax(-1).tolist(), reverse=True)
    assert list(answer["joint"]["scores"].values()) == pytest.approx(scores, abs=1e-5)
    swapped = model.predict([(second, first)], tokenizer)[0]
    assert swapped["similarity"]["score"] == pytest.approx(answer["similarity"]["score"], abs=1e-5)


def test_a_pair_answers_for_its_first_text_in_every_task_that_reads_one(model, tokenizer):
    pair = model.predict([(TEXTS[2], TEXTS[0])], tokenizer)[0]
    alone = model.predict([TEXTS[2]], tokenizer)[0]
    assert_same_answers({name: pair[name] for name in alone}, alone)


def test_a_batch_answers_as_its_items_one_by_one_in_their_order(family: str):
    model, tokenizer = new_model(family), tiny_tokenizer(family)
    items = [*TEXTS, (TEXTS[3], TEXTS[0]), (TEXTS[1], TEXTS[2])]
    together = model.predict(items, tokenizer, batch_size=4)
    one_by_one = [model.predict([text], tokenizer)[0] for text in items]
    for actual, expected in zip(together, one_by_one, strict=True):
        assert_same_answers(actual, expected)
    vectors = model.encode(TEXTS, tokenizer, batch_size=4)
    assert_allclose(vectors, np.concatenate([model.encode([text], tokenizer) for text in TEXTS]), atol=1e-5, rtol=1e-4)
    assert_allclose(vectors, [answer["sentence_embedding"] for answer in one_by_one[:5]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("max_length", [16, 21, None])
def test_batches_are_padded_in_steps_and_never_beyond_the_limit(tokenizer, max_length: int | None):
    def width(words: int) -> int:
        return tokenize(tokenizer, ["cold " * words, "cold"], max_length)["input_ids"].shape[1]

    widths = [width(words) for words in range(1, 31)]
    if max_length == 21:  # no step: padded to the longest
        assert widths == [min(words + 2, 21) for words in range(1, 31)]
    else:
        assert widths == [min(-(-(words + 2) // 8) * 8, max_length or 32) for words in range(1, 31)]


def test_left_padding_tokenizers_answer_the_same(model: MultiTaskModel, tokenizer: PreTrainedTokenizerFast):
    left = tiny_tokenizer("bert")
    left.padding_side = "left"
    items = [*TEXTS, (TEXTS[3], TEXTS[0])]
    for actual, expected in zip(model.predict(items, left), model.predict(items, tokenizer), strict=True):
        assert_same_answers(actual, expected)


def test_batches_hold_every_text_once_the_one_with_most_tokens_first(tokenizer):
    texts = ["the day", ("the day", "the day"), "", "????????", "wonderful", "the"]
    counts = token_counts(tokenizer, texts)
    assert counts == [len(tokenizer.tokenize(text if isinstance(text, str) else " ".join(text))) for text in texts]
    assert counts[3] > counts[4] and len(texts[3]) < len(texts[4]), "premise: fewer characters, more tokens"
    batches = list(batches_by_length(tokenizer, texts, 2))
    assert [position for batch in batches for position in batch] == sorted(range(6), key=lambda index: -counts[index])
    assert [len(batch) for batch in batches] == [2, 2, 2]
    assert list(batches_by_length(tokenizer, [], 2)) == []


@pytest.mark.parametrize("configured", [False, True])
def test_encode_normalises_when_asked_and_by_default_as_configured(tokenizer, configured: bool):
    model = new_model(normalize_embeddings=configured)
    plain = model.encode(TEXTS, tokenizer, normalize=False)
    unit = model.encode(TEXTS, tokenizer, normalize=True)
    assert plain.dtype == unit.dtype == np.float32
    assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    assert np.abs(np.linalg.norm(plain, axis=1) - 1).min() > 0.01, "premise: it does something"
    assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)
    assert np.array_equal(model.encode(TEXTS, tokenizer), unit if configured else plain)
    answers = model.predict(TEXTS, tokenizer, tasks=[])
    assert_allclose([a["sentence_embedding"] for a in answers], unit if configured else plain, atol=1e-5)


def test_nothing_in_nothing_out_and_no_tasks_leave_the_embedding(model, tokenizer):
    assert model.predict([], tokenizer) == []
    assert model.encode([], tokenizer).shape == (0, HIDDEN_SIZE)
    assert list(model.predict(["Rain"], tokenizer, tasks=[])[0]) == ["sentence_embedding"]
    plain = new_model(tasks={})
    assert list(plain.predict(["Rain"], tokenizer)[0]) == ["sentence_embedding"]
    assert model.predict([""], tokenizer)[0]["ner"] == []


def test_top_k_limits_the_scores_and_not_the_answer(model, tokenizer):
    full, short = (model.predict([TEXTS[0]], tokenizer, top_k=top_k)[0] for top_k in (None, 1))
    assert short["topic"]["scores"] == {full["topic"]["label"]: full["topic"]["score"]}
    assert (short["topic"]["label"], short["tags"]["labels"]) == (full["topic"]["label"], full["tags"]["labels"])
    assert len(full["topic"]["scores"]) == 3 and len(short["tags"]["scores"]) == 1


def test_text_over_the_limit_is_read_on_for_tags_alone_and_the_log_says_so(tokenizer, caplog):
    model = new_model(max_seq_length=6)
    text = "the old day was not very good"
    with caplog.at_level(logging.WARNING):
        kept = model.encode(["the old day"], tokenizer)
        assert kept.shape == (1, HIDDEN_SIZE) and not caplog.records
        long, _ = model.predict([text, "Rain"], tokenizer)
    assert "1 of 2 texts are longer than 6 tokens: the rest is read for tags, in windows" in caplog.text
    assert [tag["word"] for tag in long["upos"]] == text.split()
    cut = model.predict(["the old day was"], tokenizer)[0]
    assert_same_answers(*({name: own[name] for name in ("topic", "sentence_embedding")} for own in (long, cut)))
    caplog.clear()
    model.predict([("Rain", text)], tokenizer)
    assert "longer than 6 tokens" in caplog.text


def without_context(family: str, **config: Any) -> MultiTaskModel:
    """A model that reads every token by itself: no attention, no positions."""
    model = new_model(family, **config)
    for name, parameter in model.encoder.named_parameters():
        if "attention.output.dense" in name or "attn.Wo" in name or "position_embeddings" in name:
            nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize("truncation_side", ["right", "left"])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_windows_give_every_token_its_tag_once_in_the_order_of_the_text(family: str, truncation_side: str):
    tokenizer = tiny_tokenizer(family)
    tokenizer.truncation_side = truncation_side
    texts = [" ".join([*UNICODE, *COMPARABLE] * 3), "Rain", " ".join(COMPARABLE), ""]
    options: dict[str, Any] = {"tasks": ["ner", "upos"], "batch_size": 3, "aggregation_strategy": "none"}
    whole = without_context(family, max_seq_length=500).predict(texts, tokenizer, **options)
    assert len(whole[0]["upos"]) > 100, "premise: a long text"
    for length in (11, 16, 40):
        parts = without_context(family, max_seq_length=length).predict(texts, tokenizer, **options)
        for part, expected in zip(parts, whole, strict=True):
            assert_same_answers(
                {name: part[name] for name in ("ner", "upos")}, {name: expected[name] for name in ("ner", "upos")}
            )


@pytest.mark.parametrize("truncation_side", ["right", "left"])
def test_no_token_is_taken_from_the_edge_of_a_window_with_text_beyond_it(truncation_side: str):
    tokenizer = tiny_tokenizer("bert")
    tokenizer.truncation_side = truncation_side
    text = " ".join(["the"] * 100)
    windows = tokenize_windows(tokenizer, ["Rain", text], max_length=18)
    assert windows.overlap == 4 and len(windows.rows[1]) == 8, "premise: sixteen tokens a window, twelve of them new"
    rows, columns = word_tokens(windows, 1, text)
    assert len(rows) == 100
    starts = windows.encoding["offset_mapping"][rows, columns, 0].tolist()
    assert starts == [4 * place for place in range(100)]
    for row in windows.rows[1]:
        of_row = [place for place, own in enumerate(rows.tolist()) if own == row]
        read = [int(start) // 4 for start, end in windows.encoding["offset_mapping"][row].tolist() if end]
        assert of_row[0] - read[0] >= 2 or read[0] == 0
        assert read[-1] - of_row[-1] >= 2 or read[-1] == 99


def test_predict_multiplies_in_bfloat16_where_asked_and_by_default_where_the_hardware_does(
    model, tokenizer, monkeypatch
):
    def scores(**options: Any) -> list[float]:
        return [answer["topic"]["score"] for answer in model.predict(TEXTS, tokenizer, tasks=["topic"], **options)]

    exact, fast = scores(bf16=False), scores(bf16=True)
    assert exact != fast and fast == pytest.approx(exact, abs=0.02)
    for has_it, expected in ((True, fast), (False, exact)):
        monkeypatch.setattr(pipeline_multitask, "computes_bfloat16", lambda device, has_it=has_it: has_it)
        assert scores() == expected
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_predicting_leaves_the_mode_as_it_was_and_uses_no_dropout(tokenizer: PreTrainedTokenizerFast):
    model = new_model(head_dropout=0.5)
    quiet = model.predict(TEXTS, tokenizer)
    model.train()
    for actual, expected in zip(model.predict(TEXTS, tokenizer), quiet, strict=True):
        assert_same_answers(actual, expected)
    model.encode(TEXTS, tokenizer)
    assert model.training and model.heads["topic"].training
    with pytest.raises(ValueError, match="Unknown tasks"):
        model.predict(TEXTS, tokenizer, tasks=["x"])
    assert model.training


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["a"], {"tasks": ["topics"]}, r"Unknown tasks \['topics'\]; this model's tasks are: anchor"),
        (["a"], {"aggregation_strategy": "last"}, "must be one of none, simple, first, average, max; got 'last'"),
        (["a", None], {}, "Item 1 must be a string or a pair of strings; got None"),
        ([("a", "b", "c")], {}, "Item 0 must be a string or a pair of strings"),
        ([("a", 3)], {}, "Item 0 must be a string or a pair of strings"),
        ("a text", {}, "Give a list of texts, not one string"),
        (["a"], {"tasks": "ner"}, "Give a list of tasks, not one string"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(model, tokenizer, texts: Any, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        model.predict(texts, tokenizer, **options)


def test_encode_takes_texts_and_not_pairs(model: MultiTaskModel, tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(ValueError, match="Item 1 must be a string"):
        model.encode(["a", 5], tokenizer)
    with pytest.raises(ValueError, match="Item 1 must be a string"):
        model.encode(["a", ("a", "b")], tokenizer)
    with pytest.raises(ValueError, match="Give a list of texts, not one string"):
        model.encode("a text", tokenizer)


def test_a_tokenizer_without_offsets_is_refused(model: MultiTaskModel):
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="only a fast tokenizer gives; got Slow"):
        model.predict(["a"], Slow())


# The pipeline

ITEMS = [*TEXTS[:3], (TEXTS[3], TEXTS[0]), TEXTS[4]]


def as_lists(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer of `predict` with arrays as lists."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in answer.items()}


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_pipeline_answers_as_predict_does_for_one_item_and_for_lists(model, tokenizer, batch_size: int):
    pipe = MultiTaskPipeline(model=model, tokenizer=tokenizer, device="cpu")
    expected = [as_lists(answer) for answer in model.predict(ITEMS, tokenizer)]
    for item, answer in zip(ITEMS, expected, strict=True):
        assert_same_answers(pipe(item), answer)
    answers = pipe(ITEMS, batch_size=batch_size)
    assert len(answers) == len(ITEMS)
    for actual, answer in zip(answers, expected, strict=True):
        assert_same_answers(actual, answer)


def test_the_saved_folder_opens_as_a_multitask_pipeline(folder: Path, model, tokenizer):
    pipe = pipeline("multitask", model=str(folder), trust_remote_code=True, device="cpu")
    answers = pipe(ITEMS, batch_size=2, bf16=False)
    for actual, expected in zip(answers, model.predict(ITEMS, tokenizer), strict=True):
        assert_same_answers(actual, as_lists(expected))
    answer = pipe(TEXTS[0], tasks=["topic"], top_k=1)
    assert sorted(answer) == ["sentence_embedding", "topic"] and len(answer["topic"]["scores"]) == 1
    spans = pipe(TEXTS[0], tasks=["ner"], aggregation_strategy="none")["ner"]
    assert spans and "entity" in spans[0]


def test_options_given_to_the_pipeline_hold_for_every_call_and_a_call_can_change_them(model, tokenizer):
    pipe = MultiTaskPipeline(model=model, tokenizer=tokenizer, device="cpu", tasks=["topic"])
    assert sorted(pipe(TEXTS[0])) == ["sentence_embedding", "topic"]
    assert sorted(pipe(TEXTS[0], tasks=["ner"])) == ["ner", "sentence_embedding"]
    with pytest.raises(ValueError, match=r"Unknown options \['topk'\]"):
        pipe(TEXTS[0], topk=2)
    with pytest.raises(ValueError, match="Unknown tasks"):
        pipe(TEXTS[0], tasks=["topics"])
