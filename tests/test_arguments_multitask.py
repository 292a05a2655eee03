"""Recipes and command lines: what wins, what is refused and with which words, what `--nano` and bf16 decide."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

import arguments_multitask
from arguments_multitask import (
    ARGUMENT_FIELDS,
    NANO_ROWS,
    DataArguments,
    ModelArguments,
    MultiTaskTrainingArguments,
    TaskArguments,
    find_bf16,
)
from configuration_multitask import SPEC_FIELDS
from recipe_arguments import parse_arguments, read_yaml

RECIPES = sorted((Path(__file__).resolve().parent.parent / "recipes").glob("*.yaml"))
TWO_TASKS = """
encoder: some/encoder
learning_rate: 1e-4
tasks:
  topic: {dataset: builtin:topic, max_rows: 500, loss: {weight: 1e-1}}
  ner: {dataset: builtin:entities, kind: token-classification, max_rows: {train: 50, test: 900}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """A function that writes a recipe (two tasks and the given lines) and returns its path."""

    def write(lines: str = "", start: str = TWO_TASKS) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(f"output_dir: {tmp_path}\n{start}\n{lines}\n", encoding="utf-8")
        return str(path)

    return write


def refusal(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line that `parse_arguments` leaves with."""
    with pytest.raises(SystemExit) as left:
        parse_arguments(words)
    assert left.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses_and_has_a_nano_form(path: Path, tmp_path: Path) -> None:
    _, full, _ = parse_arguments([str(path), "--output_dir", str(tmp_path)])
    assert len(full.sample_texts) == 3
    _, data, training = parse_arguments([str(path), "--nano", "--output_dir", str(tmp_path)])
    assert training.num_train_epochs == 1 and list(data.tasks) == list(full.tasks)
    assert all(task.max_rows == NANO_ROWS for task in data.tasks.values())


def test_the_shipped_recipes_are_these() -> None:
    names = ["news_entities", "no_regret", "preserved_embedding", "quickstart", "sentiment_entities", "six_tasks"]
    assert [path.stem for path in RECIPES] == [*names, "topic_sentiment_aligned"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_purpose_licence_and_command_and_names_no_folder_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"python train_hf.py recipes/{path.name}" in text and "# Licence:" in text and "# What for:" in text
    assert "/work" not in text and "../" not in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_scores_the_hidden_test_labels_of_sst2(path: Path) -> None:
    for task in parse_arguments([str(path)])[1].tasks.values():
        if str(task.dataset).endswith("sst2"):
            assert task.splits == {"train": "train", "validation": None, "test": "validation"}
        assert "glue" not in str(task.dataset)


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_defaults(recipe: Any) -> None:
    model, _, training = parse_arguments([recipe("seed: 7"), "--learning_rate", "3e-4", "--head-dropout", "0.2"])
    assert (model.encoder, model.head_dropout) == ("some/encoder", 0.2)
    assert (training.learning_rate, training.seed, training.weight_decay) == (3e-4, 7, 0.01)


def test_a_recipe_is_read_as_yaml_1_2(recipe: Any) -> None:
    start = "tasks: {answer: {dataset: a.csv, labels: [no, yes, 12:30], loss: {weight: 1e-1}}}"
    lines = "eval_strategy: no\nload_best_model_at_end: no\nlearning_rate: 2e-5\nmax_steps: -1"
    _, data, training = parse_arguments([recipe(lines, start)])
    assert data.tasks["answer"].labels == ["no", "yes", "12:30"]
    assert data.tasks["answer"].loss == {"weight": 0.1}
    assert training.eval_strategy == "no" and training.load_best_model_at_end is False
    assert (training.learning_rate, training.max_steps) == (2e-5, -1)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("-3", -3), ("3.5", 3.5), (".5", 0.5), ("true", True), ("off", "off"), ("010", "010"), ("~", None)]
    + [("2020-01-01", "2020-01-01"), ("''", ""), ("[a, 1]", ["a", 1]), (".inf", float("inf"))],
)
def test_plain_words_of_yaml(text: str, value: Any) -> None:
    read = read_yaml(text, "here")
    assert read == value and type(read) is type(value)


def test_lists_mappings_and_nulls_of_a_recipe_reach_their_arguments(recipe: Any) -> None:
    lines = """
sample_texts: [--dashes at the start, "two\\nlines", plain]
save_total_limit: null
report_to: []
lr_scheduler_kwargs: {num_cycles: 2}
accelerator_config: {split_batches: false}
sampling_shares: {topic: 1, ner: 2.5}
sampling_strategy: shares
"""
    _, data, training = parse_arguments([recipe(lines)])
    assert data.sample_texts == ["--dashes at the start", "two\nlines", "plain"]
    assert data.sampling_shares == {"topic": 1, "ner": 2.5}
    assert training.save_total_limit is None and training.report_to == []
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("lerning_rate: 1", ["recipe.yaml: there is no argument 'lerning_rate'. Did you mean 'learning_rate'?"]),
        ("warmup_ratio: 0.1", ["'warmup_ratio'. Did you mean 'warmup_steps'?"]),
        ("num_train_epochs: abc", ["recipe.yaml: argument --num_train_epochs", "invalid float value: 'abc'"]),
        ("seed: null", ["recipe.yaml: seed must be int; got None"]),
        ("seed: [1, 2]", ["seed must be int; got [1, 2]"]),
        ("sample_texts: [1, 2]", ["sample_texts must be list[str]; got [1, 2]. Quote text"]),
        ("lr_scheduler_type: lineer", ["argument --lr_scheduler_type", "'lineer'"]),
        ("seed: 1\nseed: 2", ["recipe.yaml is not valid YAML: the key 'seed' stands twice", "line 10"]),
        ("seed: [1", ["recipe.yaml is not valid YAML"]),
        ("sampling_shares: {topik: 1}", ["sampling_shares has no field 'topik'", "Did you mean 'topic'?"]),
        ("sampling_shares: {topic: a}", ["sampling_shares must be dict[str, float] | None; got {'topic': 'a'}"]),
        (
            "sampling_shares: {topic: 1}",
            ["sampling_strategy is 'temperature'", "--sampling_shares {} on the command line"],
        ),
        ("sampling_shares: 3", ["recipe.yaml: sampling_shares must be dict | None; got 3"]),
        ("pooling: meen", ["pooling must be one of", "Did you mean 'mean'?"]),
        ("head_dropout: 2", ["head_dropout is a probability between 0 and 1; got 2.0"]),
        ("projection_dim: 0", ["projection_dim must be a positive whole number"]),
        ("early_stopping_patience: 0", ["early_stopping_patience must be greater than 0, or unset; got 0"]),
    ],
)
def test_what_a_recipe_cannot_say_is_refused(
    recipe: Any, capsys: pytest.CaptureFixture[str], lines: str, words: list[str]
) -> None:
    error = refusal(capsys, [recipe(lines)])
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--lerning_rate", "1"], "there is no argument --lerning_rate. Did you mean 'learning_rate'?"),
        (["--learning-rat=1"], "there is no argument --learning_rat. Did you mean 'learning_rate'?"),
        (["--learning", "1"], "there is no argument --learning."),  # no silent abbreviations
        (["--learning_rate", "abc"], "invalid float value: 'abc'"),
        (["second.yaml"], "unexpected 'second.yaml'; a recipe comes first"),
        (
            ["--tasks.topc.loss.weight", "1"],
            "there is no task 'topc'; the recipe's tasks are: topic, ner. Did you mean",
        ),
        (["--tasks.topic.los.weight", "1"], "Task 'topic' has no field 'los'"),
        (["--tasks.topic.loss.wieght", "1"], "Task 'topic': loss has no field 'wieght'"),
        (["--tasks.topic.dropout", "high"], "Task 'topic': dropout must be float | None; got 'high'"),
        (["--tasks.topic.dropout"], "--tasks.topic.dropout needs a value"),
        (["--tasks.topic.dropout", "--nano"], "--tasks.topic.dropout needs a value"),
        (["--tasks.topic", "x"], "--tasks.topic names a task but no field of it; write --tasks.topic.FIELD VALUE."),
        (["--tasks.topic.dataset.train", "x"], "dataset is 'builtin:topic' and has no field 'train'"),
        (["--tasks.topic.labels", "[a"], "--tasks.topic.labels is not valid YAML"),
        (["--tasks", "[topic]"], "--tasks must be dict; got ['topic']"),
    ],
)
def test_what_a_command_line_cannot_say_is_refused(
    recipe: Any, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert expected in refusal(capsys, [recipe(), *words])


def test_a_missing_recipe_lists_its_neighbours(recipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe()
    error = refusal(capsys, [path.replace("recipe.yaml", "recipy.yaml")])
    assert "There is no recipe" in error and path in error
    assert "a run needs at least one task" in refusal(capsys, []).lower()
    assert "a recipe comes first" in refusal(capsys, ["--seed", "1", path])


def test_a_recipe_that_is_no_mapping_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- a\n- b\n", encoding="utf-8")
    assert "A recipe is a mapping from argument to value" in refusal(capsys, [str(path)])


def test_dotted_overrides_reach_every_depth_of_a_task(recipe: Any) -> None:
    words = (
        "--tasks.ner.loss.weight 0.5 --tasks.topic.labels=[a,b] --tasks.topic.max_rows.test 3 --sampling-shares.ner 2"
        " --sampling_strategy shares"
    )
    _, data, _ = parse_arguments([recipe(), *words.split(), "--sampling_shares.topic=1"])
    assert data.tasks["ner"].loss == {"weight": 0.5} and data.tasks["topic"].loss == {"weight": 0.1}
    assert data.tasks["topic"].labels == ["a", "b"]
    assert data.tasks["topic"].max_rows == {"train": 500, "test": 3}
    assert data.sampling_shares == {"ner": 2, "topic": 1}


def test_tasks_can_be_given_whole_on_the_command_line() -> None:
    _, data, _ = parse_arguments(["--tasks", "{topic: {dataset: builtin:topic}}"])
    assert data.tasks == {"topic": TaskArguments("builtin:topic")}


def test_nano_keeps_smaller_caps_and_explicit_values(recipe: Any) -> None:
    lines = "num_train_epochs: 5\nmax_steps: 1000\nnano: true"
    _, data, training = parse_arguments([recipe(lines)])
    assert data.tasks["topic"].max_rows == NANO_ROWS
    assert data.tasks["ner"].max_rows == NANO_ROWS | {"train": 50}
    assert (training.num_train_epochs, training.max_steps) == (1, -1)
    assert len(data.notes) == 1 and "128 train, 64 validation, 64 test" in data.notes[0]

    words = ["--num_train_epochs", "2", "--tasks.topic.max_rows", "300", "--tasks.ner.max_rows.test", "70"]
    _, data, training = parse_arguments([recipe(lines), *words])
    assert data.tasks["topic"].max_rows == NANO_ROWS | {"train": 300}
    assert data.tasks["ner"].max_rows == NANO_ROWS | {"train": 50, "test": 70}
    assert training.num_train_epochs == 2

    _, data, training = parse_arguments([recipe(lines), "--nano", "false"])
    assert data.tasks["topic"].max_rows == 500 and training.num_train_epochs == 5 and data.notes == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "Task 'a' needs a `dataset`"),
        ({"dataset": "d", "colums": {}}, "Task 'a' has no field 'colums'.*Did you mean 'columns'"),
        ({"dataset": "d", "columns": {"txt": "x"}}, "columns has no field 'txt'.*Did you mean 'text'"),
        ({"dataset": "d", "splits": {"valid": "x"}}, "splits has no field 'valid'.*Did you mean 'validation'"),
        ({"dataset": {"dev": "x.csv"}}, "dataset has no field 'dev'"),
        ({"dataset": "d", "kind": "text-clasification"}, "kind must be one of.*Did you mean 'text-classification'"),
        ({"dataset": "d", "format": "xml"}, "format must be one of"),
        ({"dataset": "d", "labels": [1, 2]}, r"labels must be list\[str\] \| None; got \[1, 2\]. Quote"),
        ({"dataset": "d", "max_rows": 0}, "max_rows of train must be a finite number at least 1; got 0"),
        ({"dataset": "d", "max_rows": True}, r"max_rows must be int \| dict\[str, int\] \| None; got True"),
        ({"dataset": "d", "max_rows": {"dev": 3}}, "max_rows has no field 'dev'"),
        ({"dataset": "d", "validation_fraction": 1}, "validation_fraction must be a finite number between"),
        ({"dataset": "d", "score_range": [5, 0]}, r"score_range must be \[lowest, highest\]; got \[5, 0\]"),
        ({"dataset": "d", "dropout": 2}, "dropout must be a finite number between 0.0 and 1.0"),
        (
            {"dataset": "d", "kind": "sentence-similarity", "head": "mlp"},
            "'a' .sentence-similarity. has no field 'head'",
        ),
        ({"dataset": "d", "kind": "feature-extraction", "loss": {"name": "mse"}}, "loss has no field 'name'"),
        ("builtin:topic", "Task 'a' must be a mapping from field to value; got 'builtin:topic'"),
    ],
)
def test_a_task_that_cannot_be_is_refused_by_name(fields: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){words}"):
        DataArguments(tasks={"a": fields})


def test_task_names_are_checked_and_null_means_the_default() -> None:
    with pytest.raises(ValueError, match="reserved"):
        DataArguments(tasks={"train": {"dataset": "d"}})
    task = DataArguments(tasks={"a": {"dataset": "d", "columns": None, "validation_fraction": None}}).tasks["a"]
    assert (task.columns, task.validation_fraction) == ({}, 0.1)
    assert DataArguments(tasks={"a": task}).tasks["a"] is task


def test_every_field_of_a_task_specification_that_a_user_can_set_is_a_field_here() -> None:
    fields = {one.name for one in dataclasses.fields(TaskArguments)}
    derived = {"text_pair", "temperature"}  # follow from the columns, and from validation rows after training
    assert frozenset().union(*SPEC_FIELDS.values()) - derived <= fields


def test_every_argument_and_every_task_field_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse_arguments(["--help"])
    printed = capsys.readouterr().out
    assert left.value.code == 0
    for one in ARGUMENT_FIELDS.values():
        assert f"--{one.name}" in printed and one.metadata.get("help"), one.name
    for one in dataclasses.fields(TaskArguments):
        assert f"\n  {one.name} " in printed and one.metadata["help"].endswith("."), one.name


def test_the_docstring_lists_every_default_that_differs_from_transformers(tmp_path: Path) -> None:
    stock, ours = TrainingArguments(str(tmp_path), use_cpu=True), MultiTaskTrainingArguments(str(tmp_path))
    documented = MultiTaskTrainingArguments.__doc__ or ""
    for one in dataclasses.fields(TrainingArguments):
        if one.init and getattr(stock, one.name) != getattr(ours, one.name) and one.name != "do_eval":
            assert one.name in documented, one.name
    assert ours.do_eval and ours.remove_unused_columns and ours.greater_is_better is True


@pytest.mark.parametrize(
    ("metric", "greater"), [("eval_loss", False), ("eval_score_mse", False), ("eval_ner_f1", True), ("loss", False)]
)
def test_greater_is_better_follows_the_metric(tmp_path: Path, metric: str, greater: bool) -> None:
    assert MultiTaskTrainingArguments(str(tmp_path), metric_for_best_model=metric).greater_is_better is greater


def test_bf16_is_decided_by_the_hardware_and_said(tmp_path: Path) -> None:
    arguments = MultiTaskTrainingArguments(str(tmp_path))
    has_bf16, hardware = find_bf16(arguments.use_cpu)
    assert arguments.bf16 is has_bf16 and hardware in arguments.notes[0]
    assert MultiTaskTrainingArguments(str(tmp_path), bf16=False).notes == []
    if not torch.accelerator.is_available():
        forced = MultiTaskTrainingArguments(str(tmp_path), bf16=True)
        assert forced.use_cpu and forced.bf16
        assert MultiTaskTrainingArguments(str(tmp_path), fp16=True).bf16 is False


@pytest.mark.parametrize(
    ("found", "has_bf16"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False)]
)
def test_a_cpu_has_bf16_with_amx_or_avx512(monkeypatch: pytest.MonkeyPatch, found: dict, has_bf16: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False, **found})
    assert find_bf16(use_cpu=True)[0] is has_bf16


def test_bf16_switches_on_the_command_line(recipe: Any) -> None:
    assert parse_arguments([recipe(), "--bf16", "false"])[2].bf16 is False
    assert parse_arguments([recipe("bf16: false"), "--bf16"])[2].bf16 is True
    assert parse_arguments([recipe("normalize_embeddings: true")])[0].normalize_embeddings is True


def test_printing_the_arguments_hides_the_token(tmp_path: Path) -> None:
    arguments = MultiTaskTrainingArguments(str(tmp_path), hub_token="hf_secret")
    assert "hf_secret" not in f"{arguments!r} {arguments}"


def test_no_argument_has_two_homes() -> None:
    homes = (ModelArguments, DataArguments, MultiTaskTrainingArguments)
    names = [one.name for home in homes for one in dataclasses.fields(home) if one.init]
    assert len(names) == len(set(names)) == len(arguments_multitask.ARGUMENT_FIELDS)


# Stages, rates and what is frozen


STAGES = "stages: [{epochs: 1, freeze: [encoder]}, {epochs: 2, freeze: ['layers:3,topic', ner]}, {epochs: 1}]"


def test_stages_are_read_complete_and_give_the_number_of_epochs(recipe: Any) -> None:
    expected = [(1, ["encoder"]), (2, ["layers:3", "topic", "ner"]), (1, [])]
    for lines in (STAGES, f"{STAGES}\nnum_train_epochs: 4"):
        _, _, training = parse_arguments([recipe(lines)])
        assert training.stages == [{"epochs": epochs, "freeze": parts} for epochs, parts in expected]
        assert training.num_train_epochs == 4
    assert parse_arguments([recipe()])[2].num_train_epochs == 3 and parse_arguments([recipe()])[2].stages is None


def test_the_command_line_gives_stages_as_a_whole_and_freeze_takes_a_part_with_a_colon(recipe: Any) -> None:
    words = ["--stages", "[{epochs: 2, freeze: [layers:1]}, {epochs: 3}]", "--freeze", "layers:2,topic"]
    _, _, training = parse_arguments([recipe(STAGES), *words])
    assert [stage["epochs"] for stage in training.stages] == [2, 3] and training.num_train_epochs == 5
    assert training.stages[0]["freeze"] == ["layers:1"] and training.freeze == ["layers:2", "topic"]
    assert parse_arguments([recipe("freeze: [layers:1]")])[2].freeze == ["layers:1"]


def test_nano_trains_one_epoch_a_stage_unless_the_command_line_gives_the_stages(recipe: Any) -> None:
    _, data, training = parse_arguments([recipe(f"{STAGES}\nnum_train_epochs: 4"), "--nano"])
    assert [stage["epochs"] for stage in training.stages] == [1, 1, 1] and training.num_train_epochs == 3
    assert "1 epoch a stage" in data.notes[-1]
    given = ["--stages", "[{epochs: 2}]"]
    assert parse_arguments([recipe(STAGES), "--nano", *given])[2].num_train_epochs == 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("stages: []", "stages is a list of {epochs: N, freeze: [parts]}, at least one"),
        ("stages: {epochs: 1}", "recipe.yaml: stages must be list | None; got {'epochs': 1}"),
        ("stages: [1]", "stages must be list[dict[str, Any]]; got [1]"),
        (
            "stages: [{epochs: 1}, {epoch: 1}]",
            "Stage 2 of 2 has no field 'epoch'; its fields are epochs, freeze. Did you",
        ),
        ("stages: [{freeze: [encoder]}]", "Stage 1 of 1: epochs must be a whole number of at least 1; got None"),
        ("stages: [{epochs: 1}, {epochs: 1.5}]", "Stage 2 of 2: epochs must be a whole number of at least 1; got 1.5"),
        ("stages: [{epochs: 0}]", "Stage 1 of 1: epochs must be a whole number of at least 1; got 0"),
        ("stages: [{epochs: true}]", "Stage 1 of 1: epochs must be a whole number of at least 1; got True"),
        ("stages: [{epochs: 1, freeze: encoder}]", "Stage 1 of 1: freeze must be list[str]; got 'encoder'"),
        ("stages: [{epochs: 1, freeze: [all]}]", "Stage 1 of 1: freeze: all is for evaluation only"),
        (f"{STAGES}\nnum_train_epochs: 3", "num_train_epochs (3.0) is the sum of their epochs (4); leave it away"),
        (f"{STAGES}\nmax_steps: 7", "With stages, max_steps would end them elsewhere"),
        (f"{STAGES}\nearly_stopping_patience: 2", "With stages, early_stopping_patience would count"),
        (f"{STAGES}\nsave_strategy: best", "With stages, save_strategy best may write no checkpoint"),
        (f"{STAGES}\nsave_only_model: true", "With stages, save_only_model leaves out"),
        (f"{STAGES}\nlr_scheduler_type: reduce_lr_on_plateau", "With stages, lr_scheduler_type"),
        ("freeze: [topic, all]", "freeze: all is for evaluation only, since nothing is left to train. Freeze less"),
        ("layer_decay: 0", "layer_decay is a factor above 0, at most 1, or unset; got 0.0"),
        ("layer_decay: 1.1", "layer_decay is a factor above 0, at most 1, or unset; got 1.1"),
    ],
)
def test_stages_rates_and_parts_that_contradict_are_refused_in_one_line(
    recipe: Any, capsys: pytest.CaptureFixture[str], lines: str, said: str
) -> None:
    error = refusal(capsys, [recipe(lines)])
    assert said in error and error.count("\n") == 1
