"""Stops training before a loss or gradient that is not finite changes a weight, on every rank, naming where it arose.

`MultiTaskTrainer` has one: it shows it every micro-batch's losses and each step's gradient norm, which Trainer computes
anyway. Nothing is computed twice; a step costs one gather of a few flags, the only time a GPU waits for it.

    guard.watch(loss, outputs["task_losses"])      # every micro-batch
    guard.check(gradient_norm, state.global_step)  # after the backward passes, before the optimizer's step
"""

from collections import defaultdict
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from task_sampler import TaskSamplingDataset

ROWS_NAMED = 50
"""Rows of a dataset that a message lists; the others are counted."""


class NonFiniteGuard:
    """Raises on every rank at once when a rank's loss, or the gradient over all ranks, is NaN or infinite.

    A NaN that one rank computes reaches the gradients of all, but a loss can be NaN where its gradient is not (the zero
    times every parameter that keeps DDP going, under a parameter that is NaN), so that the losses of all ranks are
    looked at too. With fp16 the gradient is left to the gradient scaler, which skips steps whose gradient overflows.

    Args:
        tasks (list[str]): Names of the model's tasks.
        accelerator (Accelerator): Gathers the flags, and holds the gradient scaler of fp16.
        dataset: What is trained on; if it is a `TaskSamplingDataset`, the message names rows.
    """

    def __init__(self, tasks: list[str], accelerator: Accelerator, dataset: Any = None):
        self.tasks = tasks
        self.accelerator = accelerator
        self.dataset = dataset
        self._flags: list[Tensor] = []  # a micro-batch each: bool (tasks + 1,), the last one of the loss as a whole

    def watch(self, loss: Tensor, task_losses: dict[str, Tensor]) -> None:
        """Remember whether a micro-batch's losses (scalars) are finite, without waiting for them."""
        absent = torch.zeros_like(loss)
        losses = [*(task_losses.get(name, absent) for name in self.tasks), loss.detach()]
        self._flags.append(~torch.stack([one.float() for one in losses]).isfinite())

    def check(self, gradient_norm: Tensor | float, global_step: int) -> None:
        """Raise, on every rank, unless all that was watched since the last check and the gradient norm are finite.

        Args:
            gradient_norm (Tensor): Over all parameters, before clipping.
            global_step (int): Optimizer steps done.

        Raises:
            FloatingPointError: naming the step, what is not finite, and the rows that were read.
        """
        losses = torch.stack(self._flags)  # (micro-batches, tasks + 1)
        self._flags.clear()
        gradient = ~torch.as_tensor(gradient_norm, device=losses.device).isfinite()
        if self.accelerator.scaler is not None:
            gradient = torch.zeros_like(gradient)
        flags = torch.cat([losses.flatten(), gradient.view(1)])
        by_rank = self.accelerator.gather(flags[None]).cpu()  # (ranks, micro-batches * (tasks + 1) + 1)
        if by_rank.any():
            found = by_rank[:, :-1].view(-1, *losses.shape).transpose(0, 1)  # (micro-batches, ranks, tasks + 1)
            raise FloatingPointError(self._message(found, float(gradient_norm), global_step))

    def _message(self, found: Tensor, gradient_norm: float, global_step: int) -> str:
        """What happened, where, and what to do; `found` (micro-batches, ranks, tasks + 1), bool."""
        tasks = [name for name, is_bad in zip(self.tasks, found.any(0).any(0).tolist(), strict=False) if is_bad]
        if tasks:
            ranks = found.any(-1).any(0).nonzero().flatten().tolist()
            what = f"the loss of {', '.join(map(repr, tasks))} is not finite on rank {', '.join(map(str, ranks))}"
        elif found.any():
            what = "the loss is not finite though no task's loss is: a parameter is NaN or infinite"
        else:
            what = "every loss is finite, but the gradient is not"
        return (
            f"Optimizer step {global_step + 1}: {what} (gradient norm {gradient_norm}). Training stops before this "
            "changes a weight; nothing is saved after it, and the checkpoints saved before stay.\n"
            f"{self._rows(found, tasks, global_step)}"
            "Look for odd labels or texts in the rows read. If they are as they should be, training diverges: lower "
            "learning_rate, lengthen warmup_steps, or train without bf16."
        )

    def _rows(self, found: Tensor, tasks: list[str], global_step: int) -> str:
        """A line a dataset with the source rows of the micro-batches whose losses are not finite, or of the step.

        Where tasks' losses are not finite, only the items that carry a label of one of them.
        """
        if not isinstance(self.dataset, TaskSamplingDataset):
            return ""
        bad = found.any(-1).flatten()  # in the order of the plan: rank r of W reads micro-batches r, r + W, ...
        items = self.dataset.step_items(global_step)
        micro_batches = bad.repeat_interleave(len(items) // len(bad)).tolist() if bad.any() else [True] * len(items)
        rows = defaultdict(list)
        for (name, feature), is_bad in zip(items, micro_batches, strict=True):
            if is_bad and (not tasks or any(feature["labels"].get(task) is not None for task in tasks)):
                rows[name].append(str(feature.get("row", "without a number")))
        return "".join(f"- {name}: {listed(numbers)}\n" for name, numbers in rows.items())


def listed(rows: list[str]) -> str:
    """`rows 3, 17`, or where there are many, the first of them and how many more."""
    more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
    return f"row{'s' * (len(rows) > 1)} {', '.join(rows[:ROWS_NAMED])}{more}"
