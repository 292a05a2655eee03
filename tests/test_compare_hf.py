"""`compare_hf`: the same budget alone and together, nothing trained twice, and reports that say what the files hold.

The trainings of most tests are `train_hf.main` in this process; `test_a_comparison_through_the_command_line` and the
killed run are processes of their own.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from card_validation import card_errors

import compare_hf
import recipe_runs
import train_hf
from comparison_report import insert_report, mean_cosines, render, strongest_opponent, summarise_cost, table
from hub_folder import copy_published, published_files
from model_card import build_card
from recipe_arguments import parse_arguments, read_recipe
from recipe_runs import Run, read_result, without_paths
from single_task_recipe import Budget, budget_of, options_alone, recipe_alone
from task_plots import has_matplotlib

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = """
encoder: {encoder}
head_dropout: 0.1
freeze: [embeddings]
sample_texts: [Anna flew to Oslo.]
tasks:
  topic: {{dataset: "builtin:topic", max_rows: {{train: 48, validation: 8, test: 20}}}}
  entities:
    dataset: builtin:entities
    columns: {{tokens: tokens, label: ner_tags}}
    max_rows: {{train: 24, validation: 8, test: 20}}
  anchor:
    kind: feature-extraction
    dataset: builtin:sentiment
    max_rows: {{train: 16, validation: 8, test: 8}}
  quiet:
    dataset: builtin:sentence_type
    max_rows: {{train: 16, validation: 8, test: 8}}
    loss: {{weight: 0}}
  scored:
    dataset: builtin:similarity
    kind: sentence-similarity
    columns: {{text: sentence1, text_pair: sentence2, label: score}}
    splits: {{train: null, validation: null, test: test}}
    max_rows: {{test: 8}}
sampling_strategy: shares
sampling_shares: {{topic: 2, entities: 2, anchor: 1, quiet: 1}}
num_train_epochs: 2
per_device_train_batch_size: 8
per_device_eval_batch_size: 8
warmup_steps: 4
metric_for_best_model: eval_entities_f1
bf16: false
report_to: none
"""


def train_here(words: Sequence[str], log: Path | None = None) -> None:
    """`train_apart` in this process: what it trains is the same, and no time goes into starting Python."""
    train_hf.main(list(words[1:]))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in this process."""
    monkeypatch.setattr(recipe_runs, "train_apart", train_here)


