"""Which checkpoints are complete, which one `last` takes and what it says, which changed recipes are refused."""

import copy
import dataclasses
import inspect
import json
import logging
import shutil
from pathlib import Path

import pytest
from test_trainer_multitask import arguments, data_of, new_model, new_trainer
from tiny_models import TINY_TASKS
from transformers import TrainingArguments, trainer_jit_checkpoint

from arguments_multitask import DataArguments, ModelArguments, MultiTaskTrainingArguments
from run_checkpoints import (
    INCOMPLETE_MARKER,
    NOTED,
    RECIPE_NAME,
    UNRECORDED,
    UNRECORDED_PREFIXES,
    check_recipe,
    checkpoint_problems,
    describe_run,
    find_checkpoint,
    list_checkpoints,
    marked_incomplete,
    recipe_changes,
)
from task_sampler import TaskSamplingDataset

RECIPE = {"arguments": {"learning_rate": 0.001}, "world_size": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run of three steps with a checkpoint after each, written by the real trainer."""
    folder = tmp_path_factory.mktemp("run")
    tasks = {"topic": TINY_TASKS["topic"]}
    sampling = TaskSamplingDataset(data_of(tasks, 12), rows_per_step=4, num_epochs=1)
    options = {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 1}
    trainer = new_trainer(arguments(folder, **options), new_model(tasks), sampling)
    trainer.recipe = RECIPE
    trainer.train()
    return folder


@pytest.fixture
def output_dir(run: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to break."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def cut(file: Path, share: float = 0.5) -> None:
    """Cut the end off a file."""
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


BREAKAGES = {
    "marker": (lambda folder: (folder / INCOMPLETE_MARKER).touch(), "saving it was cut off"),
    "weights cut": (lambda folder: cut(folder / "model.safetensors", 0.99), "model.safetensors is broken or cut off"),
    "weights empty": (lambda folder: cut(folder / "model.safetensors", 0), "model.safetensors is broken or cut off"),
    "weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "state cut": (lambda folder: cut(folder / "trainer_state.json"), "trainer_state.json is no JSON"),
    "state": (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
    "state list": (lambda folder: (folder / "trainer_state.json").write_text("[]"), "trainer_state.json holds no map"),
    "random state": (lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "random state cut": (lambda folder: cut(folder / "rng_state.pth"), "rng_state.pth is cut off"),
    "optimizer": (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "optimizer cut": (lambda folder: cut(folder / "optimizer.pt", 0.999), "optimizer.pt is cut off"),
    "scheduler": (lambda folder: (folder / "scheduler.pt").unlink(), "scheduler.pt is missing"),
    "recipe cut": (lambda folder: cut(folder / RECIPE_NAME), f"{RECIPE_NAME} is no JSON"),
}


# Complete or not


def test_what_the_trainer_writes_is_complete_and_holds_the_recipe(run):
    folders = list_checkpoints(run)
    assert [folder.name for folder in folders] == ["checkpoint-3", "checkpoint-2", "checkpoint-1"]
    for folder in folders:
        assert checkpoint_problems(folder, 1) == []
        assert json.loads((folder / RECIPE_NAME).read_text()) == RECIPE


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_checkpoint_that_misses_something_is_passed_over_with_the_reason(output_dir, name, caplog):
    break_it, reason = BREAKAGES[name]
    break_it(output_dir / "checkpoint-3")
    (problem,) = checkpoint_problems(output_dir / "checkpoint-3", 1)
    assert problem.startswith(reason) or reason in problem
    assert find_checkpoint("last", str(output_dir), 1) == output_dir / "checkpoint-2"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "checkpoint-3" in warning and reason in warning


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_named_checkpoint_that_misses_something_is_refused_with_the_reason(output_dir, name):
    break_it, reason = BREAKAGES[name]
    break_it(output_dir / "checkpoint-3")
    with pytest.raises(ValueError, match=f"only from a complete checkpoint.*checkpoint-3: .*{reason}") as error:
        find_checkpoint(str(output_dir / "checkpoint-3"), str(output_dir), 1)
    assert "--resume_from_checkpoint last" in str(error.value)


def test_a_shard_that_is_missing_is_named(output_dir):
    folder = output_dir / "checkpoint-3"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert checkpoint_problems(folder, 1) == ["model-00002-of-00002.safetensors is missing"]


def test_every_rank_needs_its_random_state(output_dir):
    folder = output_dir / "checkpoint-3"
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    assert checkpoint_problems(folder, 2) == ["rng_state_1.pth is missing"]
    shutil.copy(folder / "rng_state_0.pth", folder / "rng_state_1.pth")
    assert checkpoint_problems(folder, 2) == []


def test_a_checkpoint_is_complete_for_the_processes_that_wrote_it(output_dir):
    """Another number of processes is a changed recipe, which may be allowed, not a broken checkpoint."""
    assert find_checkpoint("last", str(output_dir), 2) == output_dir / "checkpoint-3"
    (output_dir / "checkpoint-3" / RECIPE_NAME).unlink()
    with pytest.raises(ValueError, match=r"rng_state_0.pth is missing; rng_state_1.pth is missing"):
        find_checkpoint(str(output_dir / "checkpoint-3"), str(output_dir), 2)


def test_the_newest_is_the_one_of_the_highest_step_not_of_the_first_letter(output_dir):
    (output_dir / "checkpoint-2").rename(output_dir / "checkpoint-10")
    (output_dir / "checkpoint-new").mkdir()
    assert find_checkpoint("last", str(output_dir), 1).name == "checkpoint-10"


def test_without_a_complete_checkpoint_the_error_lists_what_is_there(output_dir):
    for number in (1, 2, 3):
        (output_dir / f"checkpoint-{number}" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="start anew") as error:
        find_checkpoint("last", str(output_dir), 1)
    assert [line.count("optimizer.pt is missing") for line in str(error.value).splitlines()] == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("name", ["last", "checkpoint-7"])
def test_a_folder_without_checkpoints_is_said_to_have_none(tmp_path, name):
    with pytest.raises(ValueError, match="holds no checkpoint at all|there is no such folder"):
        find_checkpoint(name, str(tmp_path), 1)


def test_the_marker_is_the_one_that_transformers_writes():
    assert f'"{INCOMPLETE_MARKER}"' in inspect.getsource(trainer_jit_checkpoint)


def test_the_mark_stays_when_saving_fails_and_goes_when_it_succeeds(tmp_path):
    folder = tmp_path / "checkpoint-1"
    with pytest.raises(OSError, match="no space"), marked_incomplete(folder, RECIPE):
        assert (folder / INCOMPLETE_MARKER).exists() and (folder / RECIPE_NAME).exists()
        raise OSError("no space")
    assert (folder / INCOMPLETE_MARKER).exists()
    with marked_incomplete(folder, None):
        pass
    assert not (folder / INCOMPLETE_MARKER).exists()


# Same recipe or not


@pytest.fixture
def run_arguments(tmp_path):
    """The arguments of a run, as `parse_arguments` returns them."""
    tasks = {"topic": {"dataset": "builtin:topic", "loss": {"weight": 0.5}}, "ner": {"dataset": "builtin:entities"}}
    training = MultiTaskTrainingArguments(output_dir=str(tmp_path), bf16=False, report_to="none", hub_token="hf_secret")
    return ModelArguments(), DataArguments(tasks=tasks), training


def described(run_arguments, **changes):
    """The recipe of a run, with some arguments changed."""
    changed = copy.deepcopy(run_arguments)
    for name, value in changes.items():
        owner, *_ = [one for one in changed if name in {field.name for field in dataclasses.fields(one)}]
        setattr(owner, name, value)
    return describe_run(changed, 1, {"rows_per_step": 32})


def written(folder, recipe):
    """A checkpoint that holds a recipe."""
    folder = folder / "checkpoint-3"
    with marked_incomplete(folder, recipe):
        return folder


def test_a_recipe_is_json_and_tells_no_secret(run_arguments):
    recipe = described(run_arguments)
    assert json.loads(json.dumps(recipe)) == recipe
    assert "hf_secret" not in json.dumps(recipe)
    assert recipe["arguments"]["tasks"]["topic"]["dataset"] == "builtin:topic"


def test_the_same_recipe_passes_without_a_word(run_arguments, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    check_recipe(written(tmp_path, described(run_arguments)), described(run_arguments), allow_changes=False)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.5),
        ("num_train_epochs", 7.0),
        ("seed", 7),
        ("per_device_train_batch_size", 3),
        ("gradient_accumulation_steps", 2),
        ("bf16", True),
        ("head_learning_rate", 0.1),
        ("sampling_strategy", "uniform"),
        ("grouping", "none"),
        ("pooling", "cls"),
        ("head_dropout", 0.5),
        ("encoder", "another"),
        ("max_grad_norm", 9.0),
        ("lr_scheduler_type", "constant"),
    ],
)
def test_a_change_that_breaks_exactness_is_refused_with_both_values(run_arguments, tmp_path, name, value, caplog):
    before, now = described(run_arguments), described(run_arguments, **{name: value})
    checkpoint = written(tmp_path, before)
    old = before["arguments"][name]
    with pytest.raises(ValueError, match="--resume_changed_recipe") as error:
        check_recipe(checkpoint, now, allow_changes=False)
    assert f"\n- {name}: {old!r} -> {value!r}\n" in str(error.value)
    check_recipe(checkpoint, now, allow_changes=True)
    assert f"- {name}: {old!r} -> {value!r}" in caplog.text and "does not end where" in caplog.text


def test_tasks_processes_and_plan_are_part_of_the_recipe(run_arguments):
    tasks = copy.deepcopy(run_arguments[1].tasks)
    tasks["topic"].loss = {"weight": 2.0}
    tasks["extra"] = tasks.pop("ner")
    changed = described(run_arguments, tasks=tasks) | {"world_size": 2, "facts": {"rows_per_step": 64}}
    changes = recipe_changes(described(run_arguments), changed)
    assert changes["tasks.topic.loss.weight"] == (0.5, 2.0)
    assert changes["tasks.ner.dataset"] == ("builtin:entities", "(not set)")
    assert changes["tasks.extra.dataset"] == ("(not set)", "builtin:entities")
    assert changes["world_size"] == (1, 2)
    assert changes["facts.rows_per_step"] == (32, 64)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_dir", "elsewhere"),
        ("resume_from_checkpoint", "last"),
        ("logging_steps", 1),
        ("report_to", ["tensorboard"]),
        ("save_steps", 3),
        ("save_total_limit", 9),
        ("per_device_eval_batch_size", 3),
        ("hub_model_id", "me/model"),
        ("sample_texts", ["A text."]),
        ("notes", ["a note"]),
    ],
)
def test_where_a_run_writes_and_what_it_prints_may_change_unsaid(run_arguments, tmp_path, name, value, caplog):
    caplog.set_level(logging.INFO)
    now = described(run_arguments, **{name: value})
    check_recipe(written(tmp_path, described(run_arguments)), now, allow_changes=False)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "value"), [("eval_strategy", "no"), ("dataloader_num_workers", 3), ("data_root", "x")]
)
def test_what_changes_no_step_is_noted_but_not_refused(run_arguments, tmp_path, name, value, caplog):
    caplog.set_level(logging.INFO)
    now = described(run_arguments, **{name: value})
    check_recipe(written(tmp_path, described(run_arguments)), now, allow_changes=False)
    assert f"{name}: " in caplog.text and f"-> {value!r}" in caplog.text


def test_another_version_is_noted(run_arguments, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    before = described(run_arguments)
    before["machine"]["torch"] = "1.0"
    check_recipe(written(tmp_path, before), described(run_arguments), allow_changes=False)
    assert "machine.torch: '1.0' -> " in caplog.text


def test_a_checkpoint_without_a_recipe_is_gone_on_from_with_a_warning(run_arguments, tmp_path, caplog):
    check_recipe(written(tmp_path, None), described(run_arguments), allow_changes=False)
    assert f"holds no {RECIPE_NAME}" in caplog.text


def test_the_lists_of_harmless_arguments_name_arguments_that_exist():
    """A name that transformers drops, or a typing error, would make an argument count as harmful unseen."""
    owners = (ModelArguments, DataArguments, MultiTaskTrainingArguments, TrainingArguments)
    known = {field.name for owner in owners for field in dataclasses.fields(owner)}
    assert (UNRECORDED | NOTED) - known == {"machine"}
    assert UNRECORDED.isdisjoint(NOTED)
    for prefix in UNRECORDED_PREFIXES:
        assert any(name.startswith(prefix) for name in known)
