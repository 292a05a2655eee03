"""The thin `Trainer` subclass and its callbacks: what the stock Trainer cannot know about several tasks.

`MultiTaskTrainer` adds each task's loss and share to the log, the mean over tasks to the evaluation, and learning rates
by part. Nothing needs it: the stock `Trainer` trains the same model on the same data, and
`SamplingGuard` works there too. It imports no model.

    trainer = MultiTaskTrainer(model=model, args=args, data_collator=collator, train_dataset=sampling_dataset,
                               eval_dataset={"topic": topic, "ner": ner}, callbacks=[SamplingGuard(sampling_dataset)])
"""

import logging
from collections import defaultdict
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import OPTIMIZER_NAME
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.training_args import ParallelMode

from hub_folder import copy_published
from lora_adapters import ADAPTERS, has_adapters, load_adapters, save_adapters
from model_card import write_card
from non_finite_guard import NonFiniteGuard
from parameter_groups import carried_over, groups_of_run, trained_names
from run_checkpoints import INCOMPLETE_MARKER, SigtermCheckpoint, marked_incomplete
from task_balancing import DynamicWeightAveraging
from task_metrics import mean_score
from task_sampler import TaskSamplingDataset

logger = logging.getLogger(__name__)


class SamplingGuard(TrainerCallback):
    """Refuses settings that would silently destroy the sampling plan, and keeps the plan's epoch right on resume.

    Args:
        dataset (TaskSamplingDataset): The training dataset.

    Raises:
        ValueError: at the start of training, naming the argument, its value and the one to set.
    """

    def __init__(self, dataset: TaskSamplingDataset):
        self.dataset = dataset

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the arguments."""
        self.check(args)

    def check(self, args: TrainingArguments) -> None:
        """Raise ValueError naming every argument that would change the plan."""
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        refused = {
            f"train_sampling_strategy={args.train_sampling_strategy!r} reorders the plan; set it to 'sequential'.": (
                args.train_sampling_strategy != "sequential"
            ),
            "label_smoothing_factor replaces the tasks' own losses; set loss.label_smoothing of a task.": (
                args.label_smoothing_factor != 0.0
            ),
            "split_batches cuts each batch over the ranks, so a step has fewer rows than planned; leave it off.": (
                args.accelerator_config.split_batches
            ),
            "nn.DataParallel cuts a batch between items and their pairs; start one process a GPU: accelerate launch.": (
                args.parallel_mode == ParallelMode.NOT_DISTRIBUTED
            ),
            "auto_find_batch_size changes the rows of a step under the plan; set per_device_train_batch_size.": (
                args.auto_find_batch_size
            ),
            f"The plan has {self.dataset.rows_per_step} rows a step, but batch size x accumulation x processes is "
            f"{rows}; make TaskSamplingDataset(rows_per_step=...) that product.": rows != self.dataset.rows_per_step,
        }
        problems = [message for message, is_wrong in refused.items() if is_wrong]
        if problems:
            raise ValueError("These settings would change the training plan:\n- " + "\n- ".join(problems))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the dataset's epoch, also on a resume in the middle of one, whichever data loader reads it."""
        self.dataset.set_epoch(int(state.epoch or 0))


