"""A loss or gradient that is not finite stops training on every rank before it changes a weight, and names its rows."""

import copy
import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from test_trainer_multitask import FOUR_TASKS, arguments, data_of, new_model, new_trainer
from transformers import TrainerCallback

from arguments_multitask import MultiTaskTrainingArguments
from modeling_multitask import MultiTaskModel
from non_finite_guard import ROWS_NAMED, NonFiniteGuard, listed
from task_sampler import TaskSamplingDataset


class AtStep(TrainerCallback):
    """Calls a function of the model before a step, counted from 1, and keeps a copy of the weights of that moment."""

    def __init__(self, step, action=lambda model: None):
        self.step, self.action, self.weights = step, action, None

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step + 1 == self.step:
            self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            self.action(model)


def poison_rating_head(model):
    """A NaN among the weights of one head."""
    model.heads["rating"].out.weight.data[0, 0] = math.nan


def overflow_gradient(model):
    """A gradient that is infinite though the loss is finite."""
    model.heads["topic"].out.weight.register_hook(lambda gradient: gradient * math.inf)


def trainer_of(folder, data, callbacks=(), accumulation=1, **options):
    """A trainer of `FOUR_TASKS` in mixed batches, 8 rows a step, that saves every second step."""
    sampling = TaskSamplingDataset(data, rows_per_step=8, grouping="none", num_epochs=2)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    batches = {"per_device_train_batch_size": 8 // accumulation // ranks, "gradient_accumulation_steps": accumulation}
    saving = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, "logging_nan_inf_filter": False}
    args = arguments(folder, **saving, **batches, **options)
    return new_trainer(args, new_model(FOUR_TASKS), sampling, callbacks=callbacks)


def checkpoints(folder):
    """Names of the folders that were saved."""
    return sorted(path.name for path in folder.iterdir())


def rows_named(message):
    """Dataset -> the rows of a message's list."""
    lines = re.findall(r"^- (\w+): rows? (.*)$", message, flags=re.MULTILINE)
    return {name: [int(number) for number in numbers.split(", ")] for name, numbers in lines}


def rows_of(sampling, step, places=slice(None), names=tuple(FOUR_TASKS)):
    """Dataset -> the rows that a step (counted from 1) reads at some of its places, by the order itself."""
    epoch, place = divmod(step - 1, sampling.steps_per_epoch)
    rows = {}
    for index, row in sampling.order(epoch).reshape(-1, sampling.rows_per_step, 2)[place][places].tolist():
        if sampling.names[index] in names:
            rows.setdefault(sampling.names[index], []).append(sampling.datasets[index][row]["row"])
    return rows


def shifted(data, by=100):
    """The same features with other source rows, so that a row's number is not its place."""
    return {name: [{**row, "row": row["row"] + by} for row in rows] for name, rows in data.items()}


def bad_label(data, step, place):
    """Make the label of the item that a step (counted from 1) reads at a place infinite: a number's."""
    sampling = TaskSamplingDataset(data, rows_per_step=8, grouping="none", num_epochs=2)
    name, feature = sampling.step_items(step - 1)[place]
    assert name in ("rating", "similarity"), "premise: its label is a number"
    feature["labels"][name] = math.inf


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_parameter_that_is_nan_stops_training_before_the_step_and_keeps_the_checkpoint_before(tmp_path, accumulation):
    poisoner = AtStep(5, poison_rating_head)
    trainer = trainer_of(tmp_path, shifted(data_of(FOUR_TASKS, 12)), [poisoner], accumulation)
    with pytest.raises(FloatingPointError, match="^Optimizer step 5: the loss of 'rating' .* on rank 0 ") as error:
        trainer.train()
    assert rows_named(str(error.value)) == rows_of(trainer.train_dataset, 5, names=["rating"])
    assert trainer.state.global_step == 4
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, poisoner.weights[name]) or name == "heads.rating.out.weight", name
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    kept = MultiTaskModel.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in poisoner.weights.items())
    assert json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_gradient_that_is_not_finite_stops_training_with_all_rows_of_the_step(tmp_path, max_grad_norm):
    callback = AtStep(3, overflow_gradient)
    trainer = trainer_of(tmp_path, data_of(FOUR_TASKS, 12), [callback], 2, max_grad_norm=max_grad_norm)
    with pytest.raises(FloatingPointError, match="step 3: every loss is finite, but the gradient is not") as error:
        trainer.train()
    assert rows_named(str(error.value)) == rows_of(trainer.train_dataset, 3)
    assert re.search(r"gradient norm (nan|inf)", str(error.value))
    assert all(torch.equal(tensor, callback.weights[name]) for name, tensor in trainer.model.state_dict().items())
    assert checkpoints(tmp_path) == ["checkpoint-2"]


@pytest.mark.parametrize("accumulation", [1, 2, 8])
def test_a_label_that_is_infinite_is_among_the_few_rows_named(tmp_path, accumulation):
    """Only rows with a label of the task, and only of the micro-batch, in the second epoch (of 6 steps) too."""
    data, place = shifted(data_of(FOUR_TASKS, 12)), 3
    spoiler = AtStep(7, lambda model: bad_label(data, 9, place))
    trainer = trainer_of(tmp_path, data, [spoiler], accumulation)
    name, feature = trainer.train_dataset.step_items(8)[place]
    with pytest.raises(FloatingPointError, match=f"^Optimizer step 9: the loss of '{name}' is not finite") as error:
        trainer.train()
    size = 8 // accumulation
    micro_batch = slice(place // size * size, (place // size + 1) * size)
    named = rows_named(str(error.value))
    assert named == rows_of(trainer.train_dataset, 9, micro_batch, [name])
    assert feature["row"] in named[name]


def test_the_items_of_a_step_are_those_that_training_reads():
    sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 12), rows_per_step=8, num_epochs=3)
    features = []
    for epoch in range(3):
        sampling.set_epoch(epoch)
        features += [sampling[place] for place in range(len(sampling))]
    sampling.set_epoch(0)
    items = [item for step in range(3 * sampling.steps_per_epoch) for item in sampling.step_items(step)]
    assert [feature for _, feature in items] == features
    assert all(name in feature["labels"] for name, feature in items)


