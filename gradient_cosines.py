"""Do the tasks pull the shared encoder in the same direction? The cosines of their gradients, measured in training.

Yu et al. 2020 (PCGrad, https://arxiv.org/abs/2001.06782, definition 1) call two tasks' gradients conflicting where
their cosine is negative. Here it is measured only; training is as it would be without, bit by bit: no generator that
training draws from is touched, dropout is off, and no parameter's `.grad` is read or written.

    measured = GradientCosines(trainer, features.train, every=100)
    trainer.add_callback(measured)
    trainer.train()
    write_cosines(trainer.state.log_history, model.config.tasks, Path("outputs/run"))

What is measured: after every `every` optimizer steps each task gets two batches of its own training rows (not the
batch of the step, which may lack a task), drawn by seed and step, so that a resumed run draws the same. The gradient
of each batch's loss (without dropout and R-Drop, in the precision of training) is taken over the encoder's trainable
parameters. The entry of two tasks is the mean of cos(first batch of one, second batch of the other) both ways; the
diagonal is cos(first, second batch) of one task. So no entry compares equal rows, and the diagonal says how much of a
gradient is the task's and not the batch's: what two tasks could have at most. One measurement is noisy; the mean over
training is what to read.

It needs memory for a gradient a task and two more (MiniLM with frozen embeddings: 43 MB each). On several processes the
first one measures, with the weights that all have, and the others wait for it at their next exchange.
"""

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from task_plots import plot_cosines

PROBE_ROWS = 32
"""Rows of each of a task's two batches; half of its rows where it has fewer than twice as many."""
KEY = "gradient_cosine/{}/{}"
"""Log key of two tasks, in the order of their names."""
SECONDS = "gradient_cosines_seconds"
"""Log key of the time that a measurement took."""
FILE_NAME = "gradient_cosines.json"
MEASURED = (
    "Cosines of the gradients of two tasks' losses over the encoder's trainable parameters, dropout off, each on a "
    "batch of training rows of its own, over training. Diagonal: a task with itself on other rows."
)


class GradientCosines(TrainerCallback):
    """Logs the cosines of the tasks' gradients every so many optimizer steps; see the module.

    Args:
        trainer (Trainer): Holds model, collator and log. Its model is a `MultiTaskModel`.
        datasets (Mapping): Task, or aligned tasks as `a+b` -> training features.
        every (float): Optimizer steps between two measurements; below 1, a share of all steps.

    Raises:
        ValueError: if there is nothing to compare (one task, no trainable parameter in the encoder), or no process
            holds whole gradients (FSDP, DeepSpeed).
    """

    def __init__(self, trainer: Trainer, datasets: Mapping[str, Any], every: float):
        self.trainer, self.every = trainer, every
        groups = {name: rows for group, rows in datasets.items() for name in group.split("+")}
        self.datasets = {name: groups[name] for name in trainer.model.config.tasks if name in groups}
        if len(self.datasets) < 2 or not self.parameters:
            raise ValueError(
                "gradient_cosines compares what several tasks want of an encoder that learns; here "
                f"{len(self.datasets)} tasks are trained, over {len(self.parameters)} trainable tensors in the encoder."
                " Leave it away."
            )
        if trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                "gradient_cosines needs whole gradients in one process; FSDP and DeepSpeed cut them over the "
                "processes. Measure in a run on one process or with DDP."
            )

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What is shared and learns."""
        return [one for one in self.trainer.model.encoder.parameters() if one.requires_grad]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure and log after every `every` steps, in the first process."""
        steps = self.every if self.every >= 1 else max(1, round(self.every * state.max_steps))
        is_due = state.global_step % int(steps) == 0 and self.parameters  # none in a stage that freezes the encoder
        if not is_due or not state.is_world_process_zero:
            return
        start = time.perf_counter()
        cosines = self.measure(state.global_step)
        names = list(self.datasets)
        logs = {
            KEY.format(one, other): float(cosines[i, j])
            for i, one in enumerate(names)
            for j, other in enumerate(names)
            if i <= j
        }
        should_log = control.should_log  # the log below would take it for done
        self.trainer.log(logs | {SECONDS: time.perf_counter() - start})
        control.should_log = should_log

    def measure(self, step: int) -> np.ndarray:
        """The matrix of cosines with the present weights, NaN for a gradient of zeros. Shape (tasks, tasks).

        Args:
            step (int): Decides, with the seed of the run, which rows the batches hold.
        """
        model = self.trainer.model
        was_training = model.training
        model.eval()
        batches = [probe_features(name, rows, (self.trainer.args.seed, step)) for name, rows in self.datasets.items()]
        firsts = [self._direction(first) for first, _ in batches]
        between = np.empty((len(firsts), len(firsts)))
        for column, (_, batch) in enumerate(batches):
            second = self._direction(batch)
            between[:, column] = [float(first @ second) for first in firsts]
        model.train(was_training)
        return (between + between.T) / 2

    def _direction(self, features: list[dict[str, Any]]) -> Tensor:
        """The gradient of a batch's loss over the encoder's trainable parameters, with norm 1. Shape (parameters,)."""
        batch = self.trainer._prepare_inputs(self.trainer.data_collator(features))
        with self.trainer.compute_loss_context_manager():
            loss = self.trainer.model(**batch).loss
        gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        flat = torch.cat([gradient.flatten().float() for gradient in gradients])
        return flat / flat.norm()


