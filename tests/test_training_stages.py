"""Gradual unfreezing: stages that freeze the same are one run, what thaws begins to move, a stage can be resumed."""

import json

import pytest
import torch
from test_trainer_multitask import (
    FOUR_TASKS,
    StopAt,
    arguments,
    data_of,
    evaluation_logs,
    largest_difference,
    new_model,
    new_trainer,
    training_logs,
)
from tiny_models import TINY_TASKS
from transformers import TrainerCallback

from arguments_multitask import MultiTaskTrainingArguments
from task_sampler import TaskSamplingDataset
from training_stages import TrainingStages, describe_training, train_in_stages

STEPS_PER_EPOCH = 4
GRADUAL = [{"epochs": 1, "freeze": ["encoder"]}, {"epochs": 2, "freeze": ["layers:1"]}, {"epochs": 1, "freeze": []}]


class Snapshots(TrainerCallback):
    """Every step's weights, and what a step's optimizer holds."""

    def __init__(self):
        self.weights, self.groups, self.begun = [], [], 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.begun += 1
        if not self.weights:
            self.keep(model)

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.keep(model)
        self.groups.append([len(group["params"]) for group in optimizer.param_groups])

    def keep(self, model):
        self.weights.append({name: value.detach().clone() for name, value in model.state_dict().items()})

    def moved(self, step):
        """The names of what a step, counted from 1, has changed."""
        before, after = self.weights[step - 1], self.weights[step]
        return {name for name in before if not torch.equal(before[name], after[name])}


def run(folder, stages=GRADUAL, callbacks=(), checkpoint=None, seed=0, validation=False, **options):
    """A trainer after stages of epochs of 4 steps of 8 rows, with dropout, two micro-batches a step."""
    epochs = sum(stage["epochs"] for stage in stages)
    sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 8), rows_per_step=8, num_epochs=epochs)
    batches = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    given = {"stages": stages, "num_train_epochs": epochs, "warmup_steps": 2, "weight_decay": 0.1}
    args = arguments(folder, MultiTaskTrainingArguments, **(given | batches | options))
    model = new_model(FOUR_TASKS, dropout=0.1, seed=seed, projection_dim=16)
    held_out = data_of(FOUR_TASKS, 10, seed=1) if validation else None
    trainer = new_trainer(args, model, sampling, validation=held_out, callbacks=callbacks)
    trainer.output = train_in_stages(trainer, TrainingStages(model, args.stages, sampling.steps_per_epoch), checkpoint)
    return trainer


def logged(trainer, *keys):
    """Some figures of every line of the training log."""
    return [[entry.get(key) for key in keys] for entry in training_logs(trainer)]


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"head_learning_rate": 5e-3, "layer_decay": 0.5}])
def test_stages_that_freeze_the_same_are_one_run(tmp_path, options):
    """Bit-equal: weights, moments, order of rows, masks, rates and logs go on over the border."""
    options = {"logging_steps": 1, **options}
    staged = run(tmp_path / "two", [{"epochs": 1, "freeze": ["embeddings"]}] * 3, **options)
    whole = run(tmp_path / "one", [{"epochs": 3, "freeze": ["embeddings"]}], **options)
    assert largest_difference(staged.model, whole.model) == 0.0
    keys = ("loss", "loss_topic", "share_topic", "learning_rate", "epoch", "grad_norm")
    assert logged(staged, *keys) == logged(whole, *keys)
    assert staged.state.global_step == whole.state.global_step == 12


def test_each_stage_moves_what_it_does_not_freeze_from_its_first_step_on(tmp_path):
    seen = Snapshots()
    trainer = run(tmp_path, callbacks=[seen])
    assert seen.begun == 3, "a train() call each"
    everything = {name for name, _ in trainer.model.named_parameters()}
    lower = ("encoder.embeddings.", "encoder.encoder.layer.0.")
    expected = {
        0: {name for name in everything if not name.startswith("encoder.")},
        1: {name for name in everything if not name.startswith(lower)},
        2: everything,
    }
    last = 4 * STEPS_PER_EPOCH
    for step in range(2, last):  # warm-up begins at a rate of zero
        stage = 0 if step <= 4 else 1 if step <= 12 else 2
        assert seen.moved(step) == expected[stage], step
        assert sum(seen.groups[step - 1]) == len(expected[stage]), "the optimizer holds no more than is trained"