class TaskEarlyStopping(EarlyStoppingCallback):
    """Early stopping that waits for the evaluation that holds `metric_for_best_model`.

    Evaluation by task reports one task at a time; the stock callback takes a report without its metric for a mistake.
    A resumed run goes on counting; the stock callback begins anew, so that it would stop later than the unbroken run.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the count of the checkpoint, if there is one."""
        super().on_train_begin(args, state, control, **kwargs)
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Count an evaluation without improvement, if it is the one that reports the metric."""
        if f"eval_{(args.metric_for_best_model or '').removeprefix('eval_')}" in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


class MultiTaskTrainer(Trainer):
    """The stock Trainer, with every task's loss in the log, the mean over tasks in the evaluation, and rates by part.

    It stops, on every rank, before a loss or gradient that is not finite changes a weight (`NonFiniteGuard`).

    Logged in training beside `loss`: `loss_<task>`, the mean over the task's items since the last log, on all ranks,
    before its weight; `share_<task>`, its share (0-1) of the items. Evaluation of `{task: dataset}` adds
    `eval_mean_score` (see `task_metrics.mean_score`) and `eval_loss`, the mean of the tasks' losses; both can be
    `metric_for_best_model`. Evaluation on several ranks gives the metrics, counts and losses of one; only a loss of
    whole batches (CoSENT) sees the rows that fill up the last batch. Evaluating draws no random number, so that it
    changes no training step.

    With `loss_balancing` the log also has `weight_<task>`: what the task's loss is multiplied by at that step (see
    `task_balancing`).

    Checkpoints are marked as incomplete until every rank has written its part (see `run_checkpoints`).

    Args:
        *args: As `Trainer`.
        recipe (dict): What `run_checkpoints.describe_run` says of this run, written into every checkpoint.
        **kwargs: As `Trainer`.
    """

    def __init__(self, *args: Any, recipe: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        if self.args.enable_jit_checkpoint:
            self.add_callback(SigtermCheckpoint(self.pop_callback(JITCheckpointCallback)))
        self._loss_sums: dict[str, Any] = defaultdict(float)
        self._item_sums: dict[str, Any] = defaultdict(int)
        self._balancing = getattr(self.args, "loss_balancing", "none")
        if self._balancing == "dwa":
            self.add_callback(DynamicWeightAveraging(list(self.model.config.tasks)))
        elif self._balancing == "uncertainty" and not self.model.config.learned_loss_weights:
            raise ValueError("loss_balancing uncertainty trains weights of the model: model.learn_loss_weights(True).")
        self._guard = NonFiniteGuard(list(self.model.config.tasks), self.accelerator, self.train_dataset)

    def get_train_dataloader(self) -> Any:
        """The stock data loader, drawing its workers' seeds from a generator of its own.

        It draws once for every iterator, so not as often with persistent workers as after a resume; from the global
        generator that would move all later dropout.
        """
        loader = super().get_train_dataloader()
        loader.base_dataloader.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The model's loss; in training the tasks' losses are remembered for the next log.

        In evaluation it is the mean over the batch's items on all ranks, without those that fill up the last batch.
        """
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            self._guard.watch(loss, outputs["task_losses"])
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, DynamicWeightAveraging):
                    callback.watch(outputs["task_losses"], outputs["task_items"])
            for name, task_loss in outputs["task_losses"].items():
                items = outputs["task_items"][name]
                self._loss_sums[name] += task_loss * items
                self._item_sums[name] += items
        else:
            loss = self.accelerator.gather_for_metrics(outputs["item_losses"]).mean()
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm, which Trainer asks for just before the optimizer's step, if it and the loss are finite.

        Raises:
            FloatingPointError: if they are not; see `NonFiniteGuard`.
        """
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self._guard.check(grad_norm, self.state.global_step)
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, a training log with the tasks' losses and shares added."""
        if "loss" in logs:
            logs = {**logs, **self._task_logs()}
        super().log(logs, start_time)

    def _task_logs(self) -> dict[str, float]:
        """`loss_<task>` and `share_<task>` since the last log, over all ranks, which all have to call this."""
        names = list(self.model.config.tasks)
        sums = torch.zeros(2, len(names))  # float32: Apple's MPS has no float64
        for column, name in enumerate(names):
            sums[0, column], sums[1, column] = float(self._loss_sums[name]), float(self._item_sums[name])
        losses, items = self.accelerator.reduce(sums.to(self.args.device), reduction="sum").tolist()
        self._loss_sums.clear()
        self._item_sums.clear()
        present = [(name, total, count) for name, total, count in zip(names, losses, items, strict=True) if count]
        shares = {f"share_{name}": count / sum(items) for name, _, count in present}
        logs = {f"loss_{name}": total / count for name, total, count in present} | shares
        if self._balancing != "none":
            weights = self.accelerator.unwrap_model(self.model).loss_weights()
            logs |= {f"weight_{name}": weights[name] for name, _, _ in present}
        return logs

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate; over `{task: dataset}` also the mean over tasks, which callbacks and logs see as any metric."""
        with torch.random.fork_rng(devices=[]):  # a data loader draws a seed whenever it is read
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(datasets, dict):
            return metrics
        losses = [metrics[f"{metric_key_prefix}_{name}_loss"] for name in datasets]
        means = {f"{metric_key_prefix}_loss": sum(losses) / len(losses)}
        if self.compute_metrics is not None:
            tasks = {name: spec for name, spec in self.model.config.tasks.items() if name in datasets}
            means[f"{metric_key_prefix}_mean_score"] = mean_score(metrics, tasks, metric_key_prefix)
        self.log(dict(means))
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, means)
        return metrics | means

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as ever (adapters appear merged, see `lora_adapters`), and adapters as they are in a folder beside."""
        super()._save(output_dir, state_dict)
        if has_adapters(self.model) and self.args.should_save:
            save_adapters(self.model, Path(output_dir or self.args.output_dir) / ADAPTERS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load weights; of a model with adapters these, which go on where they stood, not the merged ones."""
        if has_adapters(self.model):
            load_adapters(self.model, Path(resume_from_checkpoint) / ADAPTERS)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Load the best checkpoint's weights, adapters as above."""
        if has_adapters(self.model):
            load_adapters(self.model, Path(self.state.best_model_checkpoint) / ADAPTERS)
        else:
            super()._load_best_model()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, marked as incomplete from before its first file until after its last."""
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with marked_incomplete(folder, self.recipe) if self.args.should_save else nullcontext():
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the rank's random state and wait for the others': older checkpoints are deleted next."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write our card (see `model_card`), in place of the draft that Trainer would push; arguments are not read."""
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            # in float32, so that the card can be written again on other hardware and says the same
            answer = partial(self.model.predict, tokenizer=self.processing_class, bf16=False)
            write_card(folder, self.hub_model_id or folder.name, answer if self.processing_class else None)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push without the mark: all files are written, and the upload may read them later.

        The stock push takes weights, configuration and tokenizer from the checkpoint; whatever else a reader needs
        (code, card) stands in `output_dir` only at the end of the run, so it is put there before.
        """
        (Path(checkpoint_folder) / INCOMPLETE_MARKER).unlink(missing_ok=True)
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            folder = Path(self.args.output_dir)
            if not (folder / "config.json").exists():
                copy_published(Path(checkpoint_folder), folder)
                self.create_model_card()
        super()._push_from_checkpoint(checkpoint_folder)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: nn.Module | None = None) -> tuple[Any, Any]:
        """The stock optimizer over groups of our own (`parameter_groups`), unless it is one that makes its groups."""
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        makes_groups = is_optimizer_factory(optimizer_class) or options.keys() & {"params", "model", "optimizer_dict"}
        if model is not None and not makes_groups:
            options["params"] = groups_of_run(model, args)
        return optimizer_class, options

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both, also where other parameters are trained than when the checkpoint was written.

        What was trained then keeps its state (Adam's moments), what was not begins anew; the schedule goes on.
        """
        file = Path(checkpoint or "") / OPTIMIZER_NAME
        if not file.is_file():
            return super()._load_optimizer_and_scheduler(checkpoint)
        now = self.optimizer.state_dict()
        if trained_names(torch.load(file, mmap=True, weights_only=True)) in ([], trained_names(now)):
            return super()._load_optimizer_and_scheduler(checkpoint)
        saved = torch.load(file, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(carried_over(saved, now))
        self.lr_scheduler: Any = LambdaLR(self.optimizer, self.lr_scheduler.lr_lambdas, self.state.global_step - 1)
