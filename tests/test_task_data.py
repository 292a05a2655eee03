"""`task_data`: splits are cut alike for all tasks, and features are exactly these, for every family of tokenizers."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ENCODER_FAMILIES, tiny_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import task_data
from arguments_multitask import TaskArguments
from task_data import (
    LoadedTask,
    choose_validation,
    continuation_tags,
    duplicate_texts,
    join_words,
    load_tasks,
    tag_tokens,
    teacher_embeddings,
    tokenize_rows,
    words_of_tokens,
)

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
NER = {"kind": "token-classification", "labels": TAGS}
TOPIC = {"kind": "text-classification", "problem_type": "single_label_classification", "labels": ["x", "y"]}
SIMILARITY = {"kind": "sentence-similarity"}
TEACHER = {"kind": "feature-extraction"}
NOTHING_LOST = {"truncated": 0, "truncated_words": 0, "empty_words": 0, "unlabelled": 0}


@pytest.fixture(scope="module")
def wordpiece() -> PreTrainedTokenizerFast:
    """[CLS] = 2, [SEP] = 3, "Anna" = 7, "Berlin" = 8 + 9; zero-width spaces are dropped."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "and", "in", "is", "Anna", "Ber", "##lin"]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace("\u200b", "")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **roles)


def text_rows(labels: list[Any], texts: list[str] | None = None, **columns: list[Any]) -> Dataset:
    """Canonical rows of texts."""
    texts = texts or ["Anna is in Berlin"] * len(labels)
    return Dataset.from_dict({"text": texts, **columns, "label": labels, "row": list(range(len(labels)))})


def word_rows(tokens: list[list[str]], labels: list[Any]) -> Dataset:
    """Canonical rows of words."""
    return Dataset.from_dict({"tokens": tokens, "label": labels, "row": list(range(len(tokens)))})


def write_rows(folder: Path, counts: dict[str, int], name: str = "train.csv") -> str:
    """A CSV file with as many rows of each class, and a number as second label."""
    lines = [f"text {label} {i},{label},{i % 5}\n" for label, count in counts.items() for i in range(count)]
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("text,label,stars\n" + "".join(lines))
    return str(folder)


def load(dataset: Any, seed: int = 42, **fields: Any) -> LoadedTask:
    """One task, loaded."""
    return load_tasks({"topic": TaskArguments(dataset=dataset, **fields)}, seed=seed)["topic"]


