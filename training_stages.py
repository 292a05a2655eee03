"""Gradual unfreezing: a run in stages, each of which leaves other parts of the model frozen.

Thawing parameters inside one `Trainer.train()` makes ranks diverge without an error: DDP averages the gradients of
those that were trainable when it wrapped the model. So each stage is a `train()` call of its own, which wraps the model
anew and goes on from the checkpoint at the end of the stage before, as a killed run does: steps, epochs, order of rows,
random state, logs and the best checkpoint go on, and a run that is killed in any stage is resumed exactly. The
optimizer has other parameters in each stage; those that were trained in the stage before keep their moments, so that
heads that have settled do not jump when the encoder thaws, and a border between stages that freeze the same changes
nothing. The learning rate follows one schedule over all stages.

It freezes what `MultiTaskModel.freeze` knows by a name, and chooses no rates (`parameter_groups`). ULMFiT thaws one
layer an epoch, from the top (Howard and Ruder 2018, section 3.3, https://arxiv.org/abs/1801.06146).

    stages = TrainingStages(model, [{"epochs": 1, "freeze": ["encoder"]}, {"epochs": 2, "freeze": []}], steps_per_epoch)
    output = train_in_stages(trainer, stages)
"""

from itertools import accumulate
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from parameter_groups import describe_groups, groups_of_run
from trained_start import is_trained


class TrainingStages:
    """The stages of a run: where each ends, and what of the model is frozen in it.

    What is frozen in the model when this is made stays so in all stages (`freeze` of the run, heads of tasks that are
    not trained). A stage's list is all that is frozen besides: parts may thaw from stage to stage, or freeze again.

    Args:
        model (MultiTaskPreTrainedModel): Its `requires_grad` flags are set.
        stages (list): `{"epochs": N, "freeze": [parts]}` each, in their order.
        steps_per_epoch (int): Optimizer steps.

    Attributes:
        ends (list[int]): The optimizer step, counted through the whole run, at which each stage is over.
    """

    def __init__(self, model: Any, stages: list[dict[str, Any]], steps_per_epoch: int):
        self.model, self.stages = model, stages
        self.ends = list(accumulate(stage["epochs"] * steps_per_epoch for stage in stages))
        self._learning = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def enter(self, index: int) -> None:
        """Freeze what is frozen in a stage, counted from 0, and nothing that was frozen in another.

        Raises:
            ValueError: for an unknown part, naming the stage.
        """
        for parameter in self._learning:
            parameter.requires_grad_(True)
        try:
            self.model.freeze(self.stages[index]["freeze"])
        except ValueError as error:
            raise ValueError(f"{self.name(index)}: {error}") from error

    def name(self, index: int) -> str:
        """`Stage 1 of 3`."""
        return f"Stage {index + 1} of {len(self.stages)}"

    def at(self, step: int) -> int:
        """The stage that comes after an optimizer step; the last one where none does."""
        return next((index for index, end in enumerate(self.ends) if step < end), len(self.ends) - 1)


def describe_training(
    model: Any, args: TrainingArguments, stages: TrainingStages | None, specs: dict[str, Any]
) -> list[str]:
    """What is trained at which rate: a table, with a line above it for each stage.

    Raises:
        ValueError: for a stage that freezes an unknown part or trains nothing, or a task that none of them trains.
    """
    if stages is None:
        return [describe_groups(model, groups_of_run(model, args))]
    described, resting = [], dict.fromkeys(specs, 0)
    for index, stage in enumerate(stages.stages):
        stages.enter(index)
        rest = [name for name, spec in specs.items() if not is_trained(name, spec, model)]
        resting |= {name: resting[name] + 1 for name in rest}
        if len(rest) == len(specs):
            raise ValueError(f"{stages.name(index)} trains nothing that a task depends on. Freeze less in it.")
        waits = f"; nothing of {', '.join(rest)} is trained" if rest else ""
        frozen = ", ".join(stage["freeze"]) or "nothing"
        described += [f"{stages.name(index)}, to step {stages.ends[index]}: frozen {frozen}{waits}"]
        described += [describe_groups(model, groups_of_run(model, args))]
    for name, count in resting.items():
        if count == len(stages.stages):
            raise ValueError(f"Task {name!r} is trained in no stage: all that it depends on is frozen. Freeze less.")
    return described


