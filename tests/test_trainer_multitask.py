"""The stock Trainer works, each task is in the log; resuming, accumulation and checkpointing change nothing."""

import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from tiny_models import HIDDEN_SIZE, TINY_TASKS, WORDS, tiny_encoder, tiny_tokenizer
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.testing_utils import CaptureLogger

from arguments_multitask import MultiTaskTrainingArguments, TaskArguments
from configuration_multitask import MultiTaskConfig
from data_collator import MultiTaskDataCollator
from modeling_multitask import MultiTaskModel
from task_data import load_tasks
from task_features import build_features
from task_metrics import MultiTaskMetrics, preprocess_logits_for_metrics, primary_metric
from task_sampler import TaskSamplingDataset
from trainer_multitask import MultiTaskTrainer, SamplingGuard, TaskEarlyStopping

WEIGHTS = {"ner": 0.5, "rating": 0.1, "similarity": 2.0, "topic": 1.0}
"""Loss weights of the tasks that most tests train: one of each way to be labelled, and each weight another."""

FOUR_TASKS = {name: {**TINY_TASKS[name], "loss": {"weight": weight}} for name, weight in WEIGHTS.items()}


def label_of(spec, tokens, generator):
    """A label that means nothing, of the form that a task asks for."""
    classes = len(spec.get("labels", ()))
    if spec["kind"] == "token-classification":
        return [-100, *generator.integers(0, classes, tokens - 2).tolist(), -100]
    if spec["kind"] == "feature-extraction":
        return generator.normal(size=HIDDEN_SIZE).tolist()
    if spec["kind"] == "sentence-similarity":
        return float(generator.uniform(-0.2, 0.9))
    if spec.get("problem_type") == "regression":
        return float(generator.normal())
    if spec.get("problem_type") == "multi_label_classification":
        return generator.integers(0, 2, classes).astype(float).tolist()
    return int(generator.integers(0, classes))


def rows(name, spec, size, seed=0):
    """Features of one task: random tokens, 5 to 12 of them, with random labels."""
    generator = np.random.default_rng([seed, *name.encode()])

    def text(tokens):
        return [2, *generator.integers(5, 180, tokens - 2).tolist(), 3]

    features = []
    for row in range(size):
        tokens = int(generator.integers(5, 13))
        feature = {"input_ids": text(tokens), "labels": {name: label_of(spec, tokens, generator)}, "row": row}
        if spec["kind"] == "sentence-similarity":
            feature["pair_input_ids"] = text(int(generator.integers(5, 13)))
        features.append(feature)
    return features


def data_of(tasks, size, seed=0):
    """Features of every task."""
    return {name: rows(name, spec, size, seed) for name, spec in tasks.items()}


def new_model(tasks, dropout=0.0, seed=0, **config):
    """A tiny model with heads for the tasks, the same weights for the same `seed`."""
    encoder = tiny_encoder("bert", seed=seed, dropout=dropout)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = MultiTaskConfig(encoder.config, tasks, head_dropout=dropout, **config)
        return MultiTaskModel(config, encoder=encoder)


def arguments(folder, arguments_class=TrainingArguments, **options):
    """Arguments for a short run on the CPU: the plan's order, nothing saved, no reports."""
    return arguments_class(
        **{
            "output_dir": str(folder),
            "train_sampling_strategy": "sequential",
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "disable_tqdm": True,
            "label_names": ["labels"],
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "logging_steps": 1,
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "metric_for_best_model": None,
        }
        | options
    )


