"""`gradient_cosines`: what is measured, and that measuring changes nothing: no weight, no log, no random number."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from test_ranks import on_ranks
from test_trainer_multitask import FOUR_TASKS, arguments, data_of, four_tasks_trainer, new_model, new_trainer
from tiny_models import TINY_TASKS
from torch import nn

import train_hf as command
from gradient_cosines import GradientCosines, as_lists, probe_features, read_log, write_cosines
from task_plots import has_matplotlib
from task_sampler import TaskSamplingDataset
from training_stages import TrainingStages, train_in_stages

RECIPE = """
encoder: {encoder}
head_dropout: 0.1
tasks:
  topic: {{dataset: "builtin:topic", max_rows: {{train: 40, validation: 8, test: 8}}}}
  sentiment: {{dataset: "builtin:sentiment", max_rows: {{train: 40, validation: 8, test: 8}}}}
num_train_epochs: 4
per_device_train_batch_size: 8
per_device_eval_batch_size: 8
logging_steps: 3
bf16: false
report_to: none
"""


def measured(trainer: Any, every: float = 2) -> GradientCosines:
    """The callback, added to a trainer."""
    callback = GradientCosines(trainer, data_of(FOUR_TASKS, 12), every)
    trainer.add_callback(callback)
    return callback


def logs_of(trainer: Any) -> list[dict[str, Any]]:
    """The log without measurements and the clock."""
    kept = [entry for entry in trainer.state.log_history if "gradient_cosines_seconds" not in entry]
    clock = ("runtime", "per_second")
    return [{key: value for key, value in entry.items() if not key.endswith(clock)} for entry in kept]


def by_hand(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """The gradient over the encoder as `backward` leaves it, in double precision."""
    model.zero_grad()
    model(**batch).loss.backward()
    found = [one.grad if one.grad is not None else torch.zeros_like(one) for one in model.encoder.parameters()]
    model.zero_grad()
    return torch.cat([gradient.flatten() for gradient in found]).double()


def test_measuring_changes_no_weight_no_log_and_no_random_number(tmp_path: Path) -> None:
    """Dropout on, logs and measurements at the same steps and at others."""
    plain, watched = (
        four_tasks_trainer(tmp_path / "a", logging_steps=3),
        four_tasks_trainer(tmp_path / "b", logging_steps=3),
    )
    measured(watched)
    states = []
    for trainer in (plain, watched):
        torch.manual_seed(5)
        trainer.train()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    for (name, one), other in zip(plain.model.state_dict().items(), watched.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert len(logs_of(plain)) > 1 and logs_of(plain) == logs_of(watched)
    assert [one["step"] for one in read_log(watched.state.log_history, FOUR_TASKS)["measurements"]] == [2, 4, 6]
    assert watched.model.training is plain.model.training


def test_the_matrix_is_that_of_gradients_taken_one_by_one(tmp_path: Path) -> None:
    """Against `backward` on each batch, with dropout in the model and a task with R-Drop among them."""
    tasks = {**FOUR_TASKS, "topic": {**FOUR_TASKS["topic"], "loss": {"r_drop": 1.0}}}
    sampling = TaskSamplingDataset(data_of(tasks, 12), rows_per_step=8)
    trainer = new_trainer(arguments(tmp_path), new_model(tasks, dropout=0.1), sampling)
    callback = GradientCosines(trainer, data_of(tasks, 12), 1)
    found = callback.measure(3)
    model = trainer.model.eval()
    batches = [probe_features(name, rows, (trainer.args.seed, 3)) for name, rows in callback.datasets.items()]
    halves = [torch.stack([by_hand(model, trainer.data_collator(one[half])) for one in batches]) for half in (0, 1)]
    first, second = (nn.functional.normalize(rows, dim=1) for rows in halves)
    expected = (first @ second.T + second @ first.T) / 2
    assert list(callback.datasets) == sorted(tasks)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(found, found.T)
    assert np.abs(found).max() <= 1 + 1e-6 and np.ptp(found) > 0.01, "premise: the tasks differ"


def test_equal_tasks_agree_as_a_task_does_with_itself_and_opposed_ones_disagree(tmp_path: Path) -> None:
    """Two numbers of the same rows, one the other's negative, under heads that say 0: gradients point apart."""
    spec = TINY_TASKS["rating"]
    tasks = {"down": spec, "up": spec}
    (rows,) = data_of({"up": spec}, 40).values()
    aligned = [{**row, "labels": {"up": 1.0, "down": -1.0}} for row in rows]
    sampling = TaskSamplingDataset({"down+up": aligned}, rows_per_step=8)
    model = new_model(tasks)
    model.heads["down"].load_state_dict(model.heads["up"].state_dict())
    with torch.no_grad():
        for head in model.heads.values():
            for parameter in head.parameters():
                parameter.mul_(1e-3)
    trainer = new_trainer(arguments(tmp_path), model, sampling)
    found = GradientCosines(trainer, {"down+up": aligned}, 1).measure(1)
    assert found[0, 1] < -0.9 and found[0, 0] > 0.9 and found[1, 1] > 0.9


