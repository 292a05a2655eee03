"""How much each task's loss weighs while a run goes on, beside the static weight of its recipe.

`none` is the plain sum with the static weights, tuned by hand or by `search_hf.py`; the default. `uncertainty` learns a
log variance a task: parameters of the model (`losses_multitask.LogVariance`) with a rate of their own. `dwa` is the
callback below. Either way the loss of a batch stays the sum over its items and their tasks of weight * loss / items, so
that ranks and accumulation change nothing; evaluation reports plain losses, which can be compared between runs.
`MultiTaskTrainer` uses both; which is worth what is for an experiment to say.

    averaging = DynamicWeightAveraging(list(model.config.tasks))
    averaging.watch(outputs["task_losses"], outputs["task_items"])    # every micro-batch
"""

import math
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

TEMPERATURE = 2.0
"""T of dynamic weight averaging: the larger, the more alike the weights. Liu et al. use 2."""

Means = dict[str, float]
"""Task -> its mean loss over the items of an epoch, before any weight; tasks without an item are not in it."""


def dynamic_weights(before: Means, last: Means, temperature: float = TEMPERATURE) -> dict[str, float]:
    """Weights from how much each task's loss fell: K * softmax(r / T), r = last mean / mean before, for K tasks.

    Equation 7 of Liu et al. 2019 (https://arxiv.org/abs/1803.10704). A task that only one of the epochs had items of,
    or whose loss was 0, counts as neither rising nor falling (r = 1).

    Args:
        before (dict): Task -> mean loss of the last epoch but one.
        last (dict): Task -> mean loss of the last epoch.
        temperature (float): T.

    Returns:
        Task -> weight; their mean is 1.
    """
    names = sorted(before.keys() | last.keys())
    ratios = [last[name] / before[name] if before.get(name) and name in last else 1.0 for name in names]
    highest = max(ratios, default=0.0)  # taken off, so that no exponential overflows
    shares = [math.exp((ratio - highest) / temperature) for ratio in ratios]
    return {name: len(names) * share / sum(shares) for name, share in zip(names, shares, strict=True)}


class DynamicWeightAveraging(TrainerCallback, ExportableState):
    """Weighs tasks in each epoch by how much their mean losses fell over the two epochs before; see `dynamic_weights`.

    In the first two epochs all weights are 1. The means are over all items of an epoch on all ranks. What it knows is
    part of every checkpoint, so that a run resumed inside an epoch goes on as the unbroken one.

    Args:
        tasks (list[str]): Names of the model's tasks.
    """

    def __init__(self, tasks: list[str]):
        self.tasks = tasks
        self._forget()

    def _forget(self) -> None:
        """Start as before the first epoch."""
        self.epoch = 0
        self.means: list[Means] = []  # of the two epochs before, the last one last
        self.sums = [[0.0] * len(self.tasks) for _ in range(2)]  # of this epoch: losses, items
        self._watched: list[Tensor] = []  # a micro-batch of this step and rank each: losses, items. Shape (2, tasks)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; the same on every rank."""
        attributes = {"epoch": self.epoch, "means": self.means, "sums": self.sums}
        return {"args": {"tasks": self.tasks}, "attributes": attributes}

    def watch(self, task_losses: dict[str, Tensor], task_items: dict[str, Tensor]) -> None:
        """Remember a micro-batch: task -> mean loss before weights, and task -> number of items. Scalars."""
        absent = torch.zeros(2, device=next(iter(task_items.values())).device)
        sums = {name: torch.stack([loss * task_items[name], task_items[name]]) for name, loss in task_losses.items()}
        self._watched.append(torch.stack([sums.get(name, absent) for name in self.tasks], dim=1))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up what the checkpoint knew, if training goes on from one that did."""
        self._forget()
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step:
            for name, value in saved["attributes"].items():
                setattr(self, name, value)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any, **kwargs: Any
    ) -> None:
        """Close the epoch before, if it was not closed yet, and weigh the tasks for this one."""
        epoch = int(state.epoch or 0)
        if epoch != self.epoch:
            losses, items = self.sums
            of_tasks = zip(self.tasks, losses, items, strict=True)
            self.means = [*self.means[-1:], {name: loss / count for name, loss, count in of_tasks if count}]
            self.epoch, self.sums = epoch, [[0.0] * len(self.tasks) for _ in range(2)]
        model.loss_factors = dynamic_weights(self.means[0], self.means[1]) if len(self.means) == 2 else {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the step's sums over all ranks: every rank then knows the same, whenever a checkpoint is saved."""
        step = reduce(torch.stack(self._watched).sum(0), reduction="sum").tolist()
        self._watched.clear()
        self.sums = [[old + new for old, new in zip(*pair, strict=True)] for pair in zip(self.sums, step, strict=True)]

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any, **kwargs: Any
    ) -> None:
        """Leave the model with the plain sum."""
        model.loss_factors = {}
