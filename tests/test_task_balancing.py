"""Weights of losses that are learned or follow the losses: what they are, and that nothing about a run changes them.

Weights are compared without dropout, in float32 and under plain gradient descent, as in `test_ranks`.
"""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_ranks import LAST, RECIPE, on_ranks
from test_ranks import largest_difference as weights_differ
from test_trainer_multitask import (
    FOUR_TASKS,
    WEIGHTS,
    StopAt,
    arguments,
    data_of,
    evaluation_logs,
    largest_difference,
    new_model,
    new_trainer,
    rows,
    training_logs,
)
from tiny_models import TINY_TASKS, tiny_tokenizer
from transformers import AutoModel, AutoModelForTokenClassification, pipeline
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

import train_hf
from arguments_multitask import LOSS_BALANCINGS, ModelArguments, MultiTaskTrainingArguments
from data_collator import MultiTaskDataCollator
from graph_export import GraphForward
from losses_multitask import LogVariance
from modeling_multitask import MultiTaskForSequenceClassification, MultiTaskModel
from native_export import write_embedding, write_native
from task_balancing import dynamic_weights
from task_sampler import TaskSamplingDataset
from trained_start import extend_trained

EPOCHS = 4


def balanced_trainer(folder, balancing, model=None, callbacks=(), size=12, **options):
    """A trainer of `FOUR_TASKS`, 8 rows a step, 6 steps an epoch, with some balancing."""
    model = new_model(FOUR_TASKS) if model is None else model
    model.learn_loss_weights(balancing == "uncertainty")
    options = {"num_train_epochs": EPOCHS, "loss_balancing": balancing} | options
    args = arguments(folder, MultiTaskTrainingArguments, **options)
    sampling = TaskSamplingDataset(
        data_of(FOUR_TASKS, size), rows_per_step=8, num_epochs=int(args.num_train_epochs), grouping="none"
    )
    return new_trainer(args, model, sampling, validation=data_of(FOUR_TASKS, 10, seed=1), callbacks=callbacks)


def batch_of(tasks, size=4):
    """A batch with `size` items of every task."""
    collator = MultiTaskDataCollator(tiny_tokenizer("bert"), tasks)
    return collator([row for name, spec in tasks.items() for row in rows(name, spec, size)])


def learned(tasks=FOUR_TASKS, value=None):
    """A model with learned weights, each of another value unless one is given for all."""
    model = new_model(tasks)
    model.learn_loss_weights(True)
    for index, variance in enumerate(model.log_variances.values()):
        variance.value.data.fill_(0.3 * (index - 1) if value is None else value)
    return model


# Learned uncertainty: what it computes


@pytest.mark.parametrize("deviation", [0.5, 1.0, 3.0])
def test_a_log_variance_is_kendalls_likelihood_but_for_a_constant(deviation):
    """Equation 7 for a squared error, 10 for a cross-entropy: differences and gradients in sigma are theirs."""
    losses = torch.tensor([0.2, 1.7])
    deviation = torch.tensor(deviation, requires_grad=True)
    forms = {
        "squared error": (2 * deviation**2, losses / (2 * deviation**2) + deviation.log(), math.log(2) / 2),
        "cross-entropy": (deviation**2, losses / deviation**2 + deviation.log(), 0.0),
    }
    for name, (variance, expected, constant) in forms.items():
        ours = LogVariance()
        ours.value.data.copy_(variance.detach().log())
        assert torch.allclose(ours(losses), expected + constant, atol=1e-6), name


def test_a_learned_weight_comes_to_rest_at_half_the_inverse_of_the_mean_loss():
    """exp(s) = 2 * mean loss, whatever the static weight and the task's share of the batch."""
    tasks = {name: FOUR_TASKS[name] for name in ("topic", "rating")}
    model = learned(tasks, value=0.0).train()
    batch = batch_of(tasks, 6)
    batch["labels"]["rating"][-3:] = float("nan")  # a smaller share of the batch
    optimizer = torch.optim.SGD(model.log_variances.parameters(), lr=2.0)
    for _ in range(400):
        optimizer.zero_grad()
        output = model(**batch)
        output.loss.backward()
        optimizer.step()
    for name, loss in output.task_losses.items():
        assert float(model.log_variances[name].value.detach().exp()) == pytest.approx(2 * float(loss), rel=1e-3), name


