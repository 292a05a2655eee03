"""Whatever comes in at the border is answered or refused: never an error from inside our code.

Hypothesis spoils a valid recipe, fills columns with anything, and asks the model anything. Allowed are success, a
`ValueError` that a `raise` of ours made, and exit code 2 with a message. The examples are the same in every run.
"""

import copy
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, List, Value
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_models import TINY_TASKS, tiny_encoder, tiny_tokenizer

from arguments_multitask import TaskArguments
from configuration_multitask import TASK_KINDS, MultiTaskConfig
from input_errors import is_refusal
from modeling_multitask import MultiTaskModel
from recipe_arguments import parse_arguments
from task_data import tokenize_rows
from task_rows import canonical_rows
from task_schema import infer_schema

FUZZ = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}

RECIPE: dict[str, Any] = {
    "encoder": "sentence-transformers/all-MiniLM-L6-v2",
    "pooling": "mean",
    "projection_dim": 16,
    "normalize_embeddings": True,
    "head_dropout": 0.1,
    "max_seq_length": 64,
    "task_name": "topic",
    "sampling_strategy": "temperature",
    "sampling_shares": None,
    "sample_texts": ["a"],
    "num_train_epochs": 2,
    "learning_rate": 1e-4,
    "metric_for_best_model": "eval_mean_score",
    "early_stopping_patience": 2,
    "report_to": "none",
    "bf16": False,
    "tasks": {
        "topic": {
            "dataset": "builtin:topic",
            "kind": "text-classification",
            "labels": ["x", "y"],
            "columns": {"text": "text", "label": ["label", "labels"]},
            "splits": {"train": "train", "test": None},
            "max_rows": {"train": 8},
            "loss": {"weight": 1.0, "class_weights": [1.0, 2.0]},
            "head": "mlp",
            "dropout": 0.2,
        },
        "sim": {"dataset": {"train": "a.csv"}, "kind": "sentence-similarity", "score_range": [0, 5], "max_rows": 4},
    },
}

WORDS = st.sampled_from(
    ["", "topic", "mean", "text", "a" * 70, "é", "\ud800", "../x", "1", "nan", "tasks", "!!python/name:os"]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.floats(), WORDS, st.text(max_size=4))
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS | st.integers(0, 2), inner, max_size=3)),
    max_leaves=6,
)


