"""Command: train each task of a recipe alone and all of them together, and say for each what sharing gained or cost.

    python compare_hf.py recipes/six_tasks.yaml --seeds 3 --data_root DATA --output_dir outputs/compare_six_tasks
    python compare_hf.py recipes/quickstart.yaml --seeds 1 --nano                         # a minute or two
    python compare_hf.py RECIPE --seeds 3 --report docs/fine_tuning_report.md --learning_rate 5e-5

Every training is `train_hf.py` in a process of its own, under the same budget (`single_task_recipe` says which). A
finished one is kept with its results, so that a comparison that was stopped goes on where it was, and a killed training
from its last checkpoint. What the command does not know goes to `train_hf.py`. `--output_dir` gets `report.md`,
`comparison.json` and pictures; the models trained together get the table for their cards.
"""

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import Any

import transformers
import yaml

from arguments_multitask import DataArguments, MultiTaskTrainingArguments
from command_help import CommandParser
from comparison_report import (
    FILE_NAME,
    insert_report,
    mean_cosines,
    strongest_opponent,
    summarise_cost,
    summarise_task,
    write_report,
)
from configuration_multitask import FEATURE_EXTRACTION
from gradient_cosines import FILE_NAME as COSINES_FILE
from input_errors import one_line_errors
from model_card import read_json, write_card
from recipe_arguments import parse_arguments, read_recipe
from recipe_runs import Run, hardware, without_paths
from saved_model import open_model
from single_task_recipe import Budget, budget_of, options_alone, recipe_alone
from task_comparison import RESAMPLES, compare_task
from task_predictions import predictions_path, read_predictions