def test_a_head_that_is_nan_without_a_row_in_the_batch_is_noticed_by_the_loss_as_a_whole(tmp_path):
    """Each head takes part in every step with a zero: NaN in the loss, and nothing in the gradient."""
    data = {"topic": data_of(FOUR_TASKS, 16)["topic"]}
    trainer = trainer_of(tmp_path, data, [AtStep(2, poison_rating_head)])
    with pytest.raises(FloatingPointError, match="step 2: the loss is not finite though no task's loss is") as error:
        trainer.train()
    assert "gradient norm nan" not in str(error.value)
    assert rows_named(str(error.value)) == rows_of(trainer.train_dataset, 2)


def test_finite_training_is_not_stopped_and_evaluation_is_not_watched(tmp_path):
    trainer = trainer_of(tmp_path, data_of(FOUR_TASKS, 12))
    trainer.compute_metrics = None
    weights = copy.deepcopy(trainer.model.state_dict())
    poison_rating_head(trainer.model)
    assert math.isnan(trainer.evaluate({"rating": data_of(FOUR_TASKS, 4)["rating"]})["eval_rating_loss"])
    trainer.model.load_state_dict(weights)
    trainer.train()
    assert trainer.state.global_step == 12


def test_rows_of_a_dataset_that_is_no_plan_are_not_named(tmp_path):
    trainer = trainer_of(tmp_path, data_of(FOUR_TASKS, 12), [AtStep(2, poison_rating_head)])
    trainer._guard.dataset = None
    with pytest.raises(FloatingPointError, match="'rating' is not finite") as error:
        trainer.train()
    assert rows_named(str(error.value)) == {}


def test_many_rows_are_counted():
    assert listed(["3"]) == "row 3"
    assert listed(["3", "1"]) == "rows 3, 1"
    numbers = [str(number) for number in range(ROWS_NAMED + 7)]
    assert listed(numbers).endswith(f", {ROWS_NAMED - 1} and 7 more")


def test_an_fp16_gradient_that_overflows_is_left_to_the_gradient_scaler():
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    guard = NonFiniteGuard(["topic"], accelerator)
    guard.watch(torch.tensor(1.0), {"topic": torch.tensor(1.0)})
    guard.check(torch.tensor(math.inf), 0)
    guard.watch(torch.tensor(1.0), {"topic": torch.tensor(math.inf)})
    with pytest.raises(FloatingPointError, match="the loss of 'topic'"):
        guard.check(torch.tensor(1.0), 0)


def test_a_loss_that_is_not_finite_is_shown_in_the_logs_by_default(tmp_path):
    assert MultiTaskTrainingArguments(str(tmp_path)).logging_nan_inf_filter is False


# On two ranks

TWO_RANKS = """
import math, sys
from pathlib import Path
from test_non_finite_guard import AtStep, data_of_ranks, poison_rating_head, trainer_of
case = sys.argv[2]
data = data_of_ranks(case)
trainer = trainer_of(Path(sys.argv[1]), data, accumulation=2, ddp_find_unused_parameters=False)
if case == "parameter" and trainer.args.process_index == 1:
    trainer.add_callback(AtStep(3, poison_rating_head))
try:
    trainer.train()
except FloatingPointError as error:
    said = f"\\nrank {trainer.args.process_index} after step {trainer.state.global_step}: {error}\\n"
    print(said, end="", flush=True)  # one write, so that the ranks' lines do not run into each other
    raise
"""


def data_of_ranks(case):
    """All tasks, with a bad label that rank 1 reads at the end of step 3; or one task, so that other heads are idle."""
    data = data_of(FOUR_TASKS, 12)
    if case == "label":
        bad_label(data, 3, 7)
    return data if case == "label" else {"topic": data_of(FOUR_TASKS, 48)["topic"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "what", "places"),
    [
        ("label", "the loss of 'rating' is not finite on rank 1", [6, 7]),
        ("parameter", "the loss is not finite though no task's loss is", [2, 3, 6, 7]),
    ],
)
def test_both_ranks_stop_where_only_one_has_the_bad_item_or_loss(repository, tmp_path, case, what, places):
    """The NaN of a label reaches both ranks' gradients; that of an idle head on one rank reaches no gradient at all."""
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    launch = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    result = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launch, "--main_process_port", "0"]
        + [str(script), str(tmp_path / "run"), case],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(repository), str(repository / "tests")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert result.returncode != 0
    said = re.findall(rf"^rank (\d) after step 2: Optimizer step 3: {what}", result.stdout, flags=re.MULTILINE)
    assert sorted(said) == ["0", "1"], result.stdout + result.stderr
    assert checkpoints(tmp_path / "run") == ["checkpoint-2"]
    name = "rating" if case == "label" else "topic"
    sampling = TaskSamplingDataset(data_of_ranks(case), rows_per_step=8, grouping="none")
    assert rows_named(result.stdout) == rows_of(sampling, 3, places, [name])