def test_the_rate_follows_one_schedule_over_all_stages(tmp_path):
    staged = run(tmp_path / "staged", logging_steps=1)
    whole = run(tmp_path / "whole", [{"epochs": 4, "freeze": []}], logging_steps=1)
    assert logged(staged, "learning_rate") == logged(whole, "learning_rate")
    rates = [entry["learning_rate"] for entry in training_logs(staged)]
    assert len(rates) == 16 and len(set(rates)) > 14 and rates[3] > rates[4] > rates[12] > 0


def test_the_moments_of_what_trained_before_are_kept_and_what_thaws_begins_without(tmp_path):
    class Moments(TrainerCallback):
        steps: list = []

        def on_step_end(self, args, state, control, optimizer=None, model=None, **kwargs):
            names = {id(parameter): name for name, parameter in model.named_parameters()}
            self.steps.append({names[id(p)]: int(s["step"]) for p, s in optimizer.state.items()})

    run(tmp_path, callbacks=[Moments()])
    head, top, word = (
        "heads.topic.out.weight",
        "encoder.encoder.layer.1.output.dense.weight",
        "encoder.embeddings.word_embeddings.weight",
    )
    assert [steps.get(head) for steps in Moments.steps] == list(range(1, 17))
    assert [steps.get(top) for steps in Moments.steps] == [None] * 4 + list(range(1, 13))
    assert [steps.get(word) for steps in Moments.steps] == [None] * 12 + list(range(1, 5))