@pytest.fixture(scope="module")
def compared(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of two seeds."""
    folder = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_runs, "train_apart", train_here)
        compare_hf.main([str(recipe), "--seeds", "2", "--output_dir", str(folder), "--resamples", "200"])
    return folder


def facts_of(folder: Path) -> dict[str, Any]:
    """`comparison.json`."""
    return json.loads((folder / "comparison.json").read_text())


def arguments_of(recipe: Path, *words: str) -> tuple[Any, Any]:
    """The data and training arguments of a command line."""
    return parse_arguments([str(recipe), *words, "--output_dir", "unused"])[1:]


# The budget


def test_a_task_alone_draws_the_rows_that_it_drew_together(compared: Path) -> None:
    """As the plans of both runs say, to half a step; the same rows, and all steps were taken."""
    shared = read_result(compared / "together-seed1")["sampling"]
    steps = 0
    for task in ("topic", "entities"):
        alone = read_result(compared / f"{task}-seed1")["sampling"]
        (own,) = alone["tasks"]
        (before,) = [one for one in shared["tasks"] if one["name"] == task]
        assert own["rows"] == before["rows"] and alone["rows_per_step"] == shared["rows_per_step"] == 8
        taken = json.loads((compared / f"{task}-seed1" / "trainer_state.json").read_text())["global_step"]
        assert abs(taken * 8 - before["drawn"]) <= 4
        assert facts_of(compared)["tasks"][task]["budget"]["steps"] == taken
        steps += taken
    assert steps < facts_of(compared)["tasks"]["topic"]["budget"]["all_steps"] == 26, "the others draw, too"


def test_a_task_alone_is_evaluated_as_often_as_all_together(compared: Path) -> None:
    """An evaluation an epoch together; at the same shares of the run alone."""
    for folder in compared.glob("*-seed1"):
        state = json.loads((folder / "trainer_state.json").read_text())
        evaluated = {entry["step"] for entry in state["log_history"] if "eval_mean_score" in entry}
        assert len(evaluated) == 2 and max(evaluated) == state["global_step"], folder.name


def test_the_recipe_of_a_task_alone_names_no_other_task(recipe: Path) -> None:
    """Tasks, shares and frozen heads; all else is the same."""
    data, _ = arguments_of(recipe)
    content = read_recipe(str(recipe)) | {"freeze": ["embeddings", "topic"], "task_name": "entities"}
    alone = recipe_alone(content, "topic", data.tasks)
    assert alone["tasks"] == {"topic": content["tasks"]["topic"]} and alone["sampling_shares"] == {"topic": 2}
    assert alone["freeze"] == ["embeddings", "topic"] and "task_name" not in alone
    assert recipe_alone(content, "entities", data.tasks)["freeze"] == ["embeddings"]
    same = alone.keys() - {"tasks", "sampling_shares"}
    assert {key: alone[key] for key in same} == {key: content[key] for key in same}


def test_a_task_alone_has_no_teacher(recipe: Path) -> None:
    """In the recipe and on the command line; the other options of its loss stay."""
    taught = {"dataset": "builtin:topic", "distill_from": "T", "loss": {"weight": 2, "label_share": [0.5, 0.5]}}
    content = {"tasks": {"topic": taught, "ner": {"dataset": "x"}}}
    alone = recipe_alone(content, "topic", ("topic", "ner"))
    assert alone["tasks"] == {"topic": {"dataset": "builtin:topic", "loss": {"weight": 2}}}
    words = ["--tasks.topic.distill_from=T", "--tasks.topic.loss.distillation_temperature", "2"]
    data, args = arguments_of(recipe)
    budget = Budget(rows=48, drawn=96, steps=12, all_steps=24)
    options = options_alone([*words, "--tasks.topic.loss.weight=3"], "topic", data.tasks, budget, args)
    assert options[0] == "--tasks.topic.loss.weight=3" and not [word for word in options if "distill" in word]


def test_arguments_of_other_tasks_do_not_reach_a_task_alone(recipe: Path, tmp_path: Path) -> None:
    """What is left is a command line that train_hf takes, with the task's own arguments and its budget."""
    words = ["--tasks.topic.loss.weight", "0.5", "--tasks.entities.dropout=0.2", "--sampling_shares.anchor", "3"]
    words += ["--learning_rate", "3e-4", "--freeze", "embeddings,entities"]
    data, args = arguments_of(recipe, *words)
    budget = Budget(rows=48, drawn=96, steps=12, all_steps=24)
    path = tmp_path / "topic.yaml"
    path.write_text(yaml.safe_dump(recipe_alone(read_recipe(str(recipe)), "topic", data.tasks)))
    options = options_alone(words, "topic", data.tasks, budget, args)
    alone_data, alone = arguments_of(path, *options)
    assert alone_data.tasks["topic"].loss == {"weight": 0.5} and list(alone_data.tasks) == ["topic"]
    assert alone.freeze == ["embeddings"] and alone.learning_rate == 3e-4 and alone.max_steps == 12
    assert alone.metric_for_best_model == "eval_mean_score" and alone.warmup_steps == 2
    assert not any(word.startswith(("--tasks.entities", "--sampling_shares")) for word in options)
    whole = ["--tasks", "{topic: {dataset: 'builtin:topic'}, entities: {dataset: 'builtin:entities'}}"]
    assert (
        options_alone(whole, "topic", data.tasks, budget, args)[0] == '--tasks={"topic": {"dataset": "builtin:topic"}}'
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"eval": ("steps", 5), "save": ("steps", 5)}),  # an epoch of two
        (["--eval_strategy", "steps", "--eval_steps", "4", "--save_strategy", "steps", "--save_steps", "8"],
         {"eval": ("steps", 2), "save": ("steps", 2)}),
        (["--eval_strategy", "steps", "--eval_steps", "0.1", "--save_strategy", "best"],
         {"eval": ("steps", 1), "save": ("best", 500)}),
        (["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"],
         {"eval": ("no", None), "save": ("no", 500)}),
    ],
)  # fmt: skip
def test_evaluations_keep_their_share_of_the_run(recipe: Path, words: list[str], expected: dict[str, Any]) -> None:
    """Half the steps of all tasks together: half the steps between two evaluations."""
    data, args = arguments_of(recipe, *words)
    options = options_alone(words, "topic", data.tasks, Budget(48, 80, 10, 20), args)
    _, alone = arguments_of(recipe, *options)
    found = {what: (getattr(alone, f"{what}_strategy").value, getattr(alone, f"{what}_steps")) for what in expected}
    assert found == expected


