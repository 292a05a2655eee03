"""Assembly: aligned tasks become one dataset, evaluation is by task, teachers label what has no embeddings."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from arguments_multitask import read_task
from configuration_multitask import LABEL_PADDING
from task_data import load_tasks
from task_features import EmbeddingTeacher, build_features

ALIGNED = {
    "topic": {"dataset": "builtin:topic_sentiment", "columns": {"label": "topic"}},
    "mood": {"dataset": "builtin:topic_sentiment", "columns": {"label": "sentiment"}},
}


def load(tasks: dict[str, dict], rows: int = 24) -> dict:
    """Built-in tasks, capped."""
    caps = {"train": rows, "validation": rows, "test": rows}
    return load_tasks({name: read_task(name, {**task, "max_rows": caps}) for name, task in tasks.items()})


def test_tasks_that_read_the_same_rows_are_one_dataset_with_both_labels(tokenizer: PreTrainedTokenizerFast) -> None:
    """In training an item has both labels; in evaluation each task has its own dataset with its own label."""
    features = build_features(load(ALIGNED), tokenizer, 64)
    assert list(features.train) == ["mood+topic"]
    assert all(set(labels) == {"mood", "topic"} for labels in features.train["mood+topic"]["labels"])
    assert set(features.validation) == set(features.test) == {"mood", "topic"}
    assert all(set(labels) == {"topic"} for labels in features.test["topic"]["labels"])
    assert any("read the same rows" in note for note in features.notes)


def test_tasks_of_different_rows_stay_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    """The premise of the test above."""
    tasks = {"topic": {"dataset": "builtin:topic"}, "mood": {"dataset": "builtin:sentiment"}}
    assert set(build_features(load(tasks), tokenizer, 64).train) == {"mood", "topic"}


def test_evaluation_rows_come_longest_first_and_none_is_lost(tokenizer: PreTrainedTokenizerFast) -> None:
    """Sorted by length, every source row once."""
    features = build_features(load({"topic": {"dataset": "builtin:topic"}}), tokenizer, 64)
    lengths = np.array(features.test["topic"]["length"])
    assert (np.diff(lengths) <= 0).all() and lengths.min() < lengths.max()
    assert len(set(features.test["topic"]["row"])) == 24


def test_words_are_scored_by_their_first_sub_word_and_trained_on_all(tokenizer: PreTrainedTokenizerFast) -> None:
    """Training labels more tokens than there are words; evaluation exactly the words."""
    loaded = load({"ner": {"dataset": "builtin:entities", "columns": {"label": "ner_tags"}}})
    features = build_features(loaded, tokenizer, 128)

    def labelled(split: str) -> tuple[int, int]:
        rows = getattr(features, split)["ner"]
        words = {row["row"]: len(row["tokens"]) for row in loaded["ner"].splits[split]}
        tags = sum(sum(tag != LABEL_PADDING for tag in labels["ner"]) for labels in rows["labels"])
        return tags, sum(words[row] for row in rows["row"])

    tags, words = labelled("test")
    assert tags == words
    tags, words = labelled("train")
    assert tags > words


def test_a_task_without_embeddings_is_taught_by_the_given_teacher(tokenizer: PreTrainedTokenizerFast) -> None:
    """Each row's label is the teacher's vector of its own text; without a teacher the task is refused."""
    tasks = {"anchor": {"kind": "feature-extraction", "dataset": "builtin:topic"}}

    def embed(texts: list[str]) -> np.ndarray:
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    loaded = load(tasks)
    texts = {row["row"]: row["text"] for row in loaded["anchor"].splits["test"]}
    features = build_features(loaded, tokenizer, 64, teachers={"anchor": EmbeddingTeacher("a counter", embed)})
    assert any("its teacher is a counter" in note for note in features.notes)
    for row in features.test["anchor"]:
        assert row["labels"]["anchor"] == [len(texts[row["row"]]), 1.0]
    with pytest.raises(ValueError, match="no teacher to compute"):
        build_features(load(tasks), tokenizer, 64)


def test_the_embedding_of_joined_words_is_learnt_by_the_item_that_carries_their_tags(tokenizer) -> None:
    """Named by their column, words are a text to keep the embedding of; read like the tags' rows, they are one item."""
    entities = {"dataset": "builtin:entities", "columns": {"tokens": "tokens", "label": "ner_tags"}}
    keep = {"dataset": "builtin:entities", "kind": "feature-extraction", "columns": {"tokens": "tokens"}}
    loaded = load({"ner": entities, "keep": keep})
    words = {row["row"]: row["tokens"] for row in loaded["keep"].splits["train"]}
    teacher = EmbeddingTeacher("a counter", lambda texts: np.array([[len(t)] for t in texts], np.float32))
    features = build_features(loaded, tokenizer, 64, teachers={"keep": teacher})
    assert list(features.train) == ["keep+ner"]
    for item in features.train["keep+ner"]:
        assert item["labels"]["keep"] == [len(" ".join(words[item["row"]]))]
        assert len(item["labels"]["ner"]) == len(item["input_ids"])


def test_a_task_without_head_and_train_rows_is_scored_and_not_trained(tokenizer) -> None:
    """The plan says so; a task with a head, or one whose source only happens to lack the split, is refused."""
    columns = {"text": "sentence1", "text_pair": "sentence2", "label": "score"}
    sts = {"dataset": "builtin:similarity", "columns": columns, "splits": {"train": None, "validation": None}}
    loaded = load({"topic": {"dataset": "builtin:topic"}, "sts": sts})
    features = build_features(loaded, tokenizer, 64)
    assert (set(features.train), set(features.validation)) == ({"topic"}, {"topic"})
    assert set(features.test) == {"sts", "topic"}
    assert "Task 'sts': no training rows are read (train: null), so it is scored, not trained." in features.notes
    with pytest.raises(ValueError, match="'topic': training needs a train split"):
        load({"topic": {"dataset": "builtin:topic", "splits": {"train": None}}, "sts": sts})
    with pytest.raises(ValueError, match="no task has any.*'sts'"):
        load({"sts": sts})


def test_texts_over_the_limit_are_counted_in_the_notes(tokenizer: PreTrainedTokenizerFast) -> None:
    """Nothing is cut unsaid."""
    loaded = load({"topic": {"dataset": "builtin:topic"}})
    assert not [note for note in build_features(loaded, tokenizer, 128).notes if "are cut there" in note]
    features = build_features(loaded, tokenizer, 5)
    notes = [note for note in features.notes if "longer than 5 tokens" in note]
    assert len(notes) == 3 and max(features.test["topic"]["length"]) == 5
