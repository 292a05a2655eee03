"""`task_schema`: kind, columns and labels are inferred where that is unambiguous, and refused where it is not."""

from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from arguments_multitask import TaskArguments
from task_schema import TaskSchema, infer_schema

TEXT, PAIR = {"text": "a b"}, {"sentence1": "a", "sentence2": "b"}
TOKENS = {"tokens": ["a", "b"]}


def infer(row: dict[str, Any], known_labels: list[str] | None = None, **fields: Any) -> TaskSchema:
    """The schema of a train split of one row; a pair (value, feature) sets the type of a column."""
    features = {name: value[1] for name, value in row.items() if isinstance(value, tuple)}
    rows = Dataset.from_list([{n: v[0] if isinstance(v, tuple) else v for n, v in row.items()}])
    rows = rows.cast(Features({**rows.features, **features}))
    return infer_schema("mine", TaskArguments(dataset="d", **fields), {"train": rows}, known_labels)


CLASSES = (1, ClassLabel(names=["b", "a"]))
CLASS_LIST = ([1], List(ClassLabel(names=["b", "a"])))


@pytest.mark.parametrize(
    ("columns", "fields", "kind", "problem_type", "labels"),
    [
        (TEXT | {"label": CLASSES}, {}, "text-classification", "single_label_classification", ["b", "a"]),
        (TEXT | {"label": "x"}, {}, "text-classification", "single_label_classification", ["x"]),
        (TEXT | {"label": True}, {}, "text-classification", "single_label_classification", ["true"]),
        (TEXT | {"label": 1}, {"labels": ["n", "y"]}, "text-classification", "single_label_classification", ["n", "y"]),
        (PAIR | {"label": CLASSES}, {}, "text-classification", "single_label_classification", ["b", "a"]),
        (TEXT | {"labels": CLASS_LIST}, {}, "text-classification", "multi_label_classification", ["b", "a"]),
        (TEXT | {"labels": ["y", "x"]}, {}, "text-classification", "multi_label_classification", ["x", "y"]),
        (TEXT | {"score": 0.5}, {}, "text-classification", "regression", ["score"]),
        (TEXT | {"label": 4}, {"problem_type": "regression"}, "text-classification", "regression", ["score"]),
        (TEXT | TOKENS | {"upos": CLASS_LIST}, {}, "token-classification", None, ["b", "a"]),
        (TOKENS | {"ner_tags": ["O", "B-X"]}, {}, "token-classification", None, ["B-X", "I-X", "O"]),
        (TOKENS | {"tags": ["N", "V"]}, {}, "token-classification", None, ["N", "V"]),
        (PAIR | {"score": 0.5}, {}, "sentence-similarity", None, None),
        (PAIR | {"label": 3}, {"score_range": [0, 5]}, "sentence-similarity", None, None),
        (TEXT | {"label": "ignored"}, {"kind": "feature-extraction"}, "feature-extraction", None, None),
    ],
)
def test_the_kind_is_inferred_from_the_features(
    columns: dict[str, Any], fields: dict[str, Any], kind: str, problem_type: str | None, labels: list[str] | None
) -> None:
    spec = infer(columns, **fields).spec
    assert (spec["kind"], spec.get("problem_type"), spec.get("labels")) == (kind, problem_type, labels)


def test_a_pair_is_read_jointly_by_a_classification() -> None:
    assert infer(PAIR | {"label": CLASSES}).spec["text_pair"] is True
    assert infer(TEXT | {"label": CLASSES}).spec["text_pair"] is False