def test_aligned_tasks_and_a_number_of_steps_have_their_budget(recipe: Path) -> None:
    """Each of two aligned tasks gets all rows of the group; a run that ends early drew less."""
    sampling = {"steps_per_epoch": 10, "num_epochs": 2, "rows_per_step": 8}
    sampling |= {"tasks": [{"name": "a+b", "rows": 60, "drawn": 120}, {"name": "c", "rows": 20, "drawn": 40}]}
    _, args = arguments_of(recipe)
    assert budget_of("a", sampling, args) == budget_of("b", sampling, args) == Budget(60, 120, 15, 20)
    _, halved = arguments_of(recipe, "--max_steps", "10")
    assert budget_of("c", sampling, halved) == Budget(20, 20, 2, 10)


# The runs


def test_scores_and_intervals_are_those_of_the_runs(compared: Path) -> None:
    """Single and shared scores are what each run reported on the same rows."""
    facts = facts_of(compared)
    assert list(facts["tasks"]) == ["topic", "entities"] and facts["seeds"] == [1, 2]
    for task, one in facts["tasks"].items():
        for seed in (1, 2):
            key = f"test_{task}_{one['metric']}"
            alone, together = (read_result(compared / f"{run}-seed{seed}") for run in (task, "together"))
            assert one["alone"][seed - 1] == pytest.approx(alone["scores"][key], abs=1e-12)
            assert one["together"][seed - 1] == pytest.approx(together["scores"][key], abs=1e-12)
        assert one["interval"][0] <= one["difference"] <= one["interval"][1]
        assert one["difference"] == pytest.approx(sum(one["by_seed"]) / 2)
    assert {run["name"] for run in facts["runs"]} == {path.name for path in compared.glob("*-seed?")}
    assert len(facts["runs"]) == 6


def test_what_cannot_be_trained_alone_is_said_and_not_compared(compared: Path) -> None:
    """An embedding that is kept, a task whose loss counts nothing, and one without training rows."""
    reasons = facts_of(compared)["not_compared"]
    assert reasons.keys() == {"anchor", "quiet", "scored"}
    assert "keeps the embedding" in reasons["anchor"] and "weight 0" in reasons["quiet"]
    assert "no training rows" in reasons["scored"]
    report = (compared / "report.md").read_text()
    assert all(f"Not compared: {name}, {reason}." in report for name, reason in reasons.items())


