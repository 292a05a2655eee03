"""Bad input through the real commands: one readable message with the way out, exit code 2, and nothing half-written.

Each entry of the tables is a recipe, a data file or a model folder with one thing wrong. The message has to hold the
given parts: task, split, row, value and remedy, as far as there are such.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file, save_file
from tiny_models import tiny_encoder, tiny_tokenizer
from transformers import AutoModel, GPT2Config, T5Config, ViTConfig

import evaluate_hf
import train_hf
from configuration_multitask import MultiTaskConfig
from input_errors import explain_loading, one_line_errors
from modeling_multitask import MultiTaskModel
from pipeline_multitask import MultiTaskPipeline
from task_report import format_answers

GOOD = "text,label\n" + "".join(f"the {word} is good,{'xy'[i % 2]}\n" for i, word in enumerate("sun team game".split()))
RAGGED = '{"tokens": ["a", "b"], "ner_tags": ["O", "O"]}\n{"tokens": ["a", "b"], "ner_tags": ["O"]}\n'
MIXED = '{"text": "the sun", "label": "x"}\n{"text": "the rain", "label": 3}\n'
MIXED_TEXT = '{"text": "the sun", "label": "x"}\n{"text": 7, "label": "x"}\n'
SCORES = '{"text": "a", "text_pair": "b", "score": 0.5}\n{"text": "a", "text_pair": "b", "score": NaN}\n'
PAIRS = "text,text_pair,score\na,b,0.5\na,d,0.25\na,c,"


@dataclass
class Case:
    """One thing that is wrong: in the file (its name and content), the task's fields, the recipe or the words."""

    name: str
    parts: tuple[str, ...]
    file: str = "train.csv"
    content: str | bytes = GOOD
    task: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()


def row(name: str, content: str | bytes, *parts: str, file: str = "train.csv", **task: Any) -> Case:
    """A case of a bad data file; the message always names the task."""
    return Case(name, ("'topic'", *parts), file=file, content=content, task=task)


ROWS = [
    row("missing column", GOOD, "'lab' is not among text, label", "Did you mean 'label'?", columns={"label": "lab"}),
    row(
        "missing text column",
        "body,label\na,x\n",
        "role 'text' must be known",
        "body, label",
        "columns: {text: COLUMN}",
    ),
    row("missing split", GOOD, "test is to be read from the split 'dev'", "splits are train", splits={"test": "dev"}),
    row(
        "no train split",
        GOOD,
        "training needs a train split",
        "Write `splits:",
        splits={"train": None, "test": "train"},
    ),
    row("no rows", "text,label\n", "train.csv as csv cannot be read", "no data"),
    row("an empty file", "", "train.csv as csv cannot be read", "No columns", "Mend the file"),
    row("one row", "text,label\na,x\n", "rows of the split 'validation'", "{'train': 1}", "add rows"),
    row("a missing text", GOOD + ",x\n", "every text needs words", "row 3 of split 'train' has None", "Fill the text"),
    row("a blank text", GOOD + "  ,x\n", "row 3 of split 'train' has '  '", "remove the row"),
    row("an item without a label", GOOD + "the sun,\n", "each row needs a label", "row 3 of split 'train' has None"),
    row(
        "an unknown label",
        GOOD + "a,z\n",
        "row 3 of split 'train' has 'z'",
        "labels are x, y",
        "Mend",
        labels=["x", "y"],
    ),
    row("a class out of range", "text,label\na,0\nb,5\n", "row 1 of split 'train' has 5", "0 to 1", labels=["x", "y"]),
    row("a hidden label", "text,label\na,0\nb,-1\n", "row 1 of split 'train' has -1", "hidden", labels=["x", "y"]),
    row("numbers without names", "text,label\na,0\nb,5\n", "a whole number without names", "Write `labels:"),
    row("mixed label types", MIXED, "row 1 of split 'train' has '3' (int)", "row 0 has 'x' (str)", file="a.jsonl"),
    row("mixed text types", MIXED_TEXT, "row 1 of split 'train' has '7' (int) in column 'text'", file="a.jsonl"),
    row("labels that are mappings", '{"text": "a", "label": {"b": 1}}\n', "column 'label' holds", file="a.jsonl"),
    row("other lengths", RAGGED, "row 1 of split 'train' has 1 tags for 2 words", "(['a', 'b'])", file="a.jsonl"),
    row("no words", RAGGED.replace('"a", "b"', "", 1), "at least one word; row 0", file="a.jsonl"),
    row("a hole in the words", RAGGED.replace('"b"', "null"), "every word is a string; row 0", file="a.jsonl"),
    row("NaN in JSON", SCORES, "a score is a finite number; row 1 of split 'train' has nan", file="a.jsonl"),
    row("NaN in CSV", PAIRS + "NaN\n", "row 2 of split 'train' has 'NaN'", "Mend", kind="sentence-similarity"),
    row("NaN in CSV, kind inferred", PAIRS + "NaN\n", "row 2 of split 'train' has 'NaN'", "`labels:`"),
    row("a word among numbers", "text,label\na,1\nb,two\n", "row 1 of", "'two'", problem_type="regression"),
    row("a score out of range", PAIRS + "4.5\n", "from -1 to 1; row 2 of split 'train' has 4.5", "score_range"),
    row(
        "outside score_range", PAIRS + "7\n", "[0, 5]; row 2 of split 'train' has 7", "score_range", score_range=[0, 5]
    ),
    row("Latin-1 CSV", (GOOD + "café,x\n").encode("latin-1"), "line 5 of train.csv has the byte 0xe9", "as UTF-8"),
    row("Latin-1 JSON", '{"text": "é", "label": "x"}\n'.encode("latin-1"), "line 1 of a.jsonl", file="a.jsonl"),
    row("Latin-1 CoNLL", "Café B-LOC\n".encode("latin-1"), "line 1 of a.conll", "0xe9", file="a.conll"),
    row("UTF-16 CSV", GOOD.encode("utf-16"), "line 1 of train.csv has the byte 0xff", "Save the file as UTF-8"),
    row("a ragged CoNLL file", "Anna B-PER\nsleeps\n", "line 2 has 1: 'sleeps'", "Mend the line", file="a.conll"),
    row("broken JSON", '{"text": ', "a.jsonl as json cannot be read", "Mend the file", file="a.jsonl"),
    row("broken Parquet", b"PAR1 no PAR1", "a.parquet as parquet cannot be read", "Mend the file", file="a.parquet"),
    row("an unknown ending", GOOD, "format of 'a.xyz' cannot be told", "Write `format:`", file="a.xyz"),
]