@pytest.mark.parametrize(
    ("columns", "fields", "message"),
    [
        (TEXT | {"label": 1}, {}, "'label' holds a whole number without names, .* `labels: "),
        (PAIR | {"label": 1}, {}, "a whole number without names, .* `kind: sentence-similarity`"),
        (TEXT | {"label": [0.5, 0.5]}, {}, "a list of numbers without names, .* `kind: feature-extraction`"),
        (TEXT | {"label": [0, 1]}, {}, "a list of whole numbers without names"),
        (TEXT | {"label": (None, Value("null"))}, {}, "column 'label' holds Value"),
        (TEXT | {"label": CLASSES, "score": 0.5}, {}, r"several columns could be meant \(label, score\)"),
        (TEXT | PAIR | {"label": CLASSES}, {}, r"several columns could be meant \(text, sentence1 \+ sentence2\)"),
        (TEXT | {"sentence": "c", "label": CLASSES}, {}, r"several columns could be meant \(text, sentence\)"),
        ({"body": "a", "label": CLASSES}, {}, r"no column has a well-known name .* The columns are body, label. Write"),
        (TEXT | {"topic": CLASSES}, {}, "the column of the role 'label' must be known. The columns are text, topic"),
        (
            TEXT | {"label": CLASSES},
            {"columns": {"text": "texts"}},
            "'texts' is not among text, label. Did you mean 'text'",
        ),
        (TEXT | {"label": CLASSES}, {"columns": {"label": ["x", "y"]}}, "'x' or 'y' is not among text, label"),
        (TEXT | {"label": CLASSES}, {"kind": "sentence-similarity"}, "must be a number or a whole number, but column"),
        (TEXT | {"label": 0.5}, {"kind": "token-classification"}, "must be a list of class names .* holds a number"),
        (TEXT | {"label": CLASSES}, {"problem_type": "regression"}, "holds a class name"),
        (TEXT | {"score": 0.5}, {"kind": "sentence-similarity"}, "a similarity is between two texts"),
        (PAIR | {"score": 0.5}, {"kind": "feature-extraction"}, "an embedding is of one text"),
        (TEXT | {"label": CLASSES}, {"labels": ["a", "c"]}, "Only in column 'label': b. Only in the task: c"),
        (TEXT | {"label": CLASSES}, {"loss": {"wait": 1}}, "no field 'wait'; .* Did you mean 'weight'"),
    ],
)
def test_what_is_ambiguous_or_does_not_fit_is_refused(
    columns: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"Task 'mine'.*{message}"):
        infer(columns, **fields)


def test_a_column_may_have_alternatives_of_which_the_first_present_one_is_read() -> None:
    schema = infer(PAIR | {"label": 2.0}, columns={"label": ["score", "label"]}, score_range=[0, 5])
    assert schema.roles(Features(dict.fromkeys(["sentence1", "sentence2", "score", "label"], Value("string")))) == {
        "text": "sentence1",
        "text_pair": "sentence2",
        "label": "score",
    }


def test_labels_take_the_order_of_the_saved_model() -> None:
    assert infer(TEXT | {"label": CLASSES}, known_labels=["a", "b"]).spec["labels"] == ["a", "b"]
    assert infer(TEXT | {"label": "a"}, known_labels=["z", "a"]).spec["labels"] == ["z", "a"]
    with pytest.raises(ValueError, match="Only in column 'label': a. Only in the task: c, d"):
        infer(TEXT | {"label": CLASSES}, known_labels=["b", "c", "d"])
    with pytest.raises(ValueError, match="Only in the recipe: x. Only in the model: y"):
        infer(TEXT | {"label": "a"}, known_labels=["a", "y"], labels=["a", "x"])


def test_the_notes_say_what_was_inferred() -> None:
    assert infer(TEXT | {"label": "x"}).notes == [
        "Task 'mine': text-classification, single_label_classification; text from 'text', label from 'label'; 1 label: "
        "x (inferred: kind, text, label, label names)."
    ]
    given = {"kind": "token-classification", "columns": {"tokens": "tokens", "label": "tags"}}
    assert infer(TOKENS | {"tags": ["B-X", "O"]}, **given).notes == [
        "Task 'mine': token-classification; tokens from 'tokens', label from 'tags'; 3 labels: B-X, I-X, O (inferred: "
        "label names).",
        "Task 'mine': I-X added, for words of several sub-words.",
    ]
    assert (
        "(inferred"
        not in infer(
            TEXT | {"label": "x"},
            labels=["x"],
            **given | {"kind": "text-classification", "columns": {"text": "text", "label": "label"}},
        ).notes[0]
    )
