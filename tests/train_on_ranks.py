"""What `test_ranks` starts on every rank: a real run, after which each rank writes down what it ended with.

    accelerate launch --config_file CONFIG tests/train_on_ranks.py WHAT FOLDER [ARGUMENTS]

runs one of the functions `command` and `epochs` (with arguments of train_hf), `sided` and `evaluation`, and writes
`FOLDER/rank_<rank>.json`. A test may call them too, for one process.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from test_trainer_multitask import FOUR_TASKS, arguments, data_of, new_model, new_trainer
from tiny_models import TINY_TASKS
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

import train_hf
from arguments_multitask import MultiTaskTrainingArguments
from modeling_multitask import MultiTaskModel
from task_sampler import TaskSamplingDataset
from trainer_multitask import MultiTaskTrainer

ROWS_PER_STEP = 8
UNEVEN_SIZES = {"some": 37, "few": 3}
"""Rows of every task in an evaluation of batches of 8: no rank count divides them, and 3 do not go round 3 ranks."""


def digest(model: MultiTaskModel) -> str:
    """A hash of every parameter and buffer, names and bits."""
    sha = hashlib.sha256()
    for name, value in model.state_dict().items():
        sha.update(name.encode() + value.contiguous().numpy().tobytes())
    return sha.hexdigest()


def facts(trainer: MultiTaskTrainer) -> dict[str, Any]:
    """What a rank ended its training with."""
    wrapped = trainer.model_wrapped
    return {
        "sha256": digest(trainer.model),
        "steps": trainer.state.global_step,
        "find_unused": wrapped.find_unused_parameters if isinstance(wrapped, DistributedDataParallel) else None,
        "checkpointing": trainer.model.is_activation_checkpointing,
    }


def command(folder: Path, *argv: str) -> dict[str, Any]:
    """`train_hf.py` itself."""
    return facts(train_hf.main([*argv, "--output_dir", str(folder)]))


class EpochNotes(TrainerCallback):
    """At the end of each epoch, before anything is saved or read: a hash of the weights, and which have moved."""

    before: ClassVar[dict[str, torch.Tensor]] = {}
    epochs: ClassVar[list[dict[str, Any]]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not self.before:
            self.before.update({name: value.detach().clone() for name, value in model.named_parameters()})

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        moved = [name for name, value in model.named_parameters() if not torch.equal(value, self.before[name])]
        self.epochs.append({"sha256": digest(model), "moved": moved, "step": state.global_step})


def epochs(folder: Path, *argv: str) -> dict[str, Any]:
    """`train_hf.py` itself, and what each epoch ended with."""
    transformers.trainer.DEFAULT_CALLBACKS.append(EpochNotes)
    return command(folder, *argv) | {"epochs": EpochNotes.epochs}


class SidedOrder(TaskSamplingDataset):
    """The first half of every step holds no row of `topic`, the second half nothing else: one of 2 ranks each."""

    def _epoch_order(self, epoch: int) -> np.ndarray:
        order = super()._epoch_order(epoch)
        is_topic = order[:, 0] == self.names.index("topic")
        halves = [order[rows].reshape(-1, self.rows_per_step // 2, 2) for rows in (~is_topic, is_topic)]
        return np.concatenate(halves, axis=1).reshape(-1, 2)


def sided(folder: Path) -> dict[str, Any]:
    """Five epochs of 12 steps in the sided order, on as many ranks as there are; `met` names the tasks of this one."""
    shares = {name: 3.0 if name == "topic" else 1.0 for name in FOUR_TASKS}
    sampling = SidedOrder(data_of(FOUR_TASKS, 24), "shares", 0, ROWS_PER_STEP, 5, "none", shares=shares)
    batch = ROWS_PER_STEP // int(os.environ.get("WORLD_SIZE", "1"))
    options = {"num_train_epochs": 5, "optim": "sgd", "learning_rate": 0.05, "per_device_train_batch_size": batch}
    args = arguments(folder, MultiTaskTrainingArguments, **options)
    trainer = new_trainer(args, new_model(FOUR_TASKS, projection_dim=16), sampling)
    collate, met = trainer.data_collator, set()

    def note_tasks(features: list[dict[str, Any]]) -> dict[str, Any]:
        met.update(name for feature in features for name in feature["labels"])
        return collate(features)

    trainer.data_collator = note_tasks
    trainer.train()
    trainer.save_model()
    return facts(trainer) | {"met": sorted(met)}


def evaluation(folder: Path) -> dict[str, Any]:
    """Evaluation of a task of every kind, in float64: other padding then moves an answer by 1e-16, not by 1e-7."""
    model = new_model(TINY_TASKS).double()
    sampling = TaskSamplingDataset(data_of(TINY_TASKS, 8), rows_per_step=ROWS_PER_STEP)
    trainer = new_trainer(arguments(folder), model, sampling)
    metrics = {}
    for prefix, size in UNEVEN_SIZES.items():
        metrics |= trainer.evaluate(data_of(TINY_TASKS, size, seed=size), metric_key_prefix=prefix)
    speed = ("_runtime", "_per_second", "_time")
    return {"metrics": {name: value for name, value in metrics.items() if not name.endswith(speed)}}


def main(what: str, folder: str, *argv: str) -> None:
    """Run one of the functions and write this rank's report."""
    report = {"command": command, "epochs": epochs, "sided": sided, "evaluation": evaluation}[what](Path(folder), *argv)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    report |= {"rank": rank, "world_size": world_size}
    (Path(folder) / f"rank_{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