RECIPES = [
    Case("a misspelt argument", ("no argument 'encodr'", "Did you mean 'encoder'?"), recipe={"encodr": "x"}),
    Case("a misspelt word", ("no argument --learning_rat.", "Did you mean"), words=("--learning_rat", "3")),
    Case("a misspelt field", ("Task 'topic' has no field 'colums'", "Did you mean 'columns'?"), task={"colums": {}}),
    Case("an unknown kind", ("Task 'topic': kind must be one of", "got 'ner'"), task={"kind": "ner"}),
    Case(
        "an unknown pooling", ("pooling must be one of mean", "'men'. Did you mean 'mean'?"), recipe={"pooling": "men"}
    ),
    Case("a task's pooling", ("Task 'topic': pooling must be one of", "got 'avg'"), task={"pooling": "avg"}),
    Case("an unknown head", ("Task 'topic': head must be one of linear, mlp", "'mpl'"), task={"head": "mpl"}),
    Case(
        "an unknown strategy", ("strategy must be one of", "temperature'?"), recipe={"sampling_strategy": "temprature"}
    ),
    Case("an unknown grouping", ("grouping must be one of length, none", "'len'"), recipe={"grouping": "len"}),
    Case("a temperature below 1", ("temperature must be at least 1", "got 0"), recipe={"sampling_temperature": 0}),
    Case("shares left out", ("It has {}. Without one: topic.",), recipe={"sampling_strategy": "shares"}),
    Case(
        "an unknown task",
        ("task_name must be one of", "'topics'", "Did you mean 'topic'?"),
        recipe={"task_name": "topics"},
    ),
    Case("a projection of nothing", ("projection_dim must be a positive", "got 0"), recipe={"projection_dim": 0}),
    Case("no room for words", ("leave room for words", "got 2"), recipe={"max_seq_length": 2}),
    Case("no tasks", ("at least one task", "Got {}"), recipe={"tasks": {}}),
    Case("a task that is a list", ("Task 'topic' must be a mapping", "got ['x']"), recipe={"tasks": {"topic": ["x"]}}),
    Case("a task without data", ("Task 'topic' needs a `dataset`",), recipe={"tasks": {"topic": {"kind": None}}}),
    Case(
        "a file that is not there",
        ("Task 'topic'", "neither a file nor a folder is there"),
        task={"dataset": "./no.csv"},
    ),
    Case(
        "no such folder",
        ("data_root must be a folder", "'nowhere'"),
        task={"dataset": "o/x"},
        words=("--data_root", "nowhere"),
    ),
    *(
        Case(
            f"the name {name!r}",
            ("task name", "Rename the task"),
            recipe={"tasks": {name: {"dataset": "builtin:topic"}}},
        )
        for name in ("mean", "forward", "class", "a.b", "1st", "../up", "a b", "", "n" * 61)
    ),
    Case(
        "an encoder nowhere",
        ("'owner/none' must be on this machine or on the Hub", "Ways out"),
        recipe={"encoder": "owner/none"},
    ),
    Case("no encoder's path", ("is no folder here", "Check the path"), recipe={"encoder": "./none/of/them"}),
]


