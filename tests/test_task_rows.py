"""`task_rows`: canonical rows are exactly these, and rows that nothing can be learnt from are refused by number."""

import csv
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value, load_dataset

from arguments_multitask import TaskArguments
from task_rows import canonical_rows
from task_schema import infer_schema

TAGS = ["O", "B-PER", "I-PER"]
REGRESSION = {"problem_type": "regression"}


def make_rows(columns: dict[str, list[Any]], **types: Any) -> Dataset:
    """A dataset of columns, some of them cast to a type."""
    rows = Dataset.from_dict(columns)
    return rows.cast(Features({**rows.features, **types})) if types else rows


def read(rows: Dataset, train: Dataset | None = None, known_labels: list[str] | None = None, **fields: Any) -> Dataset:
    """Canonical rows, under the schema of `train` (default: the rows themselves)."""
    schema = infer_schema("mine", TaskArguments(dataset="d", **fields), {"train": train or rows}, known_labels)
    return canonical_rows(schema, "dev", rows)


def read_labels(values: list[Any], feature: Any = None, **fields: Any) -> list[Any]:
    """The canonical labels of texts with these labels."""
    types = {"label": feature} if feature is not None else {}
    return read(make_rows({"text": ["a"] * len(values), "label": values}, **types), **fields)["label"][:]


def test_rows_of_a_text_with_a_class_name() -> None:
    rows = make_rows({"id": [8, 9], "label": ["weather", "sport"], "text": ["It rains", "Goal!"]})
    assert read(rows).to_list() == [
        {"text": "It rains", "label": 1, "row": 0},
        {"text": "Goal!", "label": 0, "row": 1},
    ]
    assert read(rows).column_names == ["text", "label", "row"]


def test_rows_of_words_with_tags() -> None:
    rows = make_rows({"words": [["Anna", "sleeps"], ["Hm"]], "ner_tags": [["B-PER", "O"], ["O"]]})
    assert read(rows, labels=TAGS).to_list() == [
        {"tokens": ["Anna", "sleeps"], "label": [1, 0], "row": 0},
        {"tokens": ["Hm"], "label": [0], "row": 1},
    ]


def test_rows_of_a_pair_with_a_score() -> None:
    rows = make_rows({"text1": ["a"], "text2": ["b"], "score": [4.0]})
    assert read(rows, score_range=[0, 5]).to_list() == [
        {"text": "a", "text_pair": "b", "label": pytest.approx(0.8), "row": 0}
    ]


@pytest.mark.parametrize(
    ("labels", "feature", "fields", "expected"),
    [
        ([1, 0], ClassLabel(names=["x", "y"]), {}, [1, 0]),
        ([1, 0], ClassLabel(names=["x", "y"]), {"labels": ["y", "x"]}, [0, 1]),
        (["y", "x"], None, {"labels": ["y", "x"]}, [0, 1]),
        (["y", "x"], Value("large_string"), {}, [1, 0]),
        ([True, False], None, {}, [1, 0]),
        ([2, 0], None, {"labels": ["a", "b", "c"]}, [2, 0]),
        ([2, 0], Value("uint8"), {"labels": ["a", "b", "c"]}, [2, 0]),
        ([4, 1], None, {"labels": ["1", "2", "3", "4"]}, [3, 0]),
        ([["y"], [], ["x", "y"]], None, {}, [[0, 1], [0, 0], [1, 1]]),
        ([[1], [0, 1]], List(ClassLabel(names=["x", "y"])), {}, [[0, 1], [1, 1]]),
        ([[1], [0, 1]], LargeList(ClassLabel(names=["x", "y"])), {"labels": ["y", "x"]}, [[1, 0], [1, 1]]),
        ([[1], [0, 2]], None, {"labels": ["a", "b", "c"]}, [[0, 1, 0], [1, 0, 1]]),
        ([[0.0, 1.0]], None, {"labels": ["a", "b"], "problem_type": "multi_label_classification"}, [[0, 1]]),
        (
            [[0.0, 1.0]],
            List(Value("float64"), length=2),
            {"labels": ["a", "b"], "kind": "text-classification"},
            [[0, 1]],
        ),
        ([1.5, -3.0], None, {}, [1.5, -3.0]),
        ([1, 5], None, REGRESSION | {"score_range": [1, 5]}, [0.0, 1.0]),
        (
            [[0.5, 1.0]],
            None,
            {"kind": "feature-extraction", "columns": {"label": "label", "text": "text"}},
            [[0.5, 1.0]],
        ),
    ],
)
def test_labels_become_indices_zeros_and_ones_or_numbers(
    labels: list[Any], feature: Any, fields: dict[str, Any], expected: list[Any]
) -> None:
    assert read_labels(labels, feature, **fields) == expected