def parse_comparison(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command's arguments, and those that go to `train_hf.py`."""
    parser = CommandParser(doc=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", help="Recipe of several tasks; further arguments go to train_hf.py.")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="Train with seeds 1 to N (default: 3).")
    parser.add_argument("--output_dir", help="Folder of runs and report (default: outputs/compare_<recipe>).")
    parser.add_argument(
        "--report", metavar="FILE.md", help="Document that also gets the report, by recipe (default: none)."
    )
    parser.add_argument(
        "--gradient_cosines",
        type=float,
        default=0.1,
        metavar="STEPS",
        help="Steps between two measurements of the tasks' gradients; below 1, a share of all steps; 0, never "
        "(default: 0.1).",
    )
    parser.add_argument(
        "--resamples", type=int, default=RESAMPLES, help=f"Resamples of the bootstrap (default: {RESAMPLES})."
    )
    parser.add_argument(
        "--overwrite_output", action="store_true", help="Train anew what was trained with another recipe or arguments."
    )
    given, words = parser.parse_known_args(argv)
    if given.seeds < 1 or given.resamples < 1 or given.gradient_cosines < 0:
        parser.error("--seeds and --resamples are at least 1, --gradient_cosines at least 0.")
    given.output_dir = Path(given.output_dir or f"outputs/compare_{Path(given.recipe).stem}")
    return given, words


def check_comparable(recipe: str, data_args: DataArguments, args: MultiTaskTrainingArguments) -> None:
    """Raise ValueError for a recipe of one task, and for arguments that a comparison cannot hand to every run."""
    if len(data_args.tasks) < 2:
        raise ValueError(f"A comparison needs several tasks; {recipe} has {', '.join(data_args.tasks)} alone.")
    switches = {"dry_run": data_args.dry_run, "push_to_hub": args.push_to_hub}
    switches["resume_from_checkpoint"] = bool(args.resume_from_checkpoint)
    switches["stages"] = bool(args.stages)  # they end at epochs of all tasks, which a task alone does not have
    if given := [name for name, value in switches.items() if value]:
        raise ValueError(
            f"A comparison trains every run to its end in a folder of its own; leave {', '.join(given)} away. "
            "(A comparison that was stopped goes on by itself; publish_hf.py publishes a model of it.)"
        )


def together(given: argparse.Namespace, words: list[str], seed: int) -> Run:
    """The run of all tasks with a seed."""
    measured = [f"--gradient_cosines={given.gradient_cosines}"] if given.gradient_cosines else []
    name = f"together-seed{seed}"
    return Run(name, given.output_dir / name, given.recipe, [*words, *measured, f"--seed={seed}"])


def compared_tasks(
    folder: Path, data_args: DataArguments, scored: dict[str, Any], sampling: dict[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """The tasks that are trained alone, and task -> reason for each of the others.

    Args:
        folder (Path): The model that was trained on all of them.
        data_args (DataArguments): The recipe's tasks.
        scored (dict): The protocol of its results: the tasks with rows of the scored split.
        sampling (dict): The plan of its training, as `run_facts.json` holds it.

    Raises:
        ValueError: if there are not two tasks.
    """
    specs = read_json(folder / "config.json")["tasks"]
    trained = {name for one in sampling["tasks"] for name in one["name"].split("+")}
    reasons = {
        "it keeps the embedding for the others' sake": lambda name: specs[name]["kind"] == FEATURE_EXTRACTION,
        "its loss has weight 0, so it is only evaluated": lambda name: specs[name]["loss"]["weight"] == 0,
        "it has no training rows, so it is only scored": lambda name: name not in trained,
        "it has no rows of the split that the others are scored on": lambda name: name not in scored,
    }
    left_out = {name: reason for reason, holds in reversed(reasons.items()) for name in data_args.tasks if holds(name)}
    return [name for name in data_args.tasks if name not in left_out], left_out


def alone(
    given: argparse.Namespace,
    words: list[str],
    arguments: tuple[DataArguments, MultiTaskTrainingArguments],
    task: str,
    budget: Budget,
    seed: int,
) -> Run:
    """The run of one task with a seed; writes its recipe."""
    data_args, args = arguments
    recipe = recipe_alone(read_recipe(given.recipe), task, data_args.tasks)
    recipe.pop("gradient_cosines", None)
    path = given.output_dir / "recipes" / f"{task}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    options = [*options_alone(words, task, data_args.tasks, budget, args), f"--seed={seed}"]
    name = f"{task}-seed{seed}"
    return Run(name, given.output_dir / name, str(path), options)


def finish(run: Run, given: argparse.Namespace) -> dict[str, Any]:
    """Finish a run, saying so; its result with what measuring gradients took."""
    kept = run.result is not None
    if not kept:
        print(f"{run.name}: {run.command}", flush=True)
    result = run.finish(given.overwrite_output)
    seconds = result["train_seconds"]
    took = "kept" if kept else "done" if seconds is None else f"{seconds:,.0f} s of training"
    print(f"{run.name}: {took}, mean score {result['scores'][result['split'] + '_mean_score']:.4f}", flush=True)
    return result | {"measuring_seconds": read_json(run.folder / COSINES_FILE).get("seconds", 0.0)}


def print_budget(budgets: dict[str, Budget], left_out: dict[str, str]) -> None:
    """What each task gets alone."""
    for name, one in budgets.items():
        print(
            f"Budget of {name}: {one.rows:,} rows, {one.drawn:,} drawn ({one.passes:.2f} passes), {one.steps:,} steps "
            f"alone; {one.all_steps:,} together"
        )
    for name, reason in left_out.items():
        print(f"Not compared: {name}, {reason}")


def write_cards(runs: list[Run], given: argparse.Namespace) -> None:
    """Give the models that were trained together the table, and write their cards again."""
    for run in runs:
        (run.folder / FILE_NAME).write_bytes((given.output_dir / FILE_NAME).read_bytes())
        model, tokenizer = open_model(str(run.folder), offline=True)
        write_card(run.folder, run.folder.name, partial(model.predict, tokenizer=tokenizer, bf16=False))


def compare(given: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    """Train what is left to train, and compare; returns what `comparison.json` holds."""
    parsed = parse_arguments([given.recipe, *words, "--output_dir", str(given.output_dir)])[1:]
    check_comparable(given.recipe, *parsed)
    seeds = range(1, given.seeds + 1)
    shared = [together(given, words, seed) for seed in seeds]
    first = finish(shared[0], given)
    tasks, left_out = compared_tasks(shared[0].folder, parsed[0], first["protocol"], first["sampling"])
    budgets = {task: budget_of(task, first["sampling"], parsed[1]) for task in tasks}
    print_budget(budgets, left_out)
    singles = {task: [alone(given, words, parsed, task, budgets[task], seed) for seed in seeds] for task in tasks}
    by_seed = [runs[place] for place in range(len(seeds)) for runs in (shared, *singles.values())]
    results = {shared[0].name: first} | {run.name: finish(run, given) for run in by_seed[1:]}
    cosines = mean_cosines([read_json(run.folder / COSINES_FILE) for run in shared])

    def answers(run: Run, task: str) -> Any:
        return read_predictions(predictions_path(run.folder, first["split"], task))

    comparisons = {
        task: compare_task(
            [(answers(single, task), answers(multi, task)) for single, multi in zip(runs, shared, strict=True)],
            given.resamples,
        )
        for task, runs in singles.items()
    }
    return {
        "recipe": Path(given.recipe).stem,
        "command": " ".join(
            ["python", *without_paths(["compare_hf.py", given.recipe, f"--seeds={given.seeds}", *words])]
        ),
        "seeds": list(seeds),
        "split": first["split"],
        "tasks": {
            task: summarise_task(one, budgets[task], strongest_opponent(task, cosines))
            for task, one in comparisons.items()
        },
        "not_compared": left_out,
        "cost": summarise_cost(
            {task: [results[run.name] for run in runs] for task, runs in singles.items()},
            [results[run.name] for run in shared],
        ),
        "gradient_cosines": cosines,
        "protocol": {task: first["protocol"][task] for task in tasks},
        "hardware": hardware(),
        "runs": [
            {"name": name, **{key: one[key] for key in ("command", "train_seconds", "parameters", "scores")}}
            for name, one in results.items()
        ],
    }


def main(argv: list[str] | None = None) -> None:
    """Parse, train, compare, report."""
    given, words = parse_comparison(argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers.utils.logging.disable_progress_bar()  # of loading weights
    with one_line_errors("compare_hf.py"):
        facts = compare(given, words)
    write_report(facts, given.output_dir)
    if given.report:
        insert_report(facts, given.output_dir, Path(given.report))
    write_cards([together(given, words, seed) for seed in facts["seeds"]], given)
    for task, one in facts["tasks"].items():
        print(f"{task:<16} {one['verdict']:<14} {one['evidence']}; {one['advice']}")
    print(f"Report in {given.output_dir / 'report.md'}")


if __name__ == "__main__":
    main()
