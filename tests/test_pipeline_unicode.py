"""Decoding of odd Unicode: every span is the text's own characters, and the words are the stock pipeline's but by rule.

Tags are random, so no encoder runs: what is under test is the way from tokens to spans. Where the stock pipeline reads
other words is said in `continues_word`; outside of that the spans, groups and scores are equal.
"""

import functools
import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_pipeline_multitask import new_model
from tiny_models import ENCODER_FAMILIES, TINY_TASKS, WORDS, tiny_tokenizer
from transformers import TokenClassificationPipeline
from transformers.pipelines.token_classification import AggregationStrategy

from modeling_multitask import MultiTaskForTokenClassification
from pipeline_multitask import AGGREGATION_STRATEGIES, Windows, item_answers, tokens_of_text, trimmed

pytestmark = pytest.mark.usefixtures("float32_answers")

WORDPIECE = ("bert", "mpnet")
FAMILIES = (*WORDPIECE, "roberta", "modernbert", "xlm-roberta", "deberta-v2")
"""One of every tokenizer that differs; a test says that the other families share theirs."""

TAGS = TINY_TASKS["upos"]

ODD: dict[str, list[str]] = {
    "combining marks": [
        "e\u0301",
        "Zoe\u0308",
        "\u0301",
        "a\u0300\u0323",
        "th\u0301e",
        "क्षि",
        "กำ",
        "\u1112\u1161\u11ab",
    ],
    "emoji": ["😀", "👩\u200d👩\u200d👧\u200d👦", "👍🏽", "🇩🇪", "❤\ufe0f", "1\ufe0f\u20e3", "🏳\ufe0f\u200d🌈"],
    "right to left": ["שלום", "مرحبا", "\u200fעברית\u200e", "\u202eabc\u202c", "ﷺ"],
    "zero width": ["\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "pho\u200dne", "the\u200bed", "in\u00adg"],
    "white space": ["  ", "\r\n", "\n", "\t", "\u00a0", "\u3000", "\u2028", "\u2009", " \u00a0 ", "\x85", "\x1c", "\v"],
    "wide and joined": ["東京", "ﬁne", "½", "…", "Ａｂ", "㍿", "İs", "ßa", "ǅ"],
    "astral": ["𝒜𝓃𝓃𝒶", "𐍈", "𠀋", "🧑", "\U000e0067", "\U0010fffd"],
    "odd": ["\x00", "\x07", "\ufffd", "\ue000", "\ufffe", "<s>", "[SEP]", "##ing", "▁", "Ġ", "▁the"],
}
TAILS = [
    "",
    "",
    "ing",
    "s",
    "er",
    "x",
    ".",
    "'s",
    ",",
    "-case",
    "ﬁ",
    "Ａｂ",
    "e\u0301",
    "ü",
    "😀",
    "\u200b",
    "東",
    "\u0301s",
]


def random_character(generator: random.Random) -> str:
    """Any code point but a surrogate."""
    code = generator.randrange(0x110000 - 0x800)
    return chr(code if code < 0xD800 else code + 0x800)


def wild_text(generator: random.Random) -> str:
    """A few odd pieces and words, with a space between some of them."""
    parts = []
    for _ in range(generator.randrange(9)):
        odd = generator.choice(ODD[generator.choice(list(ODD))])
        parts.append(generator.choice([odd, odd, generator.choice(WORDS), random_character(generator)]))
        parts.append(generator.choice(["", " "]))
    return "".join(parts)


def tame_text(generator: random.Random) -> str:
    """Known words with a space between them, some with an odd ending."""
    return " ".join(generator.choice(WORDS) + generator.choice(TAILS) for _ in range(generator.randrange(1, 7)))


def fuzzed_texts(count: int, seed: int = 0) -> list[str]:
    """Wild and tame texts in turn, always the same ones."""
    generator = random.Random(seed)
    return [(tame_text if index % 2 else wild_text)(generator) for index in range(count)]


@functools.cache
def view(family: str) -> Any:
    """The stock token-classification pipeline on a one-head view; its encoder stays idle."""
    model = new_model(family, MultiTaskForTokenClassification, task_name="ner")
    return TokenClassificationPipeline(
        model=model, tokenizer=tiny_tokenizer(family), task="token-classification", device="cpu"
    )


def tagged(family: str, texts: list[str], batch_size: int = 100) -> Iterator[tuple[list[str], Any, torch.Tensor]]:
    """The texts in batches, tokenised as `predict` does, with random logits of the tags. Shape (texts, tokens, 5)."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = tiny_tokenizer(family)
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        encoding = tokenizer(
            batch, padding=True, return_tensors="pt", return_offsets_mapping=True, return_special_tokens_mask=True
        )
        yield batch, encoding, 2 * torch.randn(*encoding["input_ids"].shape, 5, generator=generator)


def own_answers(family: str, texts: list[str], encoding: Any, logits: torch.Tensor, strategy: str) -> list[Any]:
    """Our spans of every text (with `none`: tags)."""
    tasks = {"ner": view(family).model.config.tasks["ner"]}
    tokenizer = tiny_tokenizer(family)
    windows = Windows(encoding, [[row] for row in range(len(texts))], overlap=0, of_text=tokens_of_text(encoding))
    answers = item_answers(tasks, tokenizer, windows, {"ner": logits}, texts, aggregation_strategy=strategy)
    return [answer["ner"] for answer in answers]


def stock_answer(family: str, text: str, encoding: Any, index: int, logits: torch.Tensor, strategy: str) -> list[Any]:
    """The stock pipeline's spans of one text, from the same logits."""
    there = encoding["attention_mask"][index].bool()
    names = ("input_ids", "offset_mapping", "special_tokens_mask")
    output = {name: encoding[name][index][there][None] for name in names}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tokenizer does not support real words", UserWarning)
        return view(family).postprocess(
            [{**output, "logits": logits[index][there][None], "sentence": text}],
            aggregation_strategy=AggregationStrategy[strategy.upper()],
        )


def disputes(family: str, text: str, encoding: Any, index: int) -> set[str]:
    """Why the stock pipeline may read other words of a text: the rule in `continues_word`, as its names."""
    tokenizer = tiny_tokenizer(family)
    ids, places, special = (encoding[name][index] for name in ("input_ids", "offset_mapping", "special_tokens_mask"))
    found, before = set(), -1
    for token, (start, end) in zip(ids[special == 0].tolist(), places[special == 0].tolist(), strict=True):
        start = trimmed(text, start, end)[0]
        follows_space = start == 0 or text[start - 1] == " "
        piece = tokenizer.convert_ids_to_tokens(token)
        is_unknown = token == tokenizer.unk_token_id
        if start == end:
            found.add("blank")
        if family in WORDPIECE and len(piece.removeprefix("##")) != end - start and not is_unknown:
            found.add("length")
        if family not in WORDPIECE:
            if is_unknown:
                found.add("unknown")
            if start == before and follows_space:
                found.add("shared")
            if not follows_space and text[start - 1].isspace():
                found.add("other white space")
        before = start
    return found


def test_the_other_families_have_one_of_these_tokenizers():
    known = {tiny_tokenizer(family).backend_tokenizer.to_str() for family in FAMILIES}
    assert len(known) == len(FAMILIES)
    assert {tiny_tokenizer(family).backend_tokenizer.to_str() for family in ENCODER_FAMILIES} == known


def test_the_texts_hold_what_they_promise():
    everything = "".join(fuzzed_texts(500))
    assert all(piece in everything for pieces in ODD.values() for piece in pieces)
    assert {len(character.encode()) for character in everything} == {1, 2, 3, 4}
    everything.encode()  # no surrogates


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_span_of_a_fuzzed_text_is_the_texts_own_characters(family: str, count: int):
    """With every strategy in turn; by words, spans are in order and apart (characters of several bytes are tokens)."""
    found = 0
    for number, (texts, encoding, logits) in enumerate(tagged(family, fuzzed_texts(count))):
        strategy = AGGREGATION_STRATEGIES[number % len(AGGREGATION_STRATEGIES)]
        for text, spans in zip(texts, own_answers(family, texts, encoding, logits, strategy), strict=True):
            ends = [0]
            for span in spans:
                start, end = span["start"], span["end"]
                assert 0 <= start < end <= len(text), (text, span)
                assert text[start:end] == span["word"] == span["word"].strip(), (text, span)
                assert 0 < span["score"] <= 1
                assert start >= ends[-1] or strategy in ("none", "simple"), (text, spans)
                ends.append(end)
            found += len(spans)
    assert found > count, "premise: there are spans to look at"


@pytest.mark.parametrize("count", [500, pytest.param(3_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_spans_of_fuzzed_texts_agree_with_the_stock_pipeline_outside_the_stated_rule(family: str, count: int):
    strategies = ("simple", "first", "average")
    compared = dict.fromkeys(strategies, 0)
    for number, (texts, encoding, logits) in enumerate(tagged(family, fuzzed_texts(count))):
        strategy = strategies[number % len(strategies)]
        for index, own in enumerate(own_answers(family, texts, encoding, logits, strategy)):
            causes = disputes(family, texts[index], encoding, index)
            if causes & ({"blank"} if strategy == "simple" else causes):
                continue
            stock = stock_answer(family, texts[index], encoding, index, logits, strategy)
            places = [trimmed(texts[index], span["start"], span["end"]) for span in stock]  # it may keep a space
            assert [span["entity_group"] for span in own] == [span["entity_group"] for span in stock], texts[index]
            assert [(span["start"], span["end"]) for span in own] == places, texts[index]
            assert [span["score"] for span in own] == pytest.approx([s["score"] for s in stock], abs=1e-6, rel=0)
            compared[strategy] += len(own)
    assert min(compared.values()) > count / 20, f"premise: there are spans to compare; {compared}"


@pytest.mark.parametrize(
    ("family", "text", "cause", "own_words", "stock_words"),
    [
        ("bert", "the pho\u200dne", "length", ["the", "pho\u200dne"], 1),
        ("xlm-roberta", "the東 the", "unknown", ["the東", "the"], 3),
        ("roberta", "ü the", "shared", ["ü", "the"], 3),
        ("xlm-roberta", "the\nthe", "other white space", ["the", "the"], 1),
        ("roberta", "the  the", "blank", ["the", "the"], 3),
    ],
)
def test_each_part_of_the_rule_names_a_text_with_other_words(family, text, cause, own_words, stock_words):
    tokenizer, ((_, encoding, logits),) = tiny_tokenizer(family), tagged(family, [text])
    assert disputes(family, text, encoding, 0) == {cause}
    windows = Windows(encoding, [[0]], overlap=0, of_text=tokens_of_text(encoding))
    tags = item_answers({"tags": TAGS}, tokenizer, windows, {"tags": logits}, [text], aggregation_strategy="first")
    assert [tag["word"] for tag in tags[0]["tags"]] == own_words
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tokenizer does not support real words", UserWarning)
        tokens = view(family).gather_pre_entities(
            text,
            encoding["input_ids"][0],
            logits[0].numpy(),
            encoding["offset_mapping"][0],
            encoding["special_tokens_mask"][0].numpy(),
            AggregationStrategy.FIRST,
        )
    assert len(view(family).aggregate_words(tokens, AggregationStrategy.FIRST)) == stock_words