def refusal(command: Callable[[list[str]], None], words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says when it leaves with exit code 2: one piece, at the end of standard error."""
    with pytest.raises(SystemExit) as left:
        command(words)
    printed = capsys.readouterr().err
    assert left.value.code == 2, left.value.code
    message = printed[printed.rindex(": error: ") + len(": error: ") :].strip()
    assert "Traceback" not in printed and len(message) < 1_000, printed
    return message


def assert_refused(case: Case, encoder: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run `train_hf.py` on the case: it says all parts and leaves no output folder."""
    content = case.content if isinstance(case.content, bytes) else case.content.encode()
    (folder / case.file).write_bytes(content)
    recipe = {"encoder": str(encoder), "tasks": {"topic": {"dataset": str(folder / case.file), **case.task}}}
    (folder / "recipe.yaml").write_text(json.dumps({**recipe, "report_to": "none", **case.recipe}))
    words = [str(folder / "recipe.yaml"), "--output_dir", str(folder / "out"), *case.words]
    message = refusal(train_hf.main, words, capsys)
    assert [part for part in case.parts if part not in message] == [], message
    assert not (folder / "out").exists()


@pytest.fixture(scope="module")
def bert(encoder_folder: Callable[[str], Path]) -> Path:
    """The folder of a tiny BERT."""
    return encoder_folder("bert")


@pytest.mark.parametrize("case", [*ROWS, *RECIPES], ids=lambda case: case.name)
def test_bad_rows_and_recipes_are_refused(case: Case, bert: Path, tmp_path: Path, capsys) -> None:
    assert_refused(case, bert, tmp_path, capsys)


def test_a_good_recipe_is_not_refused(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(GOOD)
    recipe = {"encoder": str(bert), "tasks": {"topic": {"dataset": str(tmp_path / "train.csv")}}, "report_to": "none"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    train_hf.main([str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "out"), "--dry_run"])


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("tasks: [a\n", "is not valid YAML"),
        ("- a\n- b\n", "A recipe is a mapping"),
        ("seed: 1\nseed: 2\n", "the key 'seed' stands twice"),
        ("", "A recipe is a mapping"),
        ("encoder: Caf\xe9\n".encode("latin-1"), "must be text in UTF-8"),
        ("encoder: !!python/object/apply:os.system ['touch hacked']\n", "python/object/apply"),
        ("learning_rate: fast\n", "invalid float value: 'fast'"),
        ("tasks: {1: {dataset: 'builtin:topic'}}\n", "got 1. Rename the task."),
    ],
)
def test_what_is_no_recipe_is_refused(content: str | bytes, part: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert part in refusal(train_hf.main, ["recipe.yaml", "--output_dir", "out"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_bytes_that_are_no_text_are_refused_in_parquet_too(bert: Path, tmp_path: Path, capsys) -> None:
    texts = pa.array([b"the sun", b"caf\xe9"], pa.binary()).view(pa.string())
    table = pa.table({"text": texts, "label": ["x", "y"]})
    pq.write_table(table, tmp_path / "a.parquet")
    case = row("", (tmp_path / "a.parquet").read_bytes(), "text is UTF-8; row 1 of split 'train'", file="a.parquet")
    assert_refused(case, bert, tmp_path, capsys)


def test_an_empty_validation_split_is_refused(bert: Path, tmp_path: Path, capsys) -> None:
    features = Features({"text": Value("string"), "label": Value("string")})
    Dataset.from_dict({"text": [], "label": []}, features=features).to_parquet(tmp_path / "none.parquet")
    (tmp_path / "good.csv").write_text(GOOD)
    files = {"train": str(tmp_path / "good.csv"), "validation": str(tmp_path / "none.parquet")}
    parts = ("'topic'", "none.parquet as parquet cannot be read", "no data")
    assert_refused(Case("", parts, task={"dataset": files}), bert, tmp_path, capsys)


def test_a_run_without_rows_to_validate_on_is_refused(bert: Path, tmp_path: Path, capsys) -> None:
    parts = ("rows of the split 'validation'", "`validation_fraction` above 0")
    assert_refused(Case("", parts, task={"validation_fraction": 0}), bert, tmp_path, capsys)


def test_texts_over_the_limit_are_counted_in_the_plan(bert: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "a.csv").write_text(GOOD + "the sun and the rain and the team and the game,x\n")
    recipe = {
        "encoder": str(bert),
        "tasks": {"topic": {"dataset": str(tmp_path / "a.csv"), "validation_fraction": 0.5}},
    }
    (tmp_path / "r.yaml").write_text(json.dumps({**recipe, "report_to": "none", "max_seq_length": 8}))
    train_hf.main([str(tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "out"), "--dry_run"])
    assert "1 of 2 train texts are longer than 8 tokens and are cut there" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Encoders


def gpt2(folder: Path) -> None:
    """A decoder: no token sees the ones behind it."""
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    AutoModel.from_config(config).save_pretrained(folder)


def t5(folder: Path) -> None:
    """An encoder with a decoder."""
    config = T5Config(vocab_size=300, d_model=32, d_ff=32, num_layers=1, num_heads=2, d_kv=16)
    AutoModel.from_config(config).save_pretrained(folder)


def vit(folder: Path) -> None:
    """A model of images, without a tokenizer."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    AutoModel.from_config(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(folder)
    (folder / "tokenizer.json").unlink()


def set_config(**fields: Any) -> Callable[[Path], None]:
    """A function that changes fields of `config.json`."""

    def change(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | fields))

    return change


def remove(*names: str) -> Callable[[Path], None]:
    """A function that removes files of a folder."""
    return lambda folder: [(folder / name).unlink() for name in names] and None


def pickle_weights(folder: Path) -> None:
    """The weights as `pytorch_model.bin` alone."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    """The first half of the file: a broken-off copy."""
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def write(name: str, content: str) -> Callable[[Path], None]:
    """A function that writes a file into a folder."""
    return lambda folder: (folder / name).write_text(content) and None


def other_weights(folder: Path) -> None:
    """Weights of no layer that the configuration has."""
    save_file({"other.weight": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})


def other_tokenizer(folder: Path) -> None:
    """A tokenizer of more tokens than the model embeds."""
    tiny_tokenizer("roberta").save_pretrained(folder)


def multitask(folder: Path) -> None:
    """A saved multi-task model, with code of its own."""
    tasks = {"topic": {"kind": "text-classification", "labels": ["x", "y"]}}
    encoder = tiny_encoder("bert")
    MultiTaskModel(MultiTaskConfig(encoder_config=encoder.config, tasks=tasks), encoder=encoder).save_pretrained(folder)


BROKEN = [
    ("no weights", remove("model.safetensors"), "has no model.safetensors. Give a folder"),
    ("pickled weights", pickle_weights, "only pickled weights (pytorch_model.bin)"),
    ("half of the weights", cut_weights, "cannot be opened: SafetensorError"),
    ("no safetensors", write("model.safetensors", "garbage " * 100), "cannot be opened: SafetensorError"),
    ("empty weights", write("model.safetensors", ""), "cannot be opened: SafetensorError"),
    ("no configuration", remove("config.json"), "has no config.json"),
    ("a broken configuration", write("config.json", "{"), "config.json' is not a valid JSON file"),
    ("an unknown architecture", set_config(model_type="nope"), "cannot be opened: ValueError"),
    ("an architecture left out", write("config.json", "{}"), "cannot be opened: ValueError"),
    ("weights of another model", other_weights, "must be those of its configuration"),
    ("weights of other shapes", set_config(hidden_size=64), "cannot be opened: RuntimeError"),
    ("an image model", vit, "(vit) does not: it reads pixel_values, not a text alone"),
    ("a decoder", gpt2, "(gpt2) does not: it is a decoder"),
    ("an encoder with a decoder", t5, "(t5) does not: it writes one text from another"),
    ("no tokenizer", remove("tokenizer.json", "tokenizer_config.json"), "A model needs its tokenizer"),
    ("another tokenizer", other_tokenizer, "A model embeds every token of its tokenizer"),
    ("a multi-task model", multitask, "contains custom code"),
]


@pytest.mark.parametrize(("change", "part"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_folder_that_is_no_encoder_is_refused(
    change: Callable, part: str, bert: Path, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(bert, folder)
    change(folder)
    assert_refused(Case("", (str(folder), part)), folder, tmp_path, capsys)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


@pytest.fixture(scope="module")
def model_folder(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of one task with the labels x and y."""
    folder = tmp_path_factory.mktemp("model")
    multitask(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    return folder


def evaluate(model: Path | str, folder: Path, content: str = GOOD, split: str = "test", words: tuple = ()) -> list[str]:
    """The command line that scores a model on one file."""
    (folder / "data.csv").write_text(content)
    recipe = {"tasks": {"topic": {"dataset": {split: str(folder / "data.csv")}}}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return [str(model), "--data", str(folder / "recipe.yaml"), "--output_dir", str(folder / "out"), *words]


EVALUATED = [
    ("no weights", remove("model.safetensors"), ("no file named model.safetensors",)),
    ("pickled weights", pickle_weights, ("no file named model.safetensors",)),
    ("half of the weights", cut_weights, ("cannot be opened: SafetensorError", "Copy its folder again")),
    ("no configuration", remove("config.json"), ("has no config.json",)),
    ("no tokenizer", remove("tokenizer.json", "tokenizer_config.json"), ("",)),
    ("another model's weights", other_weights, ("must be those of its configuration",)),
    ("a plain BERT", lambda folder: tiny_encoder("bert").save_pretrained(folder), ("is a bert", "train_hf.py")),
]


@pytest.mark.parametrize(("change", "parts"), [case[1:] for case in EVALUATED], ids=[case[0] for case in EVALUATED])
def test_a_folder_that_is_no_saved_model_is_refused(
    change: Callable, parts: tuple[str, ...], model_folder: Path, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    change(folder)
    message = refusal(evaluate_hf.main, evaluate(folder, tmp_path), capsys)
    assert [part for part in (str(folder), *parts) if part not in message] == [], message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "split", "words", "parts"),
    [
        (GOOD.replace(",y", ",z"), "test", (), ("Task 'topic'", "row 1 of split 'test' has 'z'", "labels are x, y")),
        (GOOD, "train", ("--split", "test"), ("rows of the split 'test'", "{'train': 2, 'validation': 1}")),
        (GOOD, "test", ("--tasks", "toppic"), ("Tasks ['toppic'] cannot be scored: the model has topic",)),
        (GOOD, "test", ("--batch_size", "0"), ("--batch_size: must be at least 1; got 0",)),
        (GOOD, "test", ("--data", "nowhere.yaml"), ("There is no recipe 'nowhere.yaml'",)),
        (GOOD + ",x\n", "test", (), ("Task 'topic'", "row 3 of split 'test' has None")),
    ],
)
def test_data_that_a_saved_model_cannot_be_scored_on_is_refused(
    content: str, split: str, words: tuple, parts: tuple[str, ...], model_folder: Path, tmp_path: Path, capsys
) -> None:
    message = refusal(evaluate_hf.main, evaluate(model_folder, tmp_path, content, split, words), capsys)
    assert [part for part in parts if part not in message] == [], message
    assert not (tmp_path / "out").exists()


def test_label_names_that_differ_from_the_checkpoints_are_shown_on_both_sides(
    model_folder: Path, tmp_path: Path, capsys
) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "z"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features).to_parquet(tmp_path / "a.parquet")
    words = evaluate(model_folder, tmp_path)
    recipe = {"tasks": {"topic": {"dataset": {"test": str(tmp_path / "a.parquet")}}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    message = refusal(evaluate_hf.main, words, capsys)
    assert "Task 'topic'" in message and "Only in column 'label': z. Only in the task: y." in message


@pytest.mark.parametrize("model", ["owner/nothing", "nowhere/at/all", "nowhere"])
def test_a_model_that_is_nowhere_is_refused(model: str, tmp_path: Path, capsys) -> None:
    message = refusal(evaluate_hf.main, evaluate(model, tmp_path), capsys)
    assert repr(model) in message and "cannot be opened" in message
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Requests


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> tuple[MultiTaskModel, Any]:
    """The saved model and its tokenizer."""
    return MultiTaskModel.from_pretrained(model_folder).eval(), tiny_tokenizer("bert")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "Give a list of texts; got NoneType"),
        (5, "Give a list of texts; got int"),
        ({"text": "a"}, "Give a list of texts; got dict"),
        ({"a"}, "Give a list of texts; got set"),
        ((text for text in "ab"), "Give a list of texts; got generator"),
        (b"a", "Item 0 must be a string"),
        (["a", "half \ud800"], "Item 1 must be Unicode, but holds half of a surrogate pair"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_list_of_texts_is_refused(loaded: tuple, texts: Any, message: str) -> None:
    model, tokenizer = loaded
    for ask in (model.predict, model.encode):
        with pytest.raises(ValueError, match=message):
            ask(texts, tokenizer)


@pytest.mark.parametrize("size", [0, -1, 1.5, "4", None, True])
def test_a_batch_size_below_one_answers_no_zeros(loaded: tuple, size: Any) -> None:
    model, tokenizer = loaded
    for ask in (model.predict, model.encode):
        with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1; got"):
            ask(["a"], tokenizer, batch_size=size)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": "a"}, {"tasks": 3}, {"tasks": [["topic"]]}])
def test_options_that_mean_nothing_are_refused(loaded: tuple, options: dict[str, Any]) -> None:
    model, tokenizer = loaded
    with pytest.raises(ValueError, match=r"top_k must be|Give a list of tasks|Unknown tasks"):
        model.predict(["a"], tokenizer, **options)
    with pytest.raises(ValueError, match=r"top_k must be|Give a list of tasks|Unknown tasks"):
        MultiTaskPipeline(model=model, tokenizer=tokenizer)("a", **options)


def test_a_model_needs_a_fast_tokenizer(loaded: tuple) -> None:
    for ask in (loaded[0].predict, loaded[0].encode):
        with pytest.raises(ValueError, match="only a fast tokenizer gives; got NoneType"):
            ask(["a"], None)


def test_odd_texts_are_answered_and_nothing_is_nothing(loaded: tuple) -> None:
    model, tokenizer = loaded
    pipe = MultiTaskPipeline(model=model, tokenizer=tokenizer)
    odd = ["", " ", "\0", "\u200b", "\ufeff", "e\u0301", "🙂" * 300]
    assert len(model.predict(odd, tokenizer)) == len(odd) and len(pipe(odd)) == len(odd)
    assert torch.isfinite(torch.tensor(model.encode(odd, tokenizer))).all()
    assert model.predict([], tokenizer) == [] == pipe([]) and model.encode([], tokenizer).shape == (0, 32)


@pytest.mark.parametrize("item", [None, 3, {"text": "a"}, ("a", "b", "c"), "half \udfff"])
def test_the_pipeline_refuses_what_is_no_text(loaded: tuple, item: Any) -> None:
    pipe = MultiTaskPipeline(model=loaded[0], tokenizer=loaded[1])
    for request in (item, ["a", item]):
        with pytest.raises(ValueError, match=r"Item \d must be"):
            pipe(request)


# ---------------------------------------------------------------------------------------------------------------------
# What is a refusal, and what is a mistake of ours


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="zip"), one_line_errors("x.py"), explain_loading("The model"):
        format_answers(["a"], [])  # an error inside a module of this project that no `raise` of ours made
    with pytest.raises(ValueError, match="invalid literal"), one_line_errors("x.py"):
        int("no error of this project")


def test_a_library_s_error_over_a_folder_names_the_folder(capsys) -> None:
    with pytest.raises(SystemExit), one_line_errors("x.py"), explain_loading("The model 'm'"):
        json.loads("{")
    assert capsys.readouterr().err.startswith("x.py: error: The model 'm' cannot be opened: JSONDecodeError: Expecting")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train_hf.py", "evaluate_hf.py"])
def test_a_user_sees_one_line_in_place_of_a_traceback(
    command: str, bert: Path, model_folder: Path, tmp_path: Path, repository: Path
) -> None:
    words = evaluate(model_folder, tmp_path, GOOD + ",x\n", split="train" if command == "train_hf.py" else "test")
    if command == "train_hf.py":
        words = [words[2], "--encoder", str(bert), *words[3:]]
    done = subprocess.run(
        [sys.executable, command, *words], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"{command}: error: Task 'topic': every text needs words; row 3 of")
    assert "Traceback" not in done.stderr and done.stdout == ""