def test_gradients_were_measured_and_did_not_count_as_training(compared: Path) -> None:
    """A tenth of 26 steps is 3; a task of weight 0 has no direction."""
    facts = facts_of(compared)
    cosines = facts["gradient_cosines"]
    assert cosines["tasks"] == ["anchor", "entities", "quiet", "topic"] and cosines["measurements"] == 2 * (26 // 3)
    assert cosines["mean"][2] == [None] * 4 and cosines["mean"][1][3] == cosines["mean"][3][1] is not None
    results = [read_result(compared / f"together-seed{seed}") for seed in (1, 2)]
    with_measuring = sum(one["train_seconds"] for one in results) / 2
    assert 0 < facts["cost"]["together"]["train_seconds"] < with_measuring
    assert not (compared / "topic-seed1" / "gradient_cosines.json").exists()


def test_the_cost_is_that_of_all_models_alone(compared: Path) -> None:
    cost = facts_of(compared)["cost"]
    parameters = {run["name"]: run["parameters"] for run in facts_of(compared)["runs"]}
    assert cost["alone"]["parameters"] == parameters["topic-seed1"] + parameters["entities-seed1"]
    assert cost["together"]["parameters"] == parameters["together-seed2"] < cost["alone"]["parameters"]
    assert (cost["alone"]["passes"], cost["together"]["passes"]) == (2, 1)


def test_a_comparison_that_is_asked_for_again_trains_nothing(
    compared: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says the same; with fewer seeds it compares those."""

    def refuse(*args: Any) -> None:
        pytest.fail("something was trained again")

    monkeypatch.setattr(recipe_runs, "train_apart", refuse)
    before = facts_of(compared)
    again = [str(recipe), "--output_dir", str(compared), "--resamples", "200"]
    compare_hf.main([*again, "--seeds", "1"])
    assert facts_of(compared)["tasks"]["topic"]["by_seed"] == before["tasks"]["topic"]["by_seed"][:1]
    compare_hf.main([*again, "--seeds", "2"])
    assert facts_of(compared) == before


def test_a_changed_recipe_is_said_and_refused(
    compared: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line an argument that changed; so for the recipe's content, and not for its comments."""
    words = ["--output_dir", str(compared), "--seeds", "1"]
    with pytest.raises(SystemExit, match="2"):
        compare_hf.main([str(recipe), *words, "--learning_rate", "1e-5"])
    told = capsys.readouterr().err
    assert "together-seed1 holds another run" in told and "1e-5" in told and "--overwrite_output" in told
    text = recipe.read_text()
    run = compare_hf.together(*compare_hf.parse_comparison([str(recipe), *words]), 1)
    assert run.result is not None and run.changes() == {}
    recipe.write_text(f"# a comment\n{text}")
    assert run.result is not None and run.changes() == {}
    recipe.write_text(text.replace("head_dropout: 0.1", "head_dropout: 0.2"))
    assert run.result is None and run.changes() == {"recipe.head_dropout": (0.1, 0.2)}
    recipe.write_text(text)


@pytest.mark.slow
def test_a_changed_run_is_trained_anew_if_that_is_asked_for(here: None, recipe: Path, tmp_path: Path) -> None:
    """Nothing of the earlier one is left."""
    options = ["--max_steps", "2", "--seed", "1"]
    Run("x", tmp_path / "x", str(recipe), options).finish()
    (tmp_path / "x" / "left_over.txt").touch()
    changed = Run("x", tmp_path / "x", str(recipe), [*options, "--learning_rate", "1e-5"])
    with pytest.raises(ValueError, match="holds another run"):
        changed.finish()
    result = changed.finish(retrain_changed=True)
    assert result == changed.result and "--learning_rate 1e-5" in result["command"]
    assert not (tmp_path / "x" / "left_over.txt").exists()


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_as_the_unbroken_one(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its second epoch, it goes on from its checkpoint: equal predictions, its clock unknown."""
    options = ["--gradient_accumulation_steps", "2", "--seed", "1"]
    unbroken = Run("a", tmp_path / "a", str(recipe), options)
    killed = Run("b", tmp_path / "b", str(recipe), options)
    first = unbroken.finish()
    fatal = tmp_path / "fatal.py"
    ends = REPOSITORY / "tests" / "run_that_ends.py"
    fatal.write_text(
        f"import runpy, sys\nsys.argv[1:1] = ['kill 10']\nrunpy.run_path({str(ends)!r}, run_name='__main__')\n"
    )
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setattr(recipe_runs, "SCRIPT", fatal)
        with pytest.raises(ValueError, match="Exit code -9"):
            killed.finish()
    assert killed.result is None and list((tmp_path / "b").glob("checkpoint-*"))
    second = killed.finish()
    assert second["scores"].keys() == first["scores"].keys()
    assert {name: value for name, value in second["scores"].items()} == first["scores"]
    assert first["train_seconds"] > 0 and second["train_seconds"] is None
    for path in (tmp_path / "a" / "predictions").iterdir():
        assert pq.read_table(path).equals(pq.read_table(tmp_path / "b" / "predictions" / path.name))
    assert not list(tmp_path.glob("*/checkpoint-*")), "a finished run needs none"


@pytest.mark.slow
def test_a_comparison_through_the_command_line(recipe: Path, tmp_path: Path) -> None:
    """Each run in a process of its own; a run that fails ends it in the words of that run."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "compare_hf.py"), str(recipe), "--nano", "--seeds", "1"]
    pipes: dict[str, Any] = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
    failed = subprocess.run([*command, "--lr_scheduler_kwargs", '{"no": 1}'], **pipes, check=False)
    assert failed.returncode == 2 and "Exit code 1 of: python train_hf.py" in failed.stderr
    assert "TypeError" in failed.stderr, "the end of the run's own log"
    done = subprocess.run([*command, "--overwrite_output", "--gradient_cosines", "0"], **pipes, check=False)
    assert done.returncode == 0, done.stderr
    facts = facts_of(tmp_path / "outputs" / f"compare_{recipe.stem}")
    assert facts["gradient_cosines"] == {} and "Budget of topic" in done.stdout
    assert "pull in the same direction" not in render(facts)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dry_run"], "leave dry_run away"),
        (["--push_to_hub"], "leave push_to_hub away"),
        (["--resume_from_checkpoint", "last"], "goes on by itself"),
        (["--stages", "[{epochs: 2}]"], "leave stages away"),
        (["--tasks", "{topic: {dataset: 'builtin:topic'}}", "--sampling_shares", "{topic: 1}"], "has topic alone"),
        (["--learning_rat", "1"], "there is no argument --learning_rat"),
        (["--seeds", "0"], "at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_anything_is_written(
    recipe: Path, tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare_hf.main([str(recipe), "--output_dir", str(tmp_path / "none"), *words])
    assert told in capsys.readouterr().err and not (tmp_path / "none").exists()


# The report


def test_the_report_is_made_of_the_file_alone(compared: Path) -> None:
    """Every table's numbers, the protocol, a command for each run; no folder of this machine."""
    facts, report = facts_of(compared), (compared / "report.md").read_text()
    assert report == render(facts)
    for task, one in facts["tasks"].items():
        (line,) = [line for line in report.splitlines() if line.startswith(f"| {task} | {one['metric']} ")]
        assert f"{sum(one['alone']) / 2:.4f}" in line and f"{100 * one['difference']:+.2f}" in line
        assert f"**{one['verdict']}**" in line and line.endswith(f"| {one['advice']} |")
    assert report.count("python train_hf.py") == 6 and str(compared) not in report + json.dumps(facts)
    assert "seqeval" in report and "200 resamples" in report and "same passes over the same rows" in report
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", report)
    assert pictures == ["differences.png", "gradient_cosines.png"]
    assert [(compared / picture).is_file() for picture in pictures] == [has_matplotlib()] * 2


def test_a_document_holds_the_reports_of_several_recipes(compared: Path, tmp_path: Path) -> None:
    """A new report takes the place of the earlier one of its recipe, and of no other."""
    facts, document = facts_of(compared), tmp_path / "docs" / "fine_tuning_report.md"
    document.parent.mkdir()
    for name in ("one", "two", "one"):
        insert_report(facts | {"recipe": name, "seeds": [7]}, compared, document)
    text = document.read_text()
    assert text.startswith("# ") and len(re.findall(r"^## Does sharing help\?", text, re.MULTILINE)) == 2
    assert text.index("<!-- end one -->") < text.index("<!-- begin two -->")
    again = facts | {"recipe": "one", "command": r"back\1slash"}
    insert_report(again, compared, document)
    assert r"back\1slash" in document.read_text() and document.read_text().count("<!-- begin one -->") == 1
    for picture in re.findall(r"\]\(([^)]+\.png)\)", text):
        assert (document.parent / picture).is_file() == has_matplotlib()
    assert json.loads((tmp_path / "docs/fine_tuning_report/one/comparison.json").read_text()) == facts


def test_the_committed_report_is_made_of_its_files() -> None:
    """No figure in it was typed, and every file of a comparison is in it."""
    document = Path(__file__).resolve().parent.parent / "docs" / "fine_tuning_report.md"
    files = sorted(document.with_suffix("").glob("*/comparison.json"))
    text = document.read_text(encoding="utf-8")
    assert files and text.count("<!-- begin ") == len(files)
    for file in files:
        facts = json.loads(file.read_text())
        assert render(facts, f"fine_tuning_report/{file.parent.name}/", level=2) in text


def test_the_cards_of_the_models_have_a_column_of_single_task_scores(compared: Path, tmp_path: Path) -> None:
    """Written again from the folder it is the same; the numbers are published with it."""
    facts, folder = facts_of(compared), compared / "together-seed2"
    card = (folder / "README.md").read_text()
    assert card_errors(card) == [] and "{{" not in card
    assert "| single-task model | sharing, points |" in card and facts["command"] in card
    topic = facts["tasks"]["topic"]
    (line,) = [line for line in card.splitlines() if line.startswith("| topic | test ")]
    assert f"| {sum(topic['alone']) / 2:.4f} | {100 * topic['difference']:+.2f} (" in line and topic["verdict"] in line
    (line,) = [line for line in card.splitlines() if line.startswith("| anchor | test ")]
    assert "| - | - |" in line
    copy_published(folder, tmp_path)
    assert Path("comparison.json") in published_files(tmp_path) and not (tmp_path / "predictions").exists()
    assert "single-task model" in build_card(tmp_path, "x", None).content
    (tmp_path / "comparison.json").unlink()
    without = build_card(tmp_path, "x", None).content
    assert (
        "single-task model" not in without
        and "| task | data split | rows | metric | score | other metrics |" in without
    )


def test_the_cells_of_every_table_go_up() -> None:
    lines = table(["a", "b"], [["x|y", 1]]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", r"| x\|y | 1 |"]


def test_the_opponent_is_the_task_whose_gradients_point_most_against_one() -> None:
    mean = [[0.5, -0.1, -0.3], [-0.1, 0.5, 0.2], [-0.3, 0.2, None]]
    cosines = {"tasks": ["a", "b", "c"], "mean": mean, "standard_error": [[0.04] * 3] * 3}
    assert [strongest_opponent(task, cosines) for task in "abc"] == ["c", "a", "a"]
    assert strongest_opponent("d", cosines) is None and strongest_opponent("a", {}) is None
    positive = {"tasks": ["a", "b"], "mean": [[0.5, 0.1], [0.1, 0.5]], "standard_error": [[0.01, 0.01]] * 2}
    assert strongest_opponent("a", positive) is None


def test_a_cosine_that_chance_explains_makes_no_opponent() -> None:
    """Two standard errors of 0 are chance; a single measurement says nothing of chance."""
    mean = [[0.5, -0.1], [-0.1, 0.5]]
    names = {
        error: strongest_opponent("a", {"tasks": ["a", "b"], "mean": mean, "standard_error": [[error] * 2] * 2})
        for error in (0.049, 0.051, None)
    }
    assert names == {0.049: "b", 0.051: None, None: None}


def test_cosines_are_averaged_over_the_measurements_of_all_seeds() -> None:
    def measured(*values: float) -> dict[str, Any]:
        found = [{"step": 1, "cosines": [[1.0, value], [value, None]]} for value in values]
        return {"measured": "so", "tasks": ["a", "b"], "mean": "unread", "measurements": found}

    found = mean_cosines([measured(0.1, 0.3), {}, measured(0.5)])
    assert found["mean"] == [[1.0, 0.3], [0.3, None]] and found["measurements"] == 3
    assert found["standard_error"][0] == [0.0, round(0.2 / 3**0.5, 6)] and found["standard_error"][1][1] is None
    assert mean_cosines([measured(0.1)])["standard_error"] == [[None, None], [None, None]]
    assert mean_cosines([{}]) == {}


def test_seconds_that_nobody_knows_are_not_counted() -> None:
    """A run that was killed in between has no clock; a mean of the others stands for it."""
    known, unknown = {"train_seconds": 8.0, "parameters": 5}, {"train_seconds": None, "parameters": 5}
    measured = known | {"measuring_seconds": 2.0}
    cost = summarise_cost({"a": [known, unknown], "b": [known, known]}, [measured, unknown])
    assert cost["alone"]["train_seconds"] == 16.0 and cost["together"]["train_seconds"] == 6.0
    assert summarise_cost({"a": [unknown]}, [known])["alone"]["train_seconds"] is None


def test_a_command_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    words = [
        "train_hf.py",
        str(tmp_path / "recipes" / "a.yaml"),
        "--data_root",
        "/x/y",
        "--output_dir",
        "out/z",
        "-a=1",
    ]
    assert without_paths(words) == ["train_hf.py", "a.yaml", "--data_root", "DATA", "--output_dir", "OUT", "-a=1"]