def row_sets(task: LoadedTask) -> dict[str, list[int]]:
    return {split: rows["row"][:] for split, rows in task.splits.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def test_a_task_is_loaded_with_its_specification_source_and_notes(tmp_path: Path) -> None:
    write_rows(tmp_path / "news", {"x": 6, "y": 4})
    write_rows(tmp_path / "news", {"x": 2}, "test.csv")
    tasks = {"topic": TaskArguments(dataset="me/news", validation_fraction=0.2, max_rows=5)}
    task = load_tasks(tasks, data_root=str(tmp_path))["topic"]
    assert task.spec["labels"] == ["x", "y"] and task.spec["loss"] == {"weight": 1.0}
    assert list(task.splits) == ["train", "validation", "test"]
    assert task.splits["test"].to_list() == [
        {"text": "text x 0", "label": 0, "row": 0},
        {"text": "text x 1", "label": 0, "row": 1},
    ]
    assert task.source == {
        "dataset": "me/news",
        "config": None,
        "revision": None,
        "commit": None,
        "license": None,
        "language": [],
        "location": "data_root/news",
        "splits": {"train": "train", "test": "test", "validation": "train (0.2 of it, seed 42)"},
        "source_rows": {"test": 2, "train": 10},
        "rows": {"train": 5, "validation": 2, "test": 2},
    }
    assert task.notes == [
        "Task 'topic': its rows come from data_root/news in place of 'me/news' on the Hub.",
        "Task 'topic': text-classification, single_label_classification; text from 'text', label from 'label'; 2 "
        "labels: x, y (inferred: kind, text, label, label names).",
        "Task 'topic': no validation split is read, so 2 of 10 train rows (20%) are cut off for it, stratified by "
        "class, seed 42.",
        "Task 'topic': 5 of 8 train rows are used, drawn with seed 42.",
    ]
    assert str(tmp_path) not in str(task.source)


def test_a_validation_split_is_cut_by_class_and_by_seed(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "news", {"x": 60, "y": 30, "z": 10})
    first, again, other = (load(folder, seed=seed, validation_fraction=0.2) for seed in (1, 1, 2))
    assert row_sets(first) == row_sets(again) != row_sets(other)
    for task in (first, other):
        assert np.bincount(task.splits["validation"]["label"][:]).tolist() == [12, 6, 2]
        rows = row_sets(task)
        assert sorted(rows["train"] + rows["validation"]) == list(range(100))


@pytest.mark.parametrize("share", [0.01, 0.1, 1 / 3, 0.5, 0.9])
def test_each_class_loses_its_share_to_within_one_row(share: float) -> None:
    classes = np.random.default_rng(0).choice(7, size=1_000, p=[0.4, 0.3, 0.2, 0.05, 0.03, 0.015, 0.005])
    chosen = choose_validation(1_000, share, [classes], seed=3)
    assert len(chosen) == len(set(chosen)) == round(1_000 * share)
    lost, all_rows = np.bincount(classes[chosen], minlength=7), np.bincount(classes, minlength=7)
    assert (np.abs(lost - all_rows * share) <= 1).all()


def test_the_cut_of_the_docstring() -> None:
    classes = np.array([0, 0, 1, 0, 1, 0])
    assert np.bincount(classes[choose_validation(6, 0.5, [classes], seed=0)]).tolist() == [2, 1]


def test_no_validation_split_is_cut_where_none_is_wanted(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "news", {"x": 6, "y": 4})
    assert list(load(folder, validation_fraction=0.0).splits) == ["train"]
    write_rows(tmp_path / "news", {"x": 3}, "validation.csv")
    assert row_sets(load(folder))["validation"] == [0, 1, 2]


def test_tasks_on_the_same_train_rows_are_cut_alike_and_aligned_if_they_read_the_same_texts(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "news", {"x": 60, "y": 40})
    stars = {"columns": {"label": "stars"}, "labels": ["0", "1", "2", "3", "4"]}
    tasks = {
        "topic": TaskArguments(dataset=folder, columns={"label": "label"}),
        "stars": TaskArguments(dataset=folder, **stars),
        "rating": TaskArguments(dataset=folder, columns={"label": "stars"}, problem_type="regression", max_rows=50),
    }
    loaded = load_tasks(tasks)
    assert loaded["topic"].source_key == loaded["stars"].source_key != loaded["rating"].source_key
    rows = {name: row_sets(task) for name, task in loaded.items()}
    assert rows["topic"] == rows["stars"]
    assert rows["rating"]["validation"] == rows["topic"]["validation"]
    assert set(rows["rating"]["train"]) < set(rows["topic"]["train"])
    for name in ("topic", "stars"):
        share = np.bincount(loaded[name].splits["validation"]["label"][:]) / 10
        whole = {"topic": [0.6, 0.4], "stars": [0.2] * 5}[name]
        assert np.abs(share - whole).max() <= 0.1001


def test_tasks_on_the_same_train_rows_must_be_cut_alike(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "news", {"x": 6, "y": 4})
    tasks = {
        name: TaskArguments(dataset=folder, columns={"label": "label"}, validation_fraction=share)
        for name, share in (("a", 0.1), ("b", 0.2))
    }
    with pytest.raises(
        ValueError, match="'a' and 'b' read the same train split, .* got validation_fraction 0.1 and 0.2"
    ):
        load_tasks(tasks)


def test_caps_are_by_split_and_keep_the_order_of_rows(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "news", {"x": 30, "y": 30})
    write_rows(tmp_path / "news", {"x": 30}, "test.csv")
    rows = row_sets(load(folder, max_rows={"train": 20, "test": 10, "validation": 99}))
    assert {split: len(numbers) for split, numbers in rows.items()} == {"train": 20, "validation": 6, "test": 10}
    assert all(numbers == sorted(numbers) for numbers in rows.values())
    assert rows == row_sets(load(folder, max_rows={"train": 20, "test": 10, "validation": 99}))


def test_only_the_splits_that_are_asked_for_come_back(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "news", {"x": 6, "y": 4})
    write_rows(tmp_path / "news", {"x": 3}, "test.csv")
    tasks = {"topic": TaskArguments(dataset=folder)}
    assert list(load_tasks(tasks, splits=("test",))["topic"].splits) == ["test"]
    everything = load_tasks(tasks)["topic"]
    assert (
        row_sets(load_tasks(tasks, splits=("validation",))["topic"])["validation"] == row_sets(everything)["validation"]
    )
    only_test = {"topic": TaskArguments(dataset={"test": f"{folder}/test.csv"})}
    assert len(load_tasks(only_test, splits=("test",))["topic"].splits["test"]) == 3
    with pytest.raises(ValueError, match="training needs a train split; the source has test"):
        load_tasks(only_test)


def test_labels_of_a_saved_model_are_matched_by_name(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "news", {"x": 6, "y": 4})
    tasks = {"topic": TaskArguments(dataset=folder, validation_fraction=0.0)}
    known = load_tasks(tasks, known_labels={"topic": ["y", "other", "x"]})["topic"]
    assert known.spec["labels"] == ["y", "other", "x"]
    assert known.splits["train"]["label"][:] == [2] * 6 + [0] * 4
    with pytest.raises(ValueError, match="row 6 of split 'train' has 'y'. The labels are x, z"):
        load_tasks(tasks, known_labels={"topic": ["x", "z"]})


def test_a_row_needs_a_label_of_one_task_at_least(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "a", "p": "x", "q": null}', '{"text": "b", "p": null, "q": "y"}']
    path.write_text("\n".join(lines))
    tasks = {
        name: TaskArguments(dataset=str(path), columns={"label": name}, validation_fraction=0.0) for name in ("p", "q")
    }
    loaded = load_tasks(tasks)
    assert [task.splits["train"]["label"][:] for task in loaded.values()] == [[0, None], [None, 0]]
    with pytest.raises(ValueError, match=r"Task 'q': each row needs a label .*; row 0 of split 'train' has None\. "):
        load_tasks({"q": tasks["q"]})
    path.write_text("\n".join([*lines, *['{"text": "c", "p": null, "q": null}'] * 2]))
    with pytest.raises(
        ValueError, match="Task 'p', 'q': each row needs .* row 2 of split 'train' has None, and 1 more"
    ):
        load_tasks(tasks)


def test_every_built_in_task_loads_without_a_word() -> None:
    names = ("topic", "sentence_type", "sentiment", "entities", "similarity")
    loaded = load_tasks({name: TaskArguments(dataset=f"builtin:{name}") for name in names})
    assert [task.spec["kind"] for task in loaded.values()] == [
        *["text-classification"] * 3,
        "token-classification",
        "sentence-similarity",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Features


def test_words_with_tags_become_the_features_of_the_docstring(wordpiece: PreTrainedTokenizerFast) -> None:
    rows = Dataset.from_list([{"tokens": ["Anna", "Berlin"], "label": [1, 3], "row": 5}])
    features, counts = tokenize_rows({"ner": rows}, {"ner": NER}, wordpiece, 16)
    assert features.to_list() == [
        {"input_ids": [2, 7, 8, 9, 3], "labels": {"ner": [-100, 1, 3, 4, -100]}, "length": 5, "row": 5}
    ]
    assert counts == NOTHING_LOST
    features, _ = tokenize_rows({"ner": rows}, {"ner": NER}, wordpiece, 16, label_all_subwords=False)
    assert features["labels"][0] == {"ner": [-100, 1, 3, -100, -100]}


def test_a_text_with_a_class(wordpiece: PreTrainedTokenizerFast) -> None:
    features, counts = tokenize_rows({"topic": text_rows([1])}, {"topic": TOPIC}, wordpiece, 16)
    assert features.to_list() == [{"input_ids": [2, 7, 6, 5, 8, 9, 3], "labels": {"topic": 1}, "length": 7, "row": 0}]
    assert counts == NOTHING_LOST


def test_a_pair_is_read_jointly_by_a_classification_and_apart_by_a_similarity(
    wordpiece: PreTrainedTokenizerFast,
) -> None:
    rows = text_rows([1], ["Anna"], text_pair=["in Berlin"])
    features, _ = tokenize_rows({"topic": rows}, {"topic": TOPIC}, wordpiece, 16)
    assert features.to_list() == [
        {
            "input_ids": [2, 7, 3, 5, 8, 9, 3],
            "token_type_ids": [0, 0, 0, 1, 1, 1, 1],
            "labels": {"topic": 1},
            "length": 7,
            "row": 0,
        }
    ]
    rows = text_rows([0.5], ["Anna"], text_pair=["in Berlin"])
    features, _ = tokenize_rows({"same": rows}, {"same": SIMILARITY}, wordpiece, 16)
    assert features.to_list() == [
        {
            "input_ids": [2, 7, 3],
            "pair_input_ids": [2, 5, 8, 9, 3],
            "labels": {"same": 0.5},
            "length": 5,
            "row": 0,
        }
    ]


def test_token_types_are_left_out_where_the_tokenizer_makes_none() -> None:
    rows = text_rows([1], ["Anna"], text_pair=["in Berlin"])
    features, _ = tokenize_rows({"topic": rows}, {"topic": TOPIC}, tiny_tokenizer("roberta"), 64)
    assert features.column_names == ["input_ids", "labels", "length", "row"]


def test_aligned_tasks_are_one_item_with_several_labels(wordpiece: PreTrainedTokenizerFast) -> None:
    several = {"kind": "text-classification", "problem_type": "multi_label_classification", "labels": ["p", "q"]}
    rows = {
        "topic": text_rows([1, None]),
        "marks": text_rows([[1.0, 0.0], [0.0, 1.0]]),
        "anchor": text_rows([[0.5]] * 2),
    }
    specs = {"topic": TOPIC, "marks": several, "anchor": TEACHER}
    features, _ = tokenize_rows(rows, specs, wordpiece, 16)
    assert features["labels"][:] == [
        {"topic": 1, "marks": [1.0, 0.0], "anchor": [0.5]},
        {"topic": None, "marks": [0.0, 1.0], "anchor": [0.5]},
    ]
    words = [["Anna"], ["Berlin"]]
    rows = {"ner": word_rows(words, [[1], [3]]), "upos": word_rows(words, [[0], None])}
    upos = {"kind": "token-classification", "labels": ["NOUN", "VERB"]}
    features, _ = tokenize_rows(rows, {"ner": NER, "upos": upos}, wordpiece, 16)
    assert features["labels"][:] == [
        {"ner": [-100, 1, -100], "upos": [-100, 0, -100]},
        {"ner": [-100, 3, 4, -100], "upos": None},
    ]


def test_an_item_without_a_label_is_left_out_and_counted(wordpiece: PreTrainedTokenizerFast) -> None:
    features, counts = tokenize_rows({"topic": text_rows([1, None, 0])}, {"topic": TOPIC}, wordpiece, 16)
    assert features["row"][:] == [0, 2] and counts == NOTHING_LOST | {"unlabelled": 1}


def test_what_does_not_fit_is_cut_and_counted(wordpiece: PreTrainedTokenizerFast) -> None:
    rows = word_rows([["Anna", "is", "in", "Berlin"], ["Anna"]], [[1, 0, 0, 3], [1]])
    features, counts = tokenize_rows({"ner": rows}, {"ner": NER}, wordpiece, 6)
    assert features["input_ids"][:] == [[2, 7, 6, 5, 8, 3], [2, 7, 3]]
    assert counts == NOTHING_LOST | {"truncated": 1}  # half of Berlin is still there
    features, counts = tokenize_rows({"ner": rows}, {"ner": NER}, wordpiece, 4)
    assert features["labels"][0] == {"ner": [-100, 1, 0, -100]}
    assert counts == NOTHING_LOST | {"truncated": 1, "truncated_words": 2}
    pairs = text_rows([0.5, 0.5], ["Anna", "Anna"], text_pair=["Anna", "Anna in Berlin"])
    _, counts = tokenize_rows({"same": pairs}, {"same": SIMILARITY}, wordpiece, 5)
    assert counts == NOTHING_LOST | {"truncated": 1}


def test_a_word_that_the_tokenizer_drops_is_counted_and_moves_no_tag(wordpiece: PreTrainedTokenizerFast) -> None:
    rows = word_rows([["\u200b", "Anna", "\u200b\u200b", "Berlin"]], [[0, 1, 0, 3]])
    features, counts = tokenize_rows({"ner": rows}, {"ner": NER}, wordpiece, 16)
    assert features["labels"][0] == {"ner": [-100, 1, 3, 4, -100]}
    assert counts == NOTHING_LOST | {"empty_words": 2}


def test_features_are_as_long_as_they_say(family: str) -> None:
    loaded = load_tasks(
        {name: TaskArguments(dataset=f"builtin:{name}", max_rows=40) for name in ("entities", "similarity")}
    )
    for name, task in loaded.items():
        features, _ = tokenize_rows({name: task.splits["train"]}, {name: task.spec}, tiny_tokenizer(family), 24)
        for item in features:
            ids = [item["input_ids"], item.get("pair_input_ids") or []]
            assert item["length"] == max(map(len, ids)) <= 24
            if name == "entities":
                assert len(item["labels"][name]) == len(item["input_ids"])


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Z")), min_size=1, max_size=6)


@pytest.mark.parametrize("of_family", ENCODER_FAMILIES)
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["Paris", "Anna", "...", "U.S.", "naïve", "東京", "👍🏽"]) | WORDS, min_size=1, max_size=8)
)
def test_every_token_belongs_to_the_word_it_is_made_of(of_family: str, words: list[str]) -> None:
    text, spans = join_words(words)
    encoded = tiny_tokenizer(of_family)(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    found = words_of_tokens(text, spans, encoded["offset_mapping"])
    for word, (start, end), special in zip(
        found, encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
    ):
        piece = text[start:end].strip()
        assert (word is None) == (bool(special) or not piece)
        if word is not None:
            assert piece[0] in words[word]
            assert spans[word][0] <= start + (len(text[start:end]) - len(text[start:end].lstrip())) < spans[word][1]
    known = [word for word in found if word is not None]
    assert known == sorted(known)


@pytest.mark.parametrize("of_family", ENCODER_FAMILIES)
def test_tags_follow_their_words_in_every_family(of_family: str) -> None:
    words, tags = ["Anna", "in", "New", "Zealand", "!"], [1, 0, 3, 4, 0]
    tokenizer = tiny_tokenizer(of_family)
    features, counts = tokenize_rows({"ner": word_rows([words], [tags])}, {"ner": NER}, tokenizer, 64, False)
    labels = features["labels"][0]["ner"]
    assert [label for label in labels if label != -100] == tags and counts == NOTHING_LOST
    features, _ = tokenize_rows({"ner": word_rows([words], [tags])}, {"ner": NER}, tokenizer, 64, True)
    inside = [label for label in features["labels"][0]["ner"] if label != -100]
    assert inside.count(1) == 1 and inside.count(3) == 1  # one B- a word; the sub-words that follow are I-
    assert "".join("OPPLL"[label] for label in inside).strip("O").startswith("P")


def test_bricks_give_the_examples_of_their_docstrings() -> None:
    assert join_words(["New", "York", "!"]) == ("New York !", [(0, 3), (4, 8), (9, 10)])
    offsets = [(0, 0), (0, 1), (1, 2), (2, 4), (0, 0)]
    assert words_of_tokens("ab c", [(0, 2), (3, 4)], offsets) == [None, 0, 0, 1, None]
    assert tag_tokens([None, 0, 0, 1, None], [1, 0], [0, 2, 2]) == [-100, 1, 2, 0, -100]
    assert continuation_tags(["O", "B-PER", "I-PER"], True) == [0, 2, 2]
    assert continuation_tags(["O", "B-PER", "I-PER"], False) == [-100, -100, -100]
    assert continuation_tags(["B-flat", "I-beam"], True) == [0, 1]  # without O these are no entities
    assert continuation_tags(["O", "B-PER"], True) == [0, 1]


def test_texts_that_stand_in_train_too_are_counted() -> None:
    splits = {"train": text_rows([0, 0], ["a b", "c"]), "validation": text_rows([0] * 3, ["c", "c", "d"])}
    assert duplicate_texts(splits) == {"validation": 2}
    words = {"train": word_rows([["a", "b"]], [[0, 0]]), "test": word_rows([["a", "b"], ["a"]], [[1, 1], [0]])}
    assert duplicate_texts(words) == {"test": 1}
    pairs = {
        "train": text_rows([0.0], ["a"], text_pair=["b"]),
        "test": text_rows([0.0, 0.0], ["a", "a"], text_pair=["c", "b"]),
    }
    assert duplicate_texts(pairs) == {"test": 1}
    assert duplicate_texts({"test": words["test"]}) == {}


def test_a_teacher_s_embeddings_become_labels(wordpiece: PreTrainedTokenizerFast) -> None:
    seen: list[str] = []

    def embed(texts: list[str]) -> np.ndarray:
        seen.extend(texts)
        return np.array([[len(text), 0.5] for text in texts])

    rows = text_rows([0, 0], ["Anna", "Berlin"]).remove_columns("label")
    with pytest.raises(ValueError, match=r"Task 'anchor': its rows have no label column .* teacher_embeddings"):
        tokenize_rows({"anchor": rows}, {"anchor": TEACHER}, wordpiece, 16)
    taught = teacher_embeddings(rows, embed)
    assert taught.to_list() == [
        {"text": "Anna", "label": [4.0, 0.5], "row": 0},
        {"text": "Berlin", "label": [6.0, 0.5], "row": 1},
    ]
    features, _ = tokenize_rows({"anchor": taught}, {"anchor": TEACHER}, wordpiece, 16)
    assert features["labels"][1] == {"anchor": [6.0, 0.5]}
    words = word_rows([["Anna", "is"]], [[0, 0]]).remove_columns("label")
    teacher_embeddings(words, embed)
    assert seen[-1] == "Anna is"


def test_rows_of_different_sources_are_not_tokenised_together(wordpiece: PreTrainedTokenizerFast) -> None:
    rows = {"a": text_rows([0, 1]), "b": text_rows([0, 1, 1])}
    with pytest.raises(ValueError, match="must read the same rows; 'a' and 'b' have 2 and 3 rows"):
        tokenize_rows(rows, {"a": TOPIC, "b": TOPIC}, wordpiece, 16)
    with pytest.raises(ValueError, match="'a' and 'b' have 2 and 2 rows, or other ones"):
        tokenize_rows({"a": rows["a"], "b": rows["b"].select([1, 2])}, {"a": TOPIC, "b": TOPIC}, wordpiece, 16)


def test_a_length_without_room_for_words_is_refused(wordpiece: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="must leave room for words beside 2 special tokens; got 2"):
        tokenize_rows({"topic": text_rows([0])}, {"topic": TOPIC}, wordpiece, 2)


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[dict[str, Dataset]]:
    """Canonical rows in the cache of `datasets`."""
    folder = write_rows(tmp_path / "news", {"x": 50, "y": 50})
    yield {"topic": load(folder).splits["train"]}


def test_features_stay_on_disk_and_are_found_again(
    on_disk: dict[str, Dataset], wordpiece: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(max_length: int = 16) -> list[Any]:
        return tokenize_rows(on_disk, {"topic": TOPIC}, wordpiece, max_length)[0].cache_files

    first = files()
    wordpiece("other settings", truncation=True, max_length=5, padding="max_length")
    assert first and files() == first
    assert files(max_length=8) != first
    monkeypatch.setattr(task_data, "CODE_DIGEST", "another version of the code")
    assert files() != first


def test_another_teacher_is_another_cache_entry(on_disk: dict[str, Dataset]) -> None:
    rows = on_disk["topic"].remove_columns("label")
    ones, twos = (teacher_embeddings(rows, lambda texts, n=n: np.full((len(texts), 2), n)) for n in (1.0, 2.0))
    assert ones["label"][0] == [1.0, 1.0] and twos["label"][0] == [2.0, 2.0]


@pytest.mark.real_data
def test_published_data_sets_load_with_their_names_and_counts(data_root: Path) -> None:
    tasks = {
        "topic": TaskArguments(dataset="fancyzhx/ag_news", max_rows={"train": 500, "test": 100, "validation": 100}),
        "ner": TaskArguments(dataset="lhoestq/conll2003", columns={"label": "ner_tags"}),
        "question": TaskArguments(dataset="CogComp/trec", columns={"label": "coarse_label"}),
        "similarity": TaskArguments(dataset="mteb/stsbenchmark-sts", name="stsb", score_range=[0, 5]),
    }
    loaded = load_tasks(tasks, data_root=str(data_root))
    assert loaded["topic"].spec["labels"] == ["World", "Sports", "Business", "Sci/Tech"]
    assert loaded["topic"].source["source_rows"]["test"] == 7600
    assert loaded["ner"].source["rows"] == {"train": 14041, "validation": 3250, "test": 3453}
    assert duplicate_texts(loaded["ner"].splits) == {"validation": 193, "test": 126}
    assert math.isclose(max(loaded["similarity"].splits["test"]["label"][:]), 1.0)