def paths_of(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place in a nested value, the outermost left out."""
    if isinstance(value, dict):
        inner: list[tuple[Any, Any]] = list(value.items())
    else:
        inner = list(enumerate(value)) if isinstance(value, list) else []
    return [place for key, below in inner for place in ((*path, key), *paths_of(below, (*path, key)))]


@st.composite
def spoilt_recipes(draw: Callable) -> dict[str, Any]:
    """The valid recipe with one to three places changed: another value, a key too many, a misspelt or missing key."""
    recipe = copy.deepcopy(RECIPE)
    for _ in range(draw(st.integers(1, 3))):
        *path, key = draw(st.sampled_from(paths_of(recipe)))
        node = recipe
        for step in path:
            node = node[step]
        change = draw(st.sampled_from(["value", "extra", "misspell", "remove"]))
        if change == "value" or isinstance(node, list):
            node[key] = draw(JUNK)
        elif change == "extra":
            node[draw(WORDS)] = draw(JUNK)
        elif change == "misspell":
            node[f"{key}s"] = node.pop(key)
        else:
            del node[key]
    return recipe


def refused(work: Callable[[], Any], capsys: pytest.CaptureFixture[str] | None = None) -> bool:
    """Whether `work` was refused with a message; any other error comes through."""
    try:
        work()
    except SystemExit as left:
        assert left.code == 2 and capsys is not None and ": error: " in capsys.readouterr().err
        return True
    except ValueError as error:
        if not is_refusal(error):
            raise
        assert len(str(error)) > 20, error
        return True
    return False


def test_the_recipe_that_is_spoilt_is_a_good_one(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps(RECIPE))
    parse_arguments([str(tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "out")])


@settings(max_examples=100, **FUZZ)
@given(recipe=spoilt_recipes())
def test_a_spoilt_recipe_is_read_or_refused(recipe: dict[str, Any], tmp_path: Path, capsys) -> None:
    """JSON is YAML: the file holds exactly what was drawn, lone surrogates and NaN included."""
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    refused(lambda: parse_arguments([str(tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "out")]), capsys)
    assert not (tmp_path / "out").exists()


@settings(max_examples=50, **FUZZ)
@given(text=st.text(max_size=60) | st.lists(WORDS, max_size=4).map(": ".join))
@example(text="tasks: !!python/object/apply:os.system ['exit 3']")
@example(text="&a [*a]")
@example(text="? [1, 2]\n: 3")
@example(text="!!timestamp x")
@example(text="seed: !!int x")
@example(text="seed: !!bool x")
@example(text="[" * 3000)
@example(text="<<: 3")
def test_any_text_is_a_recipe_or_refused(text: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "r.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert refused(lambda: parse_arguments([str(tmp_path / "r.yaml"), "--output_dir", "out"]), capsys)


FLAGS = (
    "--tasks.topic.loss.weight --tasks.x.kind --tasks --tasks.topic.max_rows --tasks.topic --sampling_shares.topic "
    "--nano = -- {a:1} 3 --tasks.topic.max_rows.train=x [1 --pooling --seed=x"
).split()


@settings(max_examples=50, **FUZZ)
@given(words=st.lists(st.sampled_from(FLAGS), max_size=5))
def test_any_command_line_is_read_or_refused(words: list[str], tmp_path: Path, capsys) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps(RECIPE))
    refused(lambda: parse_arguments([str(tmp_path / "r.yaml"), "--output_dir", "out", *words]), capsys)


# ---------------------------------------------------------------------------------------------------------------------
# Rows

TEXTS = st.sampled_from(["the sun", "a", "🙂 b", "a " * 300])
NAMES = st.sampled_from(["x", "y", "O", "B-PER", "I-PER"])
NUMBERS = st.sampled_from([0.0, 0.5, 1.0])
ODD_TEXTS = st.sampled_from(["", " ", "\0", "NaN", "-1"]) | st.text(st.characters(codec="utf-8"), max_size=6)
ODD_NUMBERS = st.floats(width=32) | st.integers(-9, 9).map(float)
COLUMN_TYPES: dict[str, tuple[Any, st.SearchStrategy, st.SearchStrategy]] = {
    "text": (Value("string"), TEXTS, ODD_TEXTS),
    "name": (Value("string"), NAMES, ODD_TEXTS),
    "int": (Value("int64"), st.integers(0, 1), st.integers(-2, 9)),
    "float": (Value("float64"), NUMBERS, ODD_NUMBERS),
    "bool": (Value("bool"), st.booleans(), st.booleans()),
    "texts": (
        List(Value("string")),
        st.lists(TEXTS, min_size=2, max_size=2),
        st.lists(st.none() | ODD_TEXTS, max_size=3),
    ),
    "names": (List(Value("string")), st.lists(NAMES, min_size=2, max_size=2), st.lists(st.none() | NAMES, max_size=3)),
    "ints": (List(Value("int64")), st.just([0, 1]), st.lists(st.none() | st.integers(-2, 9), max_size=3)),
    "floats": (List(Value("float32")), st.just([0.0, 1.0]), st.lists(st.none() | ODD_NUMBERS, max_size=3)),
    "nested": (List(List(Value("string"))), st.just([["x"]]), st.lists(st.lists(NAMES, max_size=2), max_size=2)),
    "null": (Value("null"), st.none(), st.none()),
}
"""Kind of column -> its feature, values that make sense, and values that may not."""
COLUMN_NAMES = ("text", "text_pair", "tokens", "label", "score", "tags")
LAYOUTS: list[tuple[dict[str, str], dict[str, Any]]] = [
    ({"text": "text", "label": "name"}, {}),
    ({"text": "text", "label": "int"}, {"labels": ["x", "y"]}),
    ({"text": "text", "label": "names"}, {}),
    ({"text": "text", "label": "floats"}, {"labels": ["x", "y"]}),
    ({"text": "text", "label": "float"}, {"score_range": [0.0, 1.0]}),
    ({"text": "text", "text_pair": "text", "score": "float"}, {}),
    ({"tokens": "texts", "tags": "names"}, {}),
    ({"tokens": "texts", "tags": "ints"}, {"labels": ["x", "y"]}),
]
"""Usual columns, and the fields that the recipe needs for them."""
FIELDS = {
    "kind": st.sampled_from([None, None, None, *TASK_KINDS]),
    "problem_type": st.sampled_from([None, None, None, "regression", "multi_label_classification"]),
    "labels": st.sampled_from([None, None, None, ["x", "y"], ["0", "1"], ["O", "B-PER", "I-PER"]]),
    "score_range": st.sampled_from([None, None, [0.0, 5.0]]),
    "columns": st.sampled_from(
        [{}, {}, {}, {"text": "text"}, {"text": "text", "text_pair": "text_pair"}, {"label": "tags"}]
    ),
}


@st.composite
def tables(draw: Callable) -> tuple[Dataset, dict[str, Any]]:
    """Two to five rows, usual ones or anything, and the fields of the task; in some columns a value is odd."""
    anything = st.dictionaries(
        st.sampled_from(COLUMN_NAMES), st.sampled_from(list(COLUMN_TYPES)), min_size=1, max_size=4
    )
    usual_layouts = st.sampled_from(LAYOUTS)
    layout, fields = draw(usual_layouts | usual_layouts | st.tuples(anything, st.fixed_dictionaries(FIELDS)))
    rows = draw(st.integers(2, 5))
    columns: dict[str, list[Any]] = {}
    for name, kind in layout.items():
        _, usual, odd = COLUMN_TYPES[kind]
        columns[name] = draw(st.lists(usual, min_size=rows, max_size=rows))
        if draw(st.integers(0, 2)) == 0:
            columns[name][draw(st.integers(0, rows - 1))] = draw(st.none() | odd | odd)
    features = Features({name: COLUMN_TYPES[kind][0] for name, kind in layout.items()})
    return Dataset.from_dict(columns, features=features), fields


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tokenizer of the tiny BERT."""
    return tiny_tokenizer("bert")


@settings(max_examples=300, **FUZZ)
@given(drawn=tables())
def test_any_rows_are_tokenised_or_refused(drawn: tuple[Dataset, dict[str, Any]], tokenizer: Any) -> None:
    """Through the schema, the checks and the tokenizer; files are for the commands' tests."""
    rows, fields = drawn
    task = TaskArguments(dataset="rows", **{name: value for name, value in fields.items() if value is not None})

    def read() -> None:
        schema = infer_schema("mine", task, {"train": rows})
        checked = canonical_rows(schema, "train", rows)
        if "label" in checked.column_names:
            tokenize_rows({"mine": checked}, {"mine": schema.spec}, tokenizer, max_length=16)

    refused(read)


# ---------------------------------------------------------------------------------------------------------------------
# Requests

STRINGS = st.text(max_size=12) | WORDS
ITEMS = st.one_of(STRINGS, STRINGS, st.tuples(STRINGS, STRINGS))
JUNK_ITEMS = st.one_of(ITEMS, st.none(), st.integers(), st.binary(max_size=3), st.lists(STRINGS, max_size=3))
OPTIONS = {
    "tasks": st.none() | st.lists(st.sampled_from([*TINY_TASKS, "joint"]), max_size=3),
    "batch_size": st.sampled_from([1, 2, 7]),
    "aggregation_strategy": st.sampled_from(["none", "simple", "first", "average", "max"]),
    "top_k": st.sampled_from([None, 1, 2, 99]),
}
JUNK_OPTIONS = {name: valid | SCALARS | st.lists(SCALARS, max_size=2) for name, valid in OPTIONS.items()}


@pytest.fixture(scope="module")
def model() -> MultiTaskModel:
    """A tiny model with a task of every kind, a joint one among them."""
    encoder = tiny_encoder("bert")
    joint = {"kind": "text-classification", "labels": ["same", "other"], "text_pair": True}
    config = MultiTaskConfig(encoder_config=encoder.config, tasks={**TINY_TASKS, "joint": joint})
    return MultiTaskModel(config, encoder=encoder).eval()


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    """No warning of a text that is cut; the level is put back, since loggers outlive a test."""
    logger = logging.getLogger("pipeline_multitask")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("quiet")
@settings(max_examples=150, **FUZZ)
@given(
    texts=st.lists(ITEMS, max_size=4) | st.lists(JUNK_ITEMS, max_size=4) | JUNK_ITEMS,
    options=st.fixed_dictionaries({}, optional=OPTIONS) | st.fixed_dictionaries({}, optional=JUNK_OPTIONS),
)
def test_any_request_is_answered_item_by_item_or_refused(texts: Any, options: dict[str, Any], model, tokenizer) -> None:
    answers: list[Any] = []
    if not refused(lambda: answers.extend(model.predict(texts, tokenizer, **options))):
        assert len(answers) == len(texts) and all("sentence_embedding" in answer for answer in answers)
    batch_size = {"batch_size": options["batch_size"]} if "batch_size" in options else {}
    vectors: list[Any] = []
    if not refused(lambda: vectors.extend(model.encode(texts, tokenizer, **batch_size))):
        assert len(vectors) == len(texts) and all(vector.any() for vector in vectors)