def test_the_loss_of_a_batch_is_the_sum_over_items_of_static_weight_times_learned_form():
    model, batch = learned().train(), batch_of(FOUR_TASKS)
    output = model(**batch)
    expected = 0.0
    for name, loss in output.task_losses.items():
        value = float(model.log_variances[name].value.detach())
        of_item = math.exp(-value) * float(loss) + value / 2
        expected += WEIGHTS[name] * of_item * int(output.task_items[name]) / len(batch["input_ids"])
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-6)


def test_new_learned_weights_give_the_gradients_of_the_plain_sum():
    plain, model, batch = new_model(FOUR_TASKS).train(), new_model(FOUR_TASKS).train(), batch_of(FOUR_TASKS)
    model.learn_loss_weights(True)
    for one in (plain, model):
        one(**batch).loss.backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, model.get_parameter(name).grad), name


def test_evaluation_reports_plain_losses_whatever_the_balancing():
    plain, model, batch = new_model(FOUR_TASKS).eval(), learned().eval(), batch_of(FOUR_TASKS)
    model.loss_factors = dict.fromkeys(FOUR_TASKS, 3.0)
    assert torch.equal(plain(**batch).loss, model(**batch).loss)
    assert torch.equal(plain(**batch).item_losses, model(**batch).item_losses)
    assert not torch.equal(plain.train()(**batch).loss, model.train()(**batch).loss)


def test_every_log_variance_has_a_gradient_in_every_step_also_of_tasks_that_a_batch_lacks():
    model = learned().train()
    model(**batch_of({"topic": FOUR_TASKS["topic"]})).loss.backward()
    gradients = {name: variance.value.grad for name, variance in model.log_variances.items()}
    assert all(gradient is not None for gradient in gradients.values())
    assert {name for name, gradient in gradients.items() if gradient.abs().sum()} == {"topic"}


# Dynamic weight averaging: what it computes


def test_dynamic_weights_are_equation_7():
    before, last = {"a": 2.0, "b": 1.0, "c": 0.5}, {"a": 1.0, "b": 0.9, "c": 0.6}
    exponentials = {name: math.exp(last[name] / before[name] / 2.0) for name in before}
    expected = {name: 3 * value / sum(exponentials.values()) for name, value in exponentials.items()}
    found = dynamic_weights(before, last)
    assert found == pytest.approx(expected)
    assert found["a"] < found["b"] < found["c"], "what fell more weighs less"
    assert sum(found.values()) == pytest.approx(3)