def probe_features(name: str, dataset: Any, key: tuple[int, ...]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two batches of a task: features with its label alone, no row in both, drawn by `key`.

    Raises:
        ValueError: if no row carries a label of the task.
    """
    found: list[dict[str, Any]] = []
    for row in np.random.default_rng([*key, *name.encode()]).permutation(len(dataset)).tolist():
        feature = dataset[row]
        if feature["labels"].get(name) is not None:
            found.append({**feature, "labels": {name: feature["labels"][name]}})
        if len(found) == 2 * PROBE_ROWS:
            break
    if not found:
        raise ValueError(f"gradient_cosines needs training rows with a label of every task; {name!r} has none.")
    half = max(1, len(found) // 2)
    return found[:half], found[-half:]


def read_log(log_history: list[dict[str, Any]], tasks: Collection[str]) -> dict[str, Any]:
    """What a run's log says of its gradients' cosines.

    Returns:
        `tasks`, the names in the order of the matrices; `mean`, the matrix (tasks, tasks) of means over the
        measurements; `measurements`, a `step` and a matrix `cosines` each; `seconds`, what measuring took in all;
        `measured`, what the numbers are. NaN is None. Without a measurement: `{}`.
    """
    entries = {entry["step"]: entry for entry in log_history if SECONDS in entry}
    if not entries:
        return {}
    names = [name for name in tasks if KEY.format(name, name) in next(iter(entries.values()))]
    pairs = [[KEY.format(*sorted((one, other), key=names.index)) for other in names] for one in names]
    matrices = {step: np.array([[entry[key] for key in row] for row in pairs]) for step, entry in entries.items()}
    return {
        "measured": MEASURED,
        "tasks": names,
        "mean": as_lists(np.mean(list(matrices.values()), axis=0)),
        "measurements": [{"step": step, "cosines": as_lists(matrix)} for step, matrix in matrices.items()],
        "seconds": sum(entry[SECONDS] for entry in entries.values()),
    }


def as_lists(matrix: np.ndarray) -> list[list[float | None]]:
    """A matrix as JSON has it, to six digits; NaN is None."""
    return [[None if np.isnan(value) else round(float(value), 6) for value in row] for row in matrix]


def write_cosines(log_history: list[dict[str, Any]], tasks: Collection[str], folder: Path) -> dict[str, Any]:
    """Write `gradient_cosines.json` and, where matplotlib is, `gradient_cosines.png`; returns what `read_log` does."""
    found = read_log(log_history, tasks)
    if found:
        (folder / FILE_NAME).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        plot_cosines(found["tasks"], found["mean"], folder / "gradient_cosines.png")
    return found