def test_a_missing_label_stays_missing() -> None:
    for labels, fields in [
        (["x", None], {}),
        ([0, None], {"labels": ["x"]}),
        ([0.5, None], {}),
        ([["x"], None], {}),
        ([[1.0], None], {"labels": ["x"], "problem_type": "multi_label_classification"}),
    ]:
        first, second = read_labels(labels, **fields)
        assert first is not None and second is None
    words = make_rows({"tokens": [["a", "b"], ["c"], ["d"]], "tags": [None, ["O"], ["X"]]})
    assert read(words)["label"][:] == [None, [0], [1]]


def test_labels_of_each_split_are_brought_into_the_task_s_order_by_name() -> None:
    train = make_rows({"text": ["a"], "label": [0]}, label=ClassLabel(names=["x", "y"]))
    other = make_rows({"text": ["a", "b"], "label": [0, 1]}, label=ClassLabel(names=["y", "x"]))
    assert read(other, train)["label"][:] == [1, 0]
    assert read(train, known_labels=["y", "x"])["label"][:] == [1]


def test_a_teacher_s_task_needs_no_label() -> None:
    assert read(make_rows({"text": ["a"]}), kind="feature-extraction").to_list() == [{"text": "a", "row": 0}]


def text_rows(**columns: list[Any]) -> Dataset:
    return make_rows({"text": ["a", "b"], "label": ["x", "y"]} | columns)


def word_rows(tokens: list[Any], tags: list[Any]) -> Dataset:
    return make_rows({"tokens": [["a"], *tokens], "tags": [["O"], *tags]})