def test_dynamic_weights_of_equal_falls_are_one_and_of_extreme_ones_finite():
    assert dynamic_weights({"a": 4.0, "b": 2.0}, {"a": 2.0, "b": 1.0}) == pytest.approx({"a": 1.0, "b": 1.0})
    assert dynamic_weights({"a": 1e-9, "b": 1.0}, {"a": 1.0, "b": 1.0}) == pytest.approx({"a": 2.0, "b": 0.0})
    assert dynamic_weights({"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0}) == pytest.approx({"a": 1.0, "b": 1.0})
    assert dynamic_weights({"a": 1.0}, {"b": 1.0}) == pytest.approx({"a": 1.0, "b": 1.0})
    assert dynamic_weights({}, {}) == {}


def test_dynamic_weights_follow_from_the_mean_losses_of_the_two_epochs_before(tmp_path):
    """By the log alone: one entry a step has each task's mean loss and share, so an epoch's mean can be summed up."""
    trainer = balanced_trainer(tmp_path, "dwa", optim="sgd", learning_rate=0.05)
    trainer.train()
    logs = training_logs(trainer)
    steps = len(logs) // EPOCHS
    epochs = [logs[start : start + steps] for start in range(0, len(logs), steps)]
    means = []
    for entries in epochs:
        shares = {name: [entry.get(f"share_{name}", 0.0) for entry in entries] for name in FOUR_TASKS}
        sums = {
            name: sum(
                entry.get(f"loss_{name}", 0.0) * share for entry, share in zip(entries, shares[name], strict=True)
            )
            for name in FOUR_TASKS
        }
        means.append({name: sums[name] / sum(shares[name]) for name in FOUR_TASKS})
    for epoch, entries in enumerate(epochs):
        factors = dynamic_weights(*means[epoch - 2 : epoch]) if epoch >= 2 else dict.fromkeys(FOUR_TASKS, 1.0)
        for entry in entries:
            found = {name: entry[f"weight_{name}"] for name in FOUR_TASKS if f"weight_{name}" in entry}
            assert found and found == pytest.approx({name: WEIGHTS[name] * factors[name] for name in found}, rel=1e-5)
            weighted = sum(entry[f"weight_{n}"] * entry[f"share_{n}"] * entry[f"loss_{n}"] for n in found)
            assert entry["loss"] == pytest.approx(weighted, rel=1e-5), "the weights in force are those of the loss"
    assert trainer.model.loss_factors == {}
    assert max(abs(factors[name] - 1) for name in factors) > 1e-3, "the premise: the weights move"


def test_a_second_training_of_the_same_trainer_starts_with_the_plain_sum(tmp_path):
    trainer = balanced_trainer(tmp_path, "dwa")
    trainer.train()
    trainer.train()
    assert training_logs(trainer)[0]["weight_topic"] == WEIGHTS["topic"]


# What must not change the result


def trained(folder, balancing, batch=8, accumulation=1, **options):
    """A trainer after four epochs of plain gradient descent, 8 rows a step in some division."""
    options |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    rates = {"optim": "sgd", "learning_rate": 0.05, "balancing_learning_rate": 0.5}
    trainer = balanced_trainer(folder, balancing, **rates, **options)
    trainer.train()
    return trainer


def last_weights(trainer):
    """The weight of each task that was logged last."""
    entries = training_logs(trainer)
    return {name: [e[f"weight_{name}"] for e in entries if f"weight_{name}" in e][-1] for name in FOUR_TASKS}


@pytest.mark.slow
@pytest.mark.parametrize("balancing", ["uncertainty", "dwa"])
def test_accumulation_balances_as_the_whole_step_does(tmp_path, balancing):
    whole, plain = trained(tmp_path, balancing).model, trained(tmp_path, "none").model
    moved = max(float((value - whole.state_dict()[name]).abs().max()) for name, value in plain.state_dict().items())
    assert moved > 1e-4, "the premise: balancing changes the weights"
    for batch, accumulation in ((4, 2), (1, 8)):
        assert largest_difference(whole, trained(tmp_path, balancing, batch, accumulation).model) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("balancing", ["uncertainty", "dwa"])
def test_mixed_precision_balances_as_float32_does(tmp_path, balancing):
    """The log variances and the mean losses stay in float32; the losses themselves have the rounding of bfloat16."""
    exact, mixed = trained(tmp_path, balancing), trained(tmp_path, balancing, bf16=True)
    weights = last_weights(exact)
    assert max(abs(weights[name] / WEIGHTS[name] - 1) for name in WEIGHTS) > 0.02, "the premise: the weights moved"
    assert last_weights(mixed) == pytest.approx(weights, rel=5e-4)
    assert {parameter.dtype for parameter in mixed.model.log_variances.parameters()} <= {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("balancing", ["uncertainty", "dwa"])
@pytest.mark.parametrize("step", [10, 12, 15])
def test_balanced_training_resumed_at_any_step_is_unbroken_training(tmp_path, balancing, step):
    """Bit-equal, with dropout: in the second epoch of 6 steps, at its end, and where weights have come to differ."""

    def run(folder, callbacks=(), resume=None, seed=0):
        options = {"save_strategy": "steps", "save_steps": step}
        options |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
        model = new_model(FOUR_TASKS, dropout=0.1, seed=seed)
        trainer = balanced_trainer(folder, balancing, model, callbacks, **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    unbroken = run(tmp_path / "unbroken")
    run(tmp_path / "broken", callbacks=[StopAt(step)])
    resumed = run(tmp_path / "broken", resume=str(tmp_path / "broken" / f"checkpoint-{step}"), seed=1)
    assert resumed.state.global_step == unbroken.state.global_step == 24
    assert largest_difference(unbroken.model, resumed.model) == 0.0
    keys = ("loss", *(f"weight_{name}" for name in FOUR_TASKS))
    logs = [[[entry.get(key) for key in keys] for entry in training_logs(trainer)] for trainer in (unbroken, resumed)]
    assert logs[0] == logs[1]


def test_learned_weights_have_their_own_rate_and_no_decay_and_are_logged(tmp_path):
    for head_rate in (None, 1e-2):
        options = {"weight_decay": 0.5, "balancing_learning_rate": 0.02, "head_learning_rate": head_rate}
        trainer = balanced_trainer(tmp_path, "uncertainty", **options)
        trainer.train()
        own = [group for group in trainer.optimizer.param_groups if group["initial_lr"] == 0.02]
        variances = list(trainer.model.log_variances.parameters())
        assert [[id(p) for p in group["params"]] for group in own] == [[id(p) for p in variances]]
        assert [group["weight_decay"] for group in own] == [0.0]
        everywhere = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
        assert len(everywhere) == len(set(everywhere)) == len(list(trainer.model.parameters()))
        last = training_logs(trainer)[-1]
        assert 0.0 != float(variances[0].detach()) and any(f"weight_{name}" in last for name in FOUR_TASKS)
        for name in FOUR_TASKS:
            assert trainer.model.loss_weights()[name] == pytest.approx(
                WEIGHTS[name] * math.exp(-float(trainer.model.log_variances[name].value.detach()))
            )


def test_a_plain_run_logs_no_weights_and_an_unprepared_model_is_refused(tmp_path):
    trainer = balanced_trainer(tmp_path, "none", num_train_epochs=1)
    trainer.train()
    assert not [key for entry in training_logs(trainer) for key in entry if key.startswith("weight_")]
    args = arguments(tmp_path, MultiTaskTrainingArguments, loss_balancing="uncertainty")
    with pytest.raises(ValueError, match="model.learn_loss_weights"):
        new_trainer(args, new_model(FOUR_TASKS), trainer.train_dataset)
    with pytest.raises(ValueError, match="none, uncertainty, dwa; got 'uncertain'. Did you mean 'uncertainty'"):
        arguments(tmp_path, MultiTaskTrainingArguments, loss_balancing="uncertain")


def test_evaluation_losses_of_all_balancings_start_equal(tmp_path):
    found = []
    for balancing in LOSS_BALANCINGS:
        trainer = balanced_trainer(tmp_path, balancing, learning_rate=0.0, eval_strategy="epoch", num_train_epochs=3)
        trainer.train()
        found.append([entry["eval_loss"] for entry in evaluation_logs(trainer)])
    assert found[0] == found[1] == found[2]


# A model with learned weights through every door, and on


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder saved with learned weights, as a checkpoint is."""
    path = tmp_path_factory.mktemp("learned")
    learned(TINY_TASKS).save_pretrained(path)
    tiny_tokenizer("bert").save_pretrained(path)
    return path


def test_a_folder_with_learned_weights_opens_everywhere_without_a_report(folder, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    plain, tokenizer = new_model(TINY_TASKS).eval(), tiny_tokenizer("bert")
    expected = plain.predict(["Anna won the game."], tokenizer, bf16=False)[0]
    with CaptureLogger(logging.get_logger("transformers")) as log:
        model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        view = AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=True, task_name="ner")
        pipe = pipeline("multitask", model=str(folder), trust_remote_code=True)
        embedder = sentence_transformers.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    assert "REPORT" not in log.out and "log_variances" not in log.out
    assert torch.equal(model.log_variances["ner"].value, learned(TINY_TASKS).log_variances["ner"].value)
    assert view.config.learned_loss_weights
    assert pipe("Anna won the game.", bf16=False)["topic"] == expected["topic"]
    assert model.predict(["Anna won the game."], tokenizer, bf16=False)[0]["ner"] == expected["ner"]
    assert embedder.encode("Anna won the game.") == pytest.approx(expected["sentence_embedding"], abs=1e-6)
    ours = MultiTaskModel.from_pretrained(folder).eval()
    write_native(ours, tokenizer, tmp_path / "ner", "ner")
    write_embedding(ours, tokenizer, tmp_path / "embedding")
    batch = {name: value for name, value in batch_of(TINY_TASKS).items() if name in ("input_ids", "attention_mask")}
    for name, value in GraphForward(ours)(**batch).items():
        assert torch.equal(value, GraphForward(plain)(**batch)[name]), name


def test_a_saved_plain_model_can_be_opened_with_new_learned_weights(tmp_path):
    """What a folder lacks is not memory garbage: the weights start at those of the plain sum."""
    new_model(FOUR_TASKS).save_pretrained(tmp_path)
    model, report = MultiTaskModel.from_pretrained(tmp_path, learned_loss_weights=True, output_loading_info=True)
    assert {key.split(".")[0] for key in report["missing_keys"]} == {"log_variances"}
    assert model.loss_weights() == WEIGHTS


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_run_goes_on_from_a_folder_with_learned_weights_with_or_without_them(folder, tmp_path, goes_on):
    fresh = {"fresh": TINY_TASKS["topic"]}
    specs = copy.deepcopy({name: FOUR_TASKS[name] for name in FOUR_TASKS} | fresh)
    specs = {
        name: MultiTaskForSequenceClassification.config_class(tasks={name: s}).tasks[name] for name, s in specs.items()
    }
    model, tokenizer = extend_trained(ModelArguments(init_from=str(folder)), specs, True, [])
    model.learn_loss_weights(goes_on)
    before = dict(learned(TINY_TASKS).log_variances.items())
    if goes_on:
        assert set(model.log_variances) == {*TINY_TASKS, "fresh"}
        assert torch.equal(model.log_variances["topic"].value, before["topic"].value)
        assert float(model.log_variances["fresh"].value.detach()) == 0.0
    else:
        assert not list(model.log_variances.parameters()) and not model.config.learned_loss_weights
    model.save_pretrained(tmp_path)
    keys = {name.split(".")[0] for name in MultiTaskModel.from_pretrained(tmp_path).state_dict()}
    assert ("log_variances" in keys) == goes_on
    assert json.loads((tmp_path / "config.json").read_text())["learned_loss_weights"] == goes_on


def test_learned_weights_follow_their_tasks():
    model = learned()
    values = {name: float(variance.value.detach()) for name, variance in model.log_variances.items()}
    model.rename_task("topic", "area")
    model.remove_task("rating")
    model.add_task("mood", TINY_TASKS["topic"])
    found = {name: float(variance.value.detach()) for name, variance in model.log_variances.items()}
    assert found == {"area": values["topic"], "mood": 0.0} | {name: values[name] for name in ("ner", "similarity")}
    assert list(model.log_variances) == list(model.config.tasks)


# Several processes


@pytest.mark.slow
@pytest.mark.parametrize("balancing", ["uncertainty", "dwa"])
def test_two_ranks_balance_as_one_process_does(tmp_path: Path, encoder_folder, balancing: str) -> None:
    """The command itself: equal weights on both ranks, and those of one process, also of the losses."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(encoder=encoder_folder("bert")))
    options = [recipe, "--loss_balancing", balancing, "--balancing_learning_rate", "0.5", "--logging_steps", "15"]
    options = [str(option) for option in options]
    train_hf.main([*options, "--output_dir", str(tmp_path / "one")])
    ranks = on_ranks("command", tmp_path / "two", *options, "--per_device_train_batch_size", 4)
    assert ranks[0]["sha256"] == ranks[1]["sha256"] and ranks[0]["find_unused"] is False
    assert weights_differ(tmp_path / "one" / LAST, tmp_path / "two" / LAST) < 1e-5
    logs = [json.loads((tmp_path / name / LAST / "trainer_state.json").read_text()) for name in ("one", "two")]
    weights = [
        [{k: v for k, v in entry.items() if k.startswith("weight_")} for entry in log["log_history"] if "loss" in entry]
        for log in logs
    ]
    for one, two in zip(*weights, strict=True):
        assert one and one == pytest.approx(two, rel=1e-4)
    assert max(abs(value - 1) for value in weights[0][-1].values()) > 1e-3, "the premise: the weights moved"
    for folder in (tmp_path / "one", tmp_path / "two"):
        saved = {name.split(".")[0] for name in load_file(folder / "model.safetensors")}
        assert "log_variances" not in saved, "a state of training: in the checkpoints only"
        assert (balancing == "uncertainty") == any(
            "log_variances" in n for n in load_file(folder / LAST / "model.safetensors")
        )
