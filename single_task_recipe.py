"""From a recipe of several tasks, the run of one of them alone under the same budget.

The same budget means: the task alone draws as many of its rows as it drew in the run of all tasks (so as many passes
over the same rows), in batches of the same size, with the same learning rates, schedule, seed and everything else, but
without a teacher (`distill_from`). Its optimizer steps follow: rows drawn / rows a step. So the models of all tasks
alone take together as many steps, and see as many rows, as the one model of all tasks; each of them is evaluated as
often as that one, and its best checkpoint is chosen by its own score. Nothing is read or trained here.

    budget = budget_of("ner", sampling, args)           # `sampling` as the run of all tasks wrote it
    recipe = recipe_alone(read_recipe("recipes/x.yaml"), "ner", data_args.tasks)
    options = options_alone(["--nano"], "ner", data_args.tasks, budget, args)
"""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from arguments_multitask import MAPPING_ARGUMENTS, MultiTaskTrainingArguments
from configuration_multitask import TEACHER_LOSS_FIELDS
from recipe_arguments import take_overrides

BEST_OF_ANY = ("eval_mean_score", "eval_loss")
"""Metrics that choose a checkpoint whatever the tasks are."""


@dataclass(frozen=True)
class Budget:
    """What a task gets, together with others or alone.

    Attributes:
        rows (int): Training rows it has.
        drawn (int): Rows that training draws, those drawn again counted again.
        steps (int): Optimizer steps of the task alone.
        all_steps (int): Optimizer steps of the run of all tasks.
    """

    rows: int
    drawn: int
    steps: int
    all_steps: int

    @property
    def passes(self) -> float:
        """How often each row is drawn, on average."""
        return self.drawn / self.rows


def budget_of(task: str, sampling: dict[str, Any], args: MultiTaskTrainingArguments) -> Budget:
    """What a task got in the run of all tasks.

    Args:
        task (str): The task; of aligned tasks each has the rows of all of them.
        sampling (dict): The plan of that run, as `run_facts.json` holds it.
        args (MultiTaskTrainingArguments): The arguments of that run.
    """
    plan = next(one for one in sampling["tasks"] if task in one["name"].split("+"))
    planned = sampling["steps_per_epoch"] * sampling["num_epochs"]
    all_steps = args.max_steps if args.max_steps > 0 else planned
    drawn = round(plan["drawn"] * all_steps / planned)
    return Budget(plan["rows"], drawn, max(1, round(drawn / sampling["rows_per_step"])), all_steps)


def recipe_alone(recipe: dict[str, Any], task: str, tasks: Collection[str]) -> dict[str, Any]:
    """The recipe of `tasks` with one of them left; what names the others, and its teacher, are gone."""
    others = set(tasks) - {task}
    named = (*MAPPING_ARGUMENTS, "freeze")
    alone = {key: without(value, others) if key in named else value for key, value in recipe.items()}
    alone["tasks"] = {task: untaught(alone["tasks"][task])}
    return {key: value for key, value in alone.items() if key != "task_name" or value == task}


def untaught(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry under `tasks:` that learns from labels alone: what sharing is compared with has no teacher."""
    entry = without(entry, {"distill_from"})
    return entry | ({"loss": without(entry["loss"], TEACHER_LOSS_FIELDS)} if entry.get("loss") else {})


def options_alone(
    words: Sequence[str], task: str, tasks: Collection[str], budget: Budget, args: MultiTaskTrainingArguments
) -> list[str]:
    """The command line of a task alone: the words of the run of all tasks, without other tasks, and its budget.

    Args:
        words (Sequence[str]): Arguments of `train_hf.py` behind the recipe, as they were given.
        task (str): The task.
        tasks (Collection): All tasks.
        budget (Budget): From `budget_of`.
        args (MultiTaskTrainingArguments): What the words and the recipe came to.
    """
    others = set(tasks) - {task}
    plain, overrides = take_overrides(list(words))
    dropped = TEACHER_LOSS_FIELDS | {"distill_from"}
    own = [(path, value) for path, value in overrides if not others & set(path[1:2]) and path[-1] not in dropped]
    options = [*plain, *(f"--{'.'.join(path)}={json.dumps(without(value, others))}" for path, value in own)]
    options.append(f"--max_steps={budget.steps}")
    if others & set(args.freeze):
        options.append(f"--freeze={','.join(without(args.freeze, others))}")
    if args.metric_for_best_model is not None and args.metric_for_best_model not in BEST_OF_ANY:
        options.append("--metric_for_best_model=eval_mean_score")
    if args.warmup_steps >= 1:
        options.append(f"--warmup_steps={max(1, round(args.warmup_steps * budget.steps / budget.all_steps))}")
    return [*options, *evaluations(budget, args)]


def without(value: Any, others: Collection[str]) -> Any:
    """A mapping or a list without what the others are named by; any other value as it is."""
    if isinstance(value, dict):
        return {name: entry for name, entry in value.items() if name not in others}
    return [part for part in value if part not in others] if isinstance(value, list) else value


def evaluations(budget: Budget, args: MultiTaskTrainingArguments) -> list[str]:
    """Arguments that evaluate and save a task alone as often as all tasks together, at the same shares of the run."""
    options = []
    strategies = {what: getattr(args, f"{what}_strategy").value for what in ("eval", "save")}
    by_steps = [what for what, strategy in strategies.items() if strategy in ("epoch", "steps")]
    for what in by_steps:
        rhythm = by_steps[0]  # a checkpoint that is not evaluated could not be the best one
        share = 1 / max(1, round(args.num_train_epochs or 1))
        if strategies[rhythm] == "steps":
            steps = getattr(args, f"{rhythm}_steps")
            share = steps if steps < 1 else steps / budget.all_steps
        options += [f"--{what}_strategy=steps", f"--{what}_steps={max(1, math.ceil(budget.steps * share - 1e-9))}"]
    return options