class CutOff(TrainerCallback):
    """Breaks the run off as soon as a step's checkpoint is written."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise InterruptedError


@pytest.mark.parametrize("step", [3, 4, 7, 12, 14])
def test_a_run_resumed_in_any_stage_or_at_a_border_is_the_unbroken_run(tmp_path, step):
    """By another trainer of another model, under bfloat16; 4 and 12 are the ends of stages."""
    options = {"bf16": True, "save_strategy": "steps", "save_steps": step if step % 4 else 5, "logging_steps": 1}
    unbroken = run(tmp_path / "unbroken", **options)
    with pytest.raises(InterruptedError):
        run(tmp_path / "broken", callbacks=[CutOff(step)], **options)
    resumed = run(tmp_path / "broken", checkpoint=str(tmp_path / "broken" / f"checkpoint-{step}"), seed=1, **options)
    assert resumed.state.global_step == unbroken.state.global_step == 16
    assert largest_difference(unbroken.model, resumed.model) == 0.0
    assert logged(resumed, "loss", "learning_rate") == logged(unbroken, "loss", "learning_rate")


def test_parts_may_freeze_again(tmp_path):
    seen = Snapshots()
    run(tmp_path, [{"epochs": 1, "freeze": ["heads"]}, {"epochs": 1, "freeze": ["encoder"]}], callbacks=[seen])
    assert not any(name.startswith("heads.") for name in seen.moved(3))
    assert any(name.startswith("encoder.") for name in seen.moved(3))
    assert not any(name.startswith("encoder.") for name in seen.moved(6))
    assert any(name.startswith("heads.") for name in seen.moved(6))


def test_what_was_frozen_before_the_stages_stays_frozen_in_all_of_them():
    model = new_model(FOUR_TASKS)
    model.freeze("topic")
    stages = TrainingStages(model, GRADUAL, STEPS_PER_EPOCH)
    for index in (0, 1, 2, 0):
        stages.enter(index)
        assert not model.heads["topic"].out.weight.requires_grad and model.heads["ner"].out.weight.requires_grad
        assert model.encoder.encoder.layer[1].output.dense.weight.requires_grad == (index > 0)
        assert model.encoder.embeddings.word_embeddings.weight.requires_grad == (index > 1)


@pytest.mark.parametrize(("step", "index"), [(0, 0), (3, 0), (4, 1), (11, 1), (12, 2), (15, 2), (16, 2)])
def test_a_step_is_followed_by_its_stage(step, index):
    assert TrainingStages(new_model(FOUR_TASKS), GRADUAL, STEPS_PER_EPOCH).at(step) == index


@pytest.mark.parametrize("strategy", ["no", "steps", "epoch"])
def test_a_stage_ends_with_one_checkpoint_whatever_the_strategy_of_saving(tmp_path, strategy):
    """Written once, with the evaluation of the epoch in it, so that a kill cannot leave half of it."""

    class Saves(TrainerCallback):
        steps: list = []

        def on_save(self, args, state, control, **kwargs):
            self.steps.append(state.global_step)

    Saves.steps.clear()
    trainer = run(
        tmp_path, GRADUAL[1:], [Saves()], save_strategy=strategy, save_steps=4, eval_strategy="epoch", validation=True
    )
    assert Saves.steps == {"no": [8], "steps": [4, 8, 12], "epoch": [4, 8, 12]}[strategy]
    state = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "eval_mean_score" in entry] == [4, 8]
    assert [entry["step"] for entry in evaluation_logs(trainer)] == [4, 8, 12]


@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_checkpoint_of_all_stages_is_loaded_at_the_end_alone(tmp_path, limit):
    """The highest loss counts as the best, so that it is the first; the second stage begins at the end of the first."""
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": limit, "validation": True}
    options |= {"metric_for_best_model": "eval_loss", "greater_is_better": True, "learning_rate": 0.3}
    stages = [{"epochs": 2, "freeze": ["encoder"]}, {"epochs": 2, "freeze": []}]
    last = run(tmp_path / "last", stages, load_best_model_at_end=False, **options)
    best = run(tmp_path / "best", stages, load_best_model_at_end=True, **options)
    losses, same = ([entry["eval_loss"] for entry in evaluation_logs(each)] for each in (best, last))
    assert losses == same, "each stage begins where the one before ended"
    assert len(losses) == 4 and losses.index(max(losses)) == 0, "the premise"
    assert best.state.best_metric == max(losses)
    assert best.evaluate()["eval_loss"] == pytest.approx(max(losses))
    assert last.evaluate()["eval_loss"] == pytest.approx(losses[-1])


def test_the_output_counts_all_stages(tmp_path):
    trainer = run(tmp_path, logging_steps=1)
    losses = [entry["loss"] for entry in training_logs(trainer)]
    assert trainer.output.global_step == 16
    assert trainer.output.training_loss == trainer.output.metrics["train_loss"] == pytest.approx(sum(losses) / 16)
    runtime, steps = (trainer.output.metrics[name] for name in ("train_runtime", "train_steps_per_second"))
    assert runtime * steps == pytest.approx(16, rel=0.02)


def test_a_run_that_a_callback_ends_goes_on_to_no_other_stage(tmp_path):
    seen = Snapshots()
    trainer = run(tmp_path, callbacks=[seen, StopAt(2)])
    assert (seen.begun, trainer.state.global_step) == (1, 2)


def test_the_plan_has_a_table_for_every_stage_and_names_what_rests():
    tasks = {name: TINY_TASKS[name] for name in ("similarity", "topic")}
    model = new_model(tasks)
    args = MultiTaskTrainingArguments(output_dir="unused", stages=GRADUAL)
    lines = describe_training(model, args, TrainingStages(model, args.stages, 4), tasks)
    assert lines[::2] == [
        "Stage 1 of 3, to step 4: frozen encoder; nothing of similarity is trained",
        "Stage 2 of 3, to step 12: frozen layers:1",
        "Stage 3 of 3, to step 16: frozen nothing",
    ]
    assert "heads: matrices" in lines[1] and "layer 2, heads: matrices" in lines[3]
    assert "embeddings, layers 1-2, heads: matrices" in lines[5] and "frozen" not in lines[5]
    assert describe_training(model, args, None, tasks) == lines[5:]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"epochs": 1, "freeze": []}, {"epochs": 1, "freeze": ["encodr"]}], "Stage 2 of 2: .*no part 'encodr'"),
        ([{"epochs": 1, "freeze": ["layers:9"]}], "Stage 1 of 1: .*K is 1 to 2"),
        ([{"epochs": 1, "freeze": ["encoder", "heads"]}], "Stage 1 of 1 trains nothing"),
        ([{"epochs": 1, "freeze": ["encoder"]}] * 2, "Task 'similarity' is trained in no stage"),
    ],
)
def test_stages_that_cannot_be_trained_are_refused_before_training(stages, message):
    tasks = {name: TINY_TASKS[name] for name in ("similarity", "topic")}
    model = new_model(tasks)
    args = MultiTaskTrainingArguments(output_dir="unused", stages=stages)
    with pytest.raises(ValueError, match=message):
        describe_training(model, args, TrainingStages(model, args.stages, 4), tasks)