def new_trainer(args, model, sampling, trainer_class=MultiTaskTrainer, validation=None, callbacks=()):
    """A trainer that is guarded and has metrics."""
    trainer = trainer_class(
        model=model,
        args=args,
        data_collator=MultiTaskDataCollator(tiny_tokenizer("bert"), model.config.tasks),
        train_dataset=sampling,
        eval_dataset=validation,
        compute_metrics=MultiTaskMetrics(model.config.tasks),
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        callbacks=[SamplingGuard(sampling), *callbacks],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def four_tasks_trainer(folder, size=12, callbacks=(), **options):
    """A trainer of `FOUR_TASKS` with validation by task, and 6 steps of 8 rows an epoch."""
    args = arguments(folder, **options)
    sampling = TaskSamplingDataset(
        data_of(FOUR_TASKS, size), rows_per_step=8, num_epochs=math.ceil(args.num_train_epochs)
    )
    validation = data_of(FOUR_TASKS, 10, seed=1)
    return new_trainer(args, new_model(FOUR_TASKS, dropout=0.1), sampling, validation=validation, callbacks=callbacks)


def training_logs(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def evaluation_logs(trainer, key="eval_mean_score"):
    return [entry for entry in trainer.state.log_history if key in entry]


def largest_difference(first, second):
    """The largest difference between two models' weights."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


# The stock Trainer and ours


@pytest.mark.parametrize("trainer_class", [transformers.Trainer, MultiTaskTrainer])
def test_four_nonsense_examples_of_every_task_are_learned_by_heart(tmp_path, trainer_class):
    """Every kind of task, in mixed batches, with the untouched Trainer as well as ours, in 20 s of computing."""
    data = data_of(TINY_TASKS, 4)
    start = time.process_time()
    sampling = TaskSamplingDataset(data, "uniform", rows_per_step=14, num_epochs=60)
    options = {"num_train_epochs": 60, "learning_rate": 5e-3, "logging_steps": 50}
    args = arguments(tmp_path, per_device_train_batch_size=14, **options)
    trainer = new_trainer(args, new_model(TINY_TASKS), sampling, trainer_class, validation=data)
    trainer.train()
    metrics = trainer.evaluate()
    for name, spec in trainer.model.config.tasks.items():
        assert metrics[f"eval_{name}_{primary_metric(spec)}"] > 0.95, name
        assert metrics[f"eval_{name}_loss"] < 0.05, name
    assert ("eval_mean_score" in metrics) == (trainer_class is MultiTaskTrainer)
    assert time.process_time() - start < 20


def test_the_stock_trainer_and_ours_make_the_same_weights(tmp_path):
    """Without dropout: the stock data loader takes a number from the generator of its masks, ours does not."""
    models = []
    for trainer_class in (transformers.Trainer, MultiTaskTrainer):
        model = new_model(FOUR_TASKS, dropout=0.0)
        sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 10), rows_per_step=8, num_epochs=2)
        new_trainer(arguments(tmp_path, num_train_epochs=2), model, sampling, trainer_class).train()
        models.append(model)
    assert largest_difference(*models) == 0.0


def test_training_moves_every_trainable_parameter_and_no_frozen_one(tmp_path):
    model = new_model(FOUR_TASKS, projection_dim=16)
    for parameter in model.encoder.embeddings.parameters():
        parameter.requires_grad = False
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 8), rows_per_step=8)
    new_trainer(arguments(tmp_path), model, sampling).train()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("workers", [0, 2])
def test_training_reads_the_plans_rows_in_the_plans_order_in_every_epoch(tmp_path, workers):
    class Recorder(MultiTaskTrainer):
        read: list = []

        def training_step(self, model, inputs, num_items_in_batch=None):
            Recorder.read.append(inputs["input_ids"].clone())
            return super().training_step(model, inputs, num_items_in_batch)

    options = {"dataloader_num_workers": workers, "dataloader_persistent_workers": bool(workers)}
    sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 8), rows_per_step=8, num_epochs=3)
    args = arguments(tmp_path, num_train_epochs=3, **options)
    new_trainer(args, new_model(FOUR_TASKS), sampling, Recorder).train()
    plan = TaskSamplingDataset(data_of(FOUR_TASKS, 8), rows_per_step=8, num_epochs=3)
    collator = MultiTaskDataCollator(tiny_tokenizer("bert"), FOUR_TASKS)
    expected = []
    for epoch in range(3):
        plan.set_epoch(epoch)
        expected += [collator([plan[place] for place in range(start, start + 8)]) for start in range(0, len(plan), 8)]
    assert len(Recorder.read) == len(expected)
    assert all(torch.equal(a, b["input_ids"]) for a, b in zip(Recorder.read, expected, strict=True))


# Logs


@pytest.mark.parametrize("logging_steps", [1, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_logged_loss_is_the_weighted_sum_of_the_tasks_logged_losses(tmp_path, logging_steps, accumulation):
    batches = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    trainer = four_tasks_trainer(tmp_path, logging_steps=logging_steps, **batches)
    trainer.train()
    logs = training_logs(trainer)
    assert len(logs) == 6 // logging_steps
    for entry in logs:
        shares = {name: entry[f"share_{name}"] for name in FOUR_TASKS if f"share_{name}" in entry}
        assert sum(shares.values()) == pytest.approx(1.0)
        weighted = sum(WEIGHTS[name] * share * entry[f"loss_{name}"] for name, share in shares.items())
        assert entry["loss"] == pytest.approx(weighted, rel=1e-5)


def test_logged_shares_are_those_of_the_plan_since_the_last_log_without_evaluation(tmp_path):
    trainer = four_tasks_trainer(tmp_path, logging_steps=2, eval_strategy="steps", eval_steps=3)
    trainer.train()
    order = trainer.train_dataset.order(0)[:, 0].reshape(-1, 16)
    for entry, places in zip(training_logs(trainer), order, strict=True):
        for index, name in enumerate(trainer.train_dataset.names):
            assert entry.get(f"share_{name}", 0.0) == pytest.approx((places == index).mean())


def test_a_tasks_logged_loss_is_its_models_loss_on_the_same_rows(tmp_path):
    model = new_model(FOUR_TASKS)
    sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 4), "uniform", rows_per_step=16)
    trainer = new_trainer(arguments(tmp_path, per_device_train_batch_size=16), model, sampling)
    with torch.no_grad():
        before = {
            name: float(model(**trainer.data_collator(rows(name, spec, 4))).loss) / WEIGHTS[name]
            for name, spec in FOUR_TASKS.items()
        }
    trainer.train()
    (entry,) = training_logs(trainer)
    assert {name: entry[f"loss_{name}"] for name in FOUR_TASKS} == pytest.approx(before, rel=1e-5)


def test_evaluation_adds_the_means_over_tasks(tmp_path):
    trainer = four_tasks_trainer(tmp_path, eval_strategy="epoch")
    trainer.train()
    (means,) = evaluation_logs(trainer)
    by_task = {k: v for entry in trainer.state.log_history for k, v in entry.items() if k.startswith("eval_")}
    primary = {name: f"eval_{name}_{primary_metric(spec)}" for name, spec in trainer.model.config.tasks.items()}
    assert means["eval_loss"] == pytest.approx(np.mean([by_task[f"eval_{name}_loss"] for name in FOUR_TASKS]))
    assert means["eval_mean_score"] == pytest.approx(np.mean([by_task[key] for key in primary.values()]))
    metrics = trainer.evaluate(data_of(FOUR_TASKS, 10, seed=1), metric_key_prefix="test")
    assert metrics["test_mean_score"] == pytest.approx(means["eval_mean_score"])
    assert metrics["test_loss"] == pytest.approx(means["eval_loss"])
    assert "eval_mean_score" not in metrics


def test_evaluation_of_some_tasks_is_the_mean_of_these(tmp_path):
    trainer = four_tasks_trainer(tmp_path)
    metrics = trainer.evaluate({"topic": rows("topic", FOUR_TASKS["topic"], 10, seed=1)})
    assert metrics["eval_mean_score"] == metrics["eval_topic_accuracy"]
    assert metrics["eval_loss"] == metrics["eval_topic_loss"]


def test_evaluation_of_a_plain_dataset_or_without_metrics_has_no_mean_score(tmp_path):
    trainer = four_tasks_trainer(tmp_path)
    plain = trainer.evaluate(rows("topic", FOUR_TASKS["topic"], 10, seed=1))
    assert "eval_accuracy" in plain
    assert "eval_mean_score" not in plain
    trainer.compute_metrics = None
    metrics = trainer.evaluate()
    assert "eval_loss" in metrics
    assert "eval_mean_score" not in metrics


LABELS = {"topic": ["Sports", "Technology", "Weather"], "ner": TINY_TASKS["ner"]["labels"]}


def labelled_folder(folder, labels):
    """A saved dataset of random classes and tags, always the same ones by name; their numbers follow `labels`."""
    generator = np.random.default_rng(3)
    words = [generator.choice(WORDS, 6).tolist() for _ in range(24)]
    columns = {
        "text": [" ".join(row) for row in words],
        "label": generator.choice(LABELS["topic"], 24).tolist(),
        "tokens": words,
        "tags": [generator.choice(LABELS["ner"], 6).tolist() for _ in words],
    }
    features = {"label": ClassLabel(names=labels["topic"]), "tags": List(ClassLabel(names=labels["ner"]))}
    rows = Dataset.from_dict(
        columns, features=Features({"text": Value("string"), "tokens": List(Value("string")), **features})
    )
    DatasetDict(validation=rows).save_to_disk(folder)
    return str(folder)


def test_labels_given_in_another_order_of_names_give_identical_metrics(tmp_path):
    model = new_model({name: TINY_TASKS[name] for name in LABELS})
    found = []
    for number, turn in enumerate((slice(None), slice(None, None, -1))):
        folder = labelled_folder(tmp_path / str(number), {name: names[turn] for name, names in LABELS.items()})
        tasks = {
            "topic": TaskArguments(folder, columns={"text": "text", "label": "label"}),
            "ner": TaskArguments(folder, columns={"tokens": "tokens", "label": "tags"}),
        }
        loaded = load_tasks(tasks, offline=True, known_labels=LABELS, splits=("validation",))
        features = build_features(loaded, tiny_tokenizer("bert"), 64, ("validation",))
        trainer = new_trainer(arguments(tmp_path), model, None, validation=features.validation)
        times = ("runtime", "_per_second", "_time")
        found.append({key: value for key, value in trainer.evaluate().items() if not key.endswith(times)})
    assert found[0] == found[1]
    assert 0 < found[0]["eval_topic_accuracy"] < 1 and 0 < found[0]["eval_ner_word_accuracy"] < 1
    assert found[0]["eval_ner_rows"] == 24


# The best model, and stopping early


@pytest.mark.parametrize("metric", ["eval_mean_score", "eval_loss", "eval_similarity_spearman"])
def test_the_best_model_by_any_metric_is_the_one_that_is_left(tmp_path, metric):
    trainer = four_tasks_trainer(
        tmp_path,
        arguments_class=MultiTaskTrainingArguments,
        num_train_epochs=4,
        learning_rate=0.01,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=metric,
    )
    trainer.train()
    values = [entry[metric] for entry in evaluation_logs(trainer, metric)]
    best = min(values) if metric == "eval_loss" else max(values)
    assert len(values) == 4
    assert best != values[-1]  # else the last model would do as well
    assert trainer.state.best_metric == best
    assert trainer.evaluate()[metric] == pytest.approx(best)


@pytest.mark.parametrize(
    ("metric", "patience"), [("eval_mean_score", 2), ("mean_score", 1), ("eval_loss", 1), ("eval_topic_accuracy", 1)]
)
def test_early_stopping_waits_for_its_patience_whatever_the_metric(tmp_path, metric, patience):
    """With a learning rate of 0 nothing improves: the first evaluation sets the mark, `patience` more miss it."""
    trainer = four_tasks_trainer(
        tmp_path,
        size=4,
        callbacks=[TaskEarlyStopping(patience)],
        num_train_epochs=6,
        learning_rate=0.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
    )
    trainer.train()
    assert len(evaluation_logs(trainer)) == 1 + patience
    assert trainer.state.epoch == 1 + patience


def test_early_stopping_ignores_reports_of_single_tasks_and_counts_its_own():
    args = SimpleNamespace(metric_for_best_model="eval_mean_score", greater_is_better=True)
    state, control = TrainerState(best_metric=0.5), TrainerControl()
    callback = TaskEarlyStopping(2)
    with CaptureLogger(transformers.trainer_callback.logger) as log:
        for score, counted in [(0.4, 1), (0.6, 0), (0.5, 1)]:
            callback.on_evaluate(args, state, control, {"eval_topic_accuracy": 0.1, "eval_topic_mean_score": 0.1})
            callback.on_evaluate(args, state, control, {"eval_mean_score": score})
            assert callback.early_stopping_patience_counter == counted
            assert not control.should_training_stop
        callback.on_evaluate(args, state, control, {"eval_mean_score": 0.5})
    assert control.should_training_stop
    assert not log.out  # the stock callback says at each report of a task that it is disabled
    assert isinstance(callback, EarlyStoppingCallback)


@pytest.mark.parametrize("counted_before", [True, False])
def test_early_stopping_goes_on_counting_after_a_resume(tmp_path, counted_before):
    """The first evaluation is the best; a checkpoint of a run that did not count begins the count."""
    options = {"learning_rate": 0.0, "eval_strategy": "epoch", "save_strategy": "epoch"}
    options |= {"num_train_epochs": 6, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}

    def run(*callbacks, resume=None):
        trainer = four_tasks_trainer(tmp_path, size=4, callbacks=callbacks, **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    run(*([TaskEarlyStopping(3)] if counted_before else []), StopAt(4))  # two epochs of 2 steps, one without progress
    resumed = run(TaskEarlyStopping(3), resume=str(tmp_path / "checkpoint-4"))
    assert resumed.state.epoch == (4 if counted_before else 5)


# The guard


@pytest.mark.parametrize("trainer_class", [transformers.Trainer, MultiTaskTrainer])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_sampling_strategy": "random"}, "train_sampling_strategy='random' .*set it to 'sequential'"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy='group_by_length' reorders"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor .*set loss.label_smoothing of a task"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches .*leave it off"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size .*set per_device_train_batch_size"),
        ({"per_device_train_batch_size": 4}, "8 rows a step, but .* is 4; make TaskSamplingDataset"),
        ({"gradient_accumulation_steps": 3}, "8 rows a step, but .* is 24; make TaskSamplingDataset"),
    ],
)
def test_settings_that_would_destroy_the_plan_are_refused(tmp_path, trainer_class, options, message):
    sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 4), rows_per_step=8)
    trainer = new_trainer(arguments(tmp_path, **options), new_model(FOUR_TASKS), sampling, trainer_class)
    with pytest.raises(ValueError, match=rf"would change the training plan:\n- [\s\S]*{message}"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_several_gpus_in_one_process_are_refused(tmp_path):
    args = arguments(tmp_path)
    args._n_gpu = 2  # as on a machine with two, when not started by `accelerate launch`
    guard = SamplingGuard(TaskSamplingDataset(data_of(FOUR_TASKS, 4), rows_per_step=8))
    with pytest.raises(ValueError, match="nn.DataParallel cuts .*accelerate launch"):
        guard.on_train_begin(args, TrainerState(), TrainerControl())


def test_all_wrong_settings_are_named_at_once(tmp_path):
    args = arguments(tmp_path, label_smoothing_factor=0.1, train_sampling_strategy="random")
    guard = SamplingGuard(TaskSamplingDataset(data_of(FOUR_TASKS, 4), rows_per_step=8))
    with pytest.raises(ValueError, match="train_sampling_strategy") as error:
        guard.on_train_begin(args, TrainerState(), TrainerControl())
    assert str(error.value).count("\n- ") == 2


@pytest.mark.parametrize(("state_epoch", "epoch"), [(None, 0), (0, 0), (1.0, 1), (1.75, 1), (4.5, 4)])
def test_the_guard_sets_the_epoch_that_the_state_is_in(tmp_path, state_epoch, epoch):
    sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 4), rows_per_step=8)
    SamplingGuard(sampling).on_epoch_begin(arguments(tmp_path), TrainerState(epoch=state_epoch), TrainerControl())
    assert sampling.epoch == epoch


# Rates


def test_head_learning_rate_moves_only_the_heads_where_the_encoders_rate_is_zero(tmp_path):
    tasks = {"encoder": TINY_TASKS["topic"]}
    model = new_model(tasks)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sampling = TaskSamplingDataset(data_of(tasks, 16), rows_per_step=8)
    rates = {"learning_rate": 0.0, "head_learning_rate": 1e-3}
    args = arguments(tmp_path, arguments_class=MultiTaskTrainingArguments, **rates)
    trainer = new_trainer(args, model, sampling)
    trainer.train()
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {0.0}  # decayed to the end
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {0.0, 1e-3}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("heads."), name


def test_equal_rates_make_the_weights_of_the_stock_groups(tmp_path):
    models = []
    for head_rate in (None, 1e-3):
        model = new_model(FOUR_TASKS, dropout=0.1)
        sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 8), rows_per_step=8)
        options = {"arguments_class": MultiTaskTrainingArguments, "weight_decay": 0.1, "head_learning_rate": head_rate}
        new_trainer(arguments(tmp_path, **options), model, sampling).train()
        models.append(model)
    assert largest_difference(*models) < 1e-6


# What must not change the result


class StopAt(TrainerCallback):
    """Ends training after a step, as an interruption would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize(
    ("trainer_class", "step"),
    [(transformers.Trainer, 6), (MultiTaskTrainer, 3), (MultiTaskTrainer, 4), (MultiTaskTrainer, 9)],
)
def test_training_resumed_at_any_step_is_unbroken_training(tmp_path, trainer_class, step):
    """Bit-equal, with dropout, in the middle of an epoch (of 4 steps) and at its end."""

    def run(folder, callbacks=(), resume=None, seed=0):
        sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 8), rows_per_step=8, num_epochs=3)
        options = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": step, "logging_steps": 1}
        model = new_model(FOUR_TASKS, dropout=0.1, seed=seed)
        batches = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
        args = arguments(folder, **options, **batches)
        trainer = new_trainer(args, model, sampling, trainer_class, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    unbroken = run(tmp_path / "unbroken")
    run(tmp_path / "broken", callbacks=[StopAt(step)])
    resumed = run(tmp_path / "broken", resume=str(tmp_path / "broken" / f"checkpoint-{step}"), seed=1)
    assert resumed.state.global_step == unbroken.state.global_step == 12
    assert largest_difference(unbroken.model, resumed.model) == 0.0
    keys = ("loss", "loss_topic", "share_topic", "learning_rate", "epoch")
    logs = [[[entry.get(key) for key in keys] for entry in training_logs(t)] for t in (unbroken, resumed)]
    assert logs[0] == logs[1]


def trained(folder, batch, accumulation, **options):
    """A model without dropout after two epochs of plain gradient descent, 8 rows a step in some division."""
    sampling = TaskSamplingDataset(
        data_of(FOUR_TASKS, 12), rows_per_step=8, num_epochs=2, grouping=options.pop("grouping", "none")
    )
    # SGD: Adam turns the rounding noise of a gradient that is zero (keys' biases) into steps of the learning rate.
    batches = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    args = arguments(folder, num_train_epochs=2, optim="sgd", learning_rate=0.05, **batches, **options)
    model = new_model(FOUR_TASKS)
    new_trainer(args, model, sampling).train()
    return model


@pytest.mark.parametrize("grouping", ["none", "length"])
def test_accumulation_makes_the_weights_of_the_whole_step(tmp_path, grouping):
    whole = trained(tmp_path, 8, 1, grouping=grouping)
    assert largest_difference(whole, new_model(FOUR_TASKS)) > 1e-2
    for batch, accumulation in ((4, 2), (2, 4), (1, 8)):
        assert largest_difference(whole, trained(tmp_path, batch, accumulation, grouping=grouping)) < 1e-6


def test_activation_checkpointing_makes_the_same_weights(tmp_path):
    assert largest_difference(trained(tmp_path, 8, 1), trained(tmp_path, 8, 1, activation_checkpointing=True)) < 1e-6


def test_evaluating_more_often_changes_no_training_step(tmp_path):
    """A data loader draws a random seed whenever it is read; dropout must not feel it, or resuming would be inexact."""
    weights = []
    for name, options in {"never": {}, "often": {"eval_strategy": "steps", "eval_steps": 2}}.items():
        trainer = four_tasks_trainer(tmp_path / name, **options)
        trainer.train()
        assert bool(evaluation_logs(trainer)) == (name == "often")
        weights.append(trainer.model)
    assert largest_difference(*weights) == 0.0