VECTORS = {"kind": "feature-extraction", "columns": {"label": "label"}}
SETS = {"labels": ["a", "b", "c"], "problem_type": "multi_label_classification"}


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        (text_rows(text=["a", " \n"]), {}, r"every text needs words; row 1 of split 'dev' has ' \\n'. Fill the text"),
        (text_rows(text=["a", None]), {}, "every text needs words; row 1 of split 'dev' has None"),
        (text_rows(text=[1, 2]), {}, "texts are strings; row 0 of split 'dev' has 1"),
        (make_rows({"text1": ["a", "b"], "text2": ["c", ""], "score": [0.5, 1.0]}), {}, "needs words; row 1 of .* ''"),
        (text_rows(label=["x", "z"]), {"labels": ["x", "y"]}, "row 1 .* has 'z'. The labels are x, y. .* all names"),
        (text_rows(label=["weather", "wether"]), {"labels": ["weather"]}, "'wether'. .* Did you mean 'weather'"),
        (text_rows(label=["x", ""]), {}, "row 1 of split 'dev' has ''. The labels are x"),
        (text_rows(label=[0, -1]), {"labels": ["x"]}, r"row 1 .* has -1. -1 stands for a hidden label .*splits: {test"),
        (text_rows(label=[0, 2]), {"labels": ["x", "y"]}, r"row 1 .* has 2. The classes are 0 to 1 \(x, y\)"),
        (text_rows(label=[0.5, float("nan")]), {}, "a score is a finite number; row 1 of split 'dev' has nan"),
        (text_rows(label=[0.5, float("inf")]), {}, "a score is a finite number; row 1 of split 'dev' has inf"),
        (text_rows(label=[0, 6]), REGRESSION | {"score_range": [0, 5]}, r"score_range \[0, 5\]; row 1 .* has 6"),
        (
            make_rows({"text1": ["a", "b"], "text2": ["c", "d"], "score": [1.0, 1.5]}),
            {},
            "from -1 to 1; row 1 of split 'dev' has 1.5. Write `score_range: ",
        ),
        (
            word_rows([["a", "b"]], [["O"]]),
            {},
            r"each word has one tag; row 1 .* has 1 tags for 2 words \(\['a', 'b'\]\)",
        ),
        (word_rows([[]], [[]]), {}, r"at least one word; row 1 of split 'dev' has \[\]"),
        (word_rows([None], [["O"]]), {}, "at least one word; row 1 of split 'dev' has None"),
        (word_rows([["a", None]], [["O", "O"]]), {}, "every word is a string; row 1"),
        (word_rows([["a", "b"]], [["O", None]]), {}, "a list of labels has no holes; row 1"),
        (
            word_rows([["a", "b"]], [["O", "Q"]]),
            {"labels": ["O"]},
            "every label is one of the task's; row 1 .* has 'Q'",
        ),
        (make_rows({"tokens": ["a b"], "tags": [["O"]]}), {}, "words are a list of strings a row; row 0"),
        (text_rows(label=[["x"], ["y", "y"]]), {}, "a class stands once in a row's labels; row 1"),
        (text_rows(label=[[0], [0, 1, 0]]), SETS, r"a class stands once .* \(0.0, 1.0\)"),
        (
            text_rows(label=[[0.0, 1.0, 0.0], [0.0]]),
            SETS,
            r"each label has 3 numbers; row 1 of split 'dev' has \[0.0\]",
        ),
        (text_rows(label=[[0.0, 1.0, 0.0], [0.0, 2.0, 0.0]]), SETS, "each class is 0 or 1; row 1"),
        (text_rows(label=[[0.5, 1.0], [0.5]]), VECTORS, r"each label has 2 numbers; row 1"),
        (text_rows(label=[[0.5], [float("nan")]]), VECTORS, "labels are finite numbers; row 1"),
    ],
)
def test_rows_that_nothing_can_be_learnt_from_are_refused(rows: Dataset, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Task 'mine': .*{message}"):
        read(rows, **fields)


def test_a_hidden_label_of_the_hub_is_refused_for_class_features_too() -> None:
    feature = ClassLabel(names=["x", "y"])
    with pytest.raises(ValueError, match="row 1 of split 'dev' has -1. -1 stands for a hidden label"):
        read_labels([0, -1], feature)


def test_the_row_of_a_refusal_is_right_beyond_the_first_batch() -> None:
    texts = ["a"] * 12_000
    texts[11_111] = ""
    with pytest.raises(ValueError, match="row 11111 of split 'dev'"):
        read(make_rows({"text": texts, "label": ["x"] * 12_000}))


def test_a_split_with_other_labels_is_refused() -> None:
    train = make_rows({"text": ["a"], "label": [0]}, label=ClassLabel(names=["x", "y"]))
    other = make_rows({"text": ["a"], "label": [0]}, label=ClassLabel(names=["x", "z"]))
    with pytest.raises(ValueError, match="Only in split 'dev': z. Only in the task: y"):
        read(other, train)
    with pytest.raises(ValueError, match="labels must be of one type in all splits; they are a class name, but in"):
        read(make_rows({"text": ["a"], "label": [0]}), train)


def test_a_long_value_is_shortened_in_a_refusal() -> None:
    with pytest.raises(ValueError, match=r"has 'zzz+\.\.\.\. The labels are x"):
        read_labels(["x", "z" * 500], labels=["x"])


def test_rows_are_read_in_batches_and_stay_on_disk(tmp_path: Path) -> None:
    with (tmp_path / "big.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((f"{'word ' * 200}{i}", f"c{i % 3}") for i in range(30_000))])
    rows = load_dataset("csv", data_files=str(tmp_path / "big.csv"))["train"]
    tracemalloc.start()
    read_back = read(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read_back.cache_files and len(read_back) == 30_000
    assert peak < 10e6  # bytes; the texts are 30 MB


def test_the_same_rows_are_read_once_and_then_found_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,x\nb,y\n")
    rows = load_dataset("csv", data_files=str(tmp_path / "a.csv"))["train"]
    first, again, other = read(rows), read(rows), read(rows, labels=["y", "x"])
    assert first.cache_files == again.cache_files != other.cache_files
    assert other["label"][:] == [1, 0]