def test_a_frozen_part_of_the_encoder_is_left_out(tmp_path: Path) -> None:
    """What no task can move says nothing; with all of it frozen there is nothing to measure."""
    trainer = four_tasks_trainer(tmp_path)
    callback = measured(trainer)
    before = callback.measure(1)
    assert np.array_equal(before, callback.measure(1)) and not np.array_equal(before, callback.measure(2))
    trainer.model.freeze("embeddings")
    assert not np.allclose(before, callback.measure(1), atol=1e-3)
    trainer.model.freeze("encoder")
    with pytest.raises(ValueError, match="several tasks want of an encoder that learns; here 4 tasks .* 0 trainable"):
        measured(trainer)


def test_a_stage_that_freezes_the_encoder_is_not_measured(tmp_path: Path) -> None:
    trainer = four_tasks_trainer(tmp_path)
    measured(trainer)
    stages = [{"epochs": 1, "freeze": ["encoder"]}, {"epochs": 1, "freeze": []}]
    steps = trainer.train_dataset.steps_per_epoch
    trainer.args.num_train_epochs = 2
    train_in_stages(trainer, TrainingStages(trainer.model, stages, steps))
    found = [one["step"] for one in read_log(trainer.state.log_history, FOUR_TASKS)["measurements"]]
    assert found == [step for step in range(steps + 1, 2 * steps + 1) if step % 2 == 0] and found


def test_one_task_and_cut_gradients_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = four_tasks_trainer(tmp_path)
    with pytest.raises(ValueError, match="here 1 tasks are trained"):
        GradientCosines(trainer, data_of({"topic": FOUR_TASKS["topic"]}, 12), 1)
    monkeypatch.setattr(trainer.accelerator.state, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match="FSDP and DeepSpeed cut them"):
        measured(trainer)


def test_the_two_batches_of_a_task_share_no_row_and_carry_its_label_alone() -> None:
    """Also in a group of aligned tasks, where some rows lack the label; seed and step decide the rows."""
    labels = [{"a": 1, "b": None if row % 2 else row} for row in range(200)]
    group = [{"input_ids": [2, 3], "row": row, "labels": one} for row, one in enumerate(labels)]
    first, second = probe_features("b", group, (1, 5))
    rows = [{feature["row"] for feature in half} for half in (first, second)]
    assert len(first) == len(second) == 32 and not rows[0] & rows[1]
    assert all(feature["labels"] == {"b": feature["row"]} for feature in [*first, *second])
    assert probe_features("b", group, (1, 5)) == (first, second)
    assert (first, second) not in [probe_features("b", group, key) for key in ((1, 6), (2, 5))]
    assert len(probe_features("b", group[:7], (1, 5))[0]) == 2, "of 4 labelled rows"
    with pytest.raises(ValueError, match="every task; 'other' has none"):
        probe_features("other", group, (1, 5))