class StageEnd(TrainerCallback):
    """Ends `train()` at a step, the last one of an epoch, with a checkpoint that holds the epoch's evaluation.

    Attributes:
        step (int): The step; None for no end but the run's.
    """

    step: int | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save once, after the evaluation: a checkpoint is not written over, which a kill could interrupt."""
        control.should_save = control.should_save and state.global_step != self.step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save, whatever `save_strategy` says, and stop."""
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Forget the best checkpoint, which is in the file: `train()` would load it, or delete this one beside it."""
        if state.global_step == self.step:
            state.best_model_checkpoint = None


def train_in_stages(trainer: Trainer, stages: TrainingStages, checkpoint: str | None = None) -> TrainOutput:
    """Train all stages, or from a checkpoint on those that are left.

    Only the last stage loads the best model, of all stages, if `load_best_model_at_end`.

    Args:
        trainer (MultiTaskTrainer): Of the model of `stages`; its `train` was not called yet.
        stages (TrainingStages): The stages.
        checkpoint (str): The folder of a checkpoint of this run, in any stage or at its end.

    Returns:
        The step and the mean loss at the end; times and rates are those of all `train()` calls together.

    Raises:
        ValueError: under FSDP or DeepSpeed, which take the model apart for good.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            "Stages are for one process or DDP: FSDP and DeepSpeed cannot wrap a model again. Leave them away."
        )
    end = StageEnd()
    trainer.add_callback(end)
    outputs: list[TrainOutput] = []
    steps = [_step_of(checkpoint)]
    for index in range(stages.at(steps[0]), len(stages.ends)):
        stages.enter(index)
        unwrap(trainer)
        end.step = None if index == len(stages.ends) - 1 else stages.ends[index]
        outputs.append(trainer.train(resume_from_checkpoint=checkpoint))
        steps.append(trainer.state.global_step)
        if steps[-1] != end.step:
            break  # the last stage, or another callback has ended the run
        trainer.accelerator.wait_for_everyone()  # the first rank writes the checkpoint's last file
        checkpoint = str(Path(trainer.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{end.step}")
    return combined(outputs, [after - before for before, after in zip(steps, steps[1:], strict=False)])


def _step_of(checkpoint: str | None) -> int:
    """The optimizer steps done at a checkpoint."""
    return TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step if checkpoint else 0


def unwrap(trainer: Trainer) -> None:
    """Let the next `train()` wrap the model (DDP) and make the optimizer for what is trainable then.

    Trainer keeps both from call to call: with the old wrapper, ranks would not average the gradients of what thawed.
    Autocast around `forward` stays: accelerate would not put it back on a model that it has prepared before.
    """
    trainer.model_wrapped, trainer.optimizer = trainer.model, None


def combined(outputs: list[TrainOutput], steps: list[int]) -> TrainOutput:
    """The output of several `train()` calls as that of one: seconds in sum, means over the seconds and the steps."""
    metrics = dict(outputs[-1].metrics)
    seconds = [output.metrics["train_runtime"] for output in outputs]
    metrics["train_runtime"] = sum(seconds)
    for name in [name for name in metrics if name.endswith("_per_second")]:
        done = sum(one.metrics[name] * time for one, time in zip(outputs, seconds, strict=True))
        metrics[name] = round(done / sum(seconds), 3)
    loss = sum(one.training_loss * count for one, count in zip(outputs, steps, strict=True)) / max(1, sum(steps))
    metrics["train_loss"] = loss
    return TrainOutput(outputs[-1].global_step, loss, metrics)