def test_the_file_holds_the_mean_over_the_measurements(tmp_path: Path) -> None:
    """NaN is null; the picture lies beside it; without a measurement there is no file."""
    entry = {"gradient_cosine/a/a": 0.5, "gradient_cosine/a/b": -0.25, "gradient_cosine/b/b": math.nan}
    log = [
        {"step": 1, "loss": 3.0},
        {**entry, "gradient_cosines_seconds": 1.0, "step": 2},
        {**entry, "gradient_cosine/a/b": -0.75, "gradient_cosines_seconds": 2.0, "step": 4},
    ]
    assert write_cosines(log[:1], ["a", "b"], tmp_path) == {} and list(tmp_path.iterdir()) == []
    found = write_cosines(log, ["a", "b", "untrained"], tmp_path)
    assert found["tasks"] == ["a", "b"] and found["mean"] == [[0.5, -0.5], [-0.5, None]] and found["seconds"] == 3.0
    assert [(one["step"], one["cosines"][0][1]) for one in found["measurements"]] == [(2, -0.25), (4, -0.75)]
    assert json.loads((tmp_path / "gradient_cosines.json").read_text()) == found
    assert (tmp_path / "gradient_cosines.png").is_file() == has_matplotlib()


def test_without_matplotlib_the_numbers_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("task_plots.has_matplotlib", lambda: False)
    log = [{"gradient_cosine/a/a": 1.0, "gradient_cosines_seconds": 1.0, "step": 2}]
    write_cosines(log, ["a"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["gradient_cosines.json"]


@pytest.mark.slow
def test_a_resumed_run_has_measured_what_the_unbroken_one_has(recipe: Path, tmp_path: Path) -> None:
    """The measurements are in the log, so in every checkpoint; a share of the steps is a number of steps."""
    options = [str(recipe), "--gradient_cosines", "0.1", "--load_best_model_at_end", "false", "--save_total_limit", "9"]
    command.main([*options, "--output_dir", str(tmp_path / "unbroken")])
    middle = tmp_path / "unbroken" / "checkpoint-20"
    command.main([*options, "--output_dir", str(tmp_path / "resumed"), "--resume_from_checkpoint", str(middle)])
    unbroken, resumed = (
        json.loads((tmp_path / name / "gradient_cosines.json").read_text()) for name in ("unbroken", "resumed")
    )
    assert [one["step"] for one in unbroken["measurements"]] == list(range(4, 41, 4))
    assert resumed["measurements"] == unbroken["measurements"] and resumed["mean"] == unbroken["mean"]


@pytest.mark.slow
def test_two_ranks_measure_what_one_process_measures(recipe: Path, tmp_path: Path) -> None:
    """The ranks' weights stay equal, and equal to those of two ranks that measure nothing."""
    options = ["--gradient_cosines", "4", "--optim", "sgd", "--head_dropout", "0", "--learning_rate", "0.05"]
    options += ["--load_best_model_at_end", "false"]
    command.main([str(recipe), *options, "--output_dir", str(tmp_path / "one")])
    halved = [*options, "--per_device_train_batch_size", "4"]
    reports = on_ranks("command", tmp_path / "two", recipe, *halved)
    unwatched = on_ranks("command", tmp_path / "plain", recipe, *halved[2:])
    assert {report["sha256"] for report in [*reports, *unwatched]} == {reports[0]["sha256"]}
    one, two = (json.loads((tmp_path / name / "gradient_cosines.json").read_text()) for name in ("one", "two"))
    assert len(one["measurements"]) == 10
    for here, there in zip(one["measurements"], two["measurements"], strict=True):
        assert here["step"] == there["step"]
        np.testing.assert_allclose(here["cosines"], there["cosines"], atol=1e-4)


def test_six_digits_are_written() -> None:
    assert as_lists(np.array([[1 / 3, np.nan]])) == [[0.333333, None]]
