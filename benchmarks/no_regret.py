"""Train a recipe with single-task models as teachers ("no-regret mode"), and compare it with them.

    python benchmarks/no_regret.py recipes/no_regret.yaml --data_root DATA --singles outputs/compare_six_tasks
    python benchmarks/no_regret.py RECIPE --data_root DATA --singles DIR --seeds 1 2 -- --learning_rate 1e-4

`--singles` is a folder of finished runs, `<task>-seed<S>` of each task alone, which `compare_hf.py` leaves (so may
`train_hf.py`). Each task's teacher is the model of that name and seed, that of feature-extraction tasks the model of
the task `--embedding_of`. Tasks without such a folder have no teacher. For each seed the recipe is trained twice:
`taught-seed<S>` with teachers, and as control `plain-seed<S>`, the plain sum of the same tasks in as many steps, with
neither teachers nor feature-extraction (weight 0); `--systems taught` leaves the control away. Finished runs are kept.
`together-seed<S>` is compared, too, where it stands: all tasks in the budget of the single ones.

`benchmarks/results/no_regret_differences.json` gets the test scores of all, and for each system the difference to the
single-task models with its paired-bootstrap interval, seeds pooled (`task_comparison`). Nothing is regretted if no
task's interval lies below -0.3 points and the mean score is not below theirs. The table in `docs/training.md`, between
two marks, is made of it (without `--data_root` nothing else is done). A test compares.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from recipe_results import (  # first: it puts the sources on the path
    ROOT,
    between_marks,
    hardware,
    parse_with_further,
    without_paths,
)

from arguments_multitask import DataArguments
from command_help import CommandParser
from configuration_multitask import FEATURE_EXTRACTION
from recipe_arguments import parse_arguments
from recipe_runs import train_apart
from task_comparison import compare_task
from task_metrics import primary_metric
from task_predictions import predictions_path, read_predictions

GUIDE = ROOT / "docs" / "training.md"
BEGIN, END = "<!-- benchmarks/no_regret.py -->", "<!-- end of no_regret -->"
REGRET = -0.003
"""Difference to a single-task model below which a task would have been better off alone."""
RESULTS = "all_results.json"
"""What a finished run leaves in its folder."""
SYSTEMS = {
    "together": "all tasks, budget of the single models",
    "plain": "the recipe, no teachers",
    "taught": "the recipe, with teachers",
}


def is_finished(folder: Path) -> bool:
    """Whether a run ended there."""
    return (folder / RESULTS).exists()


def facts_of(folder: Path) -> dict[str, Any]:
    """The primary test metric of each task of a finished run, its steps and its seconds."""
    results = json.loads((folder / RESULTS).read_text())
    tasks = json.loads((folder / "config.json").read_text())["tasks"]
    keys = {name: f"test_{name}_{primary_metric(spec)}" for name, spec in tasks.items()}
    return {
        "steps": json.loads((folder / "trainer_state.json").read_text())["max_steps"],
        "train_seconds": round(results["train_runtime"], 1),
        "scores": {name: results[key] for name, key in keys.items() if key in results},
    }


def words_of(system: str, data_args: DataArguments, given: argparse.Namespace, seed: int) -> list[str]:
    """The arguments that make a recipe the system: its teachers, or no feature-extraction."""
    words = []
    for name, task in data_args.tasks.items():
        keeps = task.kind == FEATURE_EXTRACTION
        teacher = given.singles / f"{given.embedding_of if keeps else name}-seed{seed}"
        if system == "plain" and keeps:
            words += [f"--tasks.{name}.loss.weight", "0"]
        elif system == "taught" and is_finished(teacher):
            words += [f"--tasks.{name}.distill_from", str(teacher)]
    return words


def run_seed(system: str, data_args: DataArguments, given: argparse.Namespace, further: list[str], seed: int) -> str:
    """Train a system, if that is not finished; its command."""
    folder = given.singles / f"{system}-seed{seed}"
    words = ["train_hf.py", given.recipe, "--seed", str(seed), *further, *words_of(system, data_args, given, seed)]
    words += ["--output_dir", str(folder)]
    if not is_finished(folder):
        train_apart([*words, "--overwrite_output"])
    return " ".join(["python", *(word.replace(str(given.singles), "SINGLES") for word in without_paths(words))])


def differences(system: str, tasks: list[str], singles: Path, seeds: list[int]) -> dict[str, Any]:
    """Task -> difference of a system to the single-task models, over some seeds."""

    def answers(name: str, task: str) -> Any:
        return read_predictions(predictions_path(singles / name, "test", task))

    found = {}
    for task in tasks:
        pairs = [(answers(f"{task}-seed{seed}", task), answers(f"{system}-seed{seed}", task)) for seed in seeds]
        one = compare_task(pairs)
        found[task] = {"difference": one.difference, "interval": one.interval, "by_seed": one.by_seed}
    return found


def judge(compared: dict[str, Any]) -> dict[str, Any]:
    """Whether anything is regretted: tasks whose whole interval lies below `REGRET`, and the mean difference."""
    mean = sum(one["difference"] for one in compared.values()) / len(compared)
    regretted = [task for task, one in compared.items() if one["interval"][1] < REGRET]
    return {"mean_difference": mean, "regretted": regretted, "no_regret": not regretted and mean >= 0}


def describe(system: str, tasks: list[str], singles: Path, seeds: list[int]) -> dict[str, Any]:
    """A system's runs over the seeds for which it is finished, compared and judged."""
    seeds = [seed for seed in seeds if is_finished(singles / f"{system}-seed{seed}")]
    compared = differences(system, tasks, singles, seeds)
    runs = {str(seed): facts_of(singles / f"{system}-seed{seed}") for seed in seeds}
    return {"seeds": seeds, "verdict": judge(compared), "compared": compared, "runs": runs}


def table(report: dict[str, Any]) -> str:
    """A line a system: each task's difference in points with its interval, then the mean; what is regretted in bold."""
    systems = report["systems"]
    tasks = list(next(iter(systems.values()))["compared"])
    lines = [
        f"| system | steps | {' | '.join(tasks)} | mean |",
        "|---" * (3 + len(tasks)) + "|",
        "| single models | - | "
        + " | ".join(
            f"{sum(one[task] for one in report['single'].values()) / len(report['single']):.4f}" for task in tasks
        )
        + " | - |",
    ]
    for name, one in systems.items():
        cells = []
        for task in tasks:
            mark = "**" if task in one["verdict"]["regretted"] else ""
            low, high = (100 * bound for bound in one["compared"][task]["interval"])
            cells.append(f"{mark}{100 * one['compared'][task]['difference']:+.2f}{mark} ({low:+.2f} to {high:+.2f})")
        steps = max(run["steps"] for run in one["runs"].values())
        seeds = ", ".join(map(str, one["seeds"]))
        mean = f"{100 * one['verdict']['mean_difference']:+.2f}"
        lines.append(f"| {SYSTEMS[name]} (seeds {seeds}) | {steps:,} | {' | '.join(cells)} | {mean} |")
    machine = f"{report['hardware']['cpu']}, {report['hardware']['threads']} thread(s)"
    return "\n".join([*lines, "", f"`{report['command']}`; {machine}."])


def guide_with(text: str, report: dict[str, Any]) -> str:
    """The guide with the table of a report between its marks."""
    return between_marks(text, BEGIN, END, table(report))


def measure(given: argparse.Namespace, further: list[str]) -> None:
    """Train what is not finished, compare after every run, and write the results file."""
    given.singles = Path(given.singles).resolve()
    shown = ["python", "benchmarks/no_regret.py", given.recipe, "--data_root", "DATA", "--singles", "SINGLES"]
    if given.embedding_of:
        shown += ["--embedding_of", given.embedding_of]
    shown += ["--seeds", *map(str, given.seeds), *(["--", *further] if further else [])]
    further = ["--data_root", str(Path(given.data_root).resolve()), *further]
    data_args = parse_arguments([given.recipe, *further])[1]
    tasks = [name for name in data_args.tasks if is_finished(given.singles / f"{name}-seed{given.seeds[0]}")]
    if not tasks:
        raise SystemExit(f"{given.singles} must hold <task>-seed{given.seeds[0]} with {RESULTS} for some task.")
    commands = {}
    for seed in given.seeds:
        for system in given.systems:
            commands[f"{system}-seed{seed}"] = run_seed(system, data_args, given, further, seed)
            found = [one for one in SYSTEMS if is_finished(given.singles / f"{one}-seed{given.seeds[0]}")]
            systems = {one: describe(one, tasks, given.singles, given.seeds) for one in found}
            single = {
                str(seed): {name: facts_of(given.singles / f"{name}-seed{seed}")["scores"][name] for name in tasks}
                for seed in given.seeds
            }
            report = {
                "recipe": given.recipe,
                "command": " ".join(shown),
                "hardware": hardware(),
                "single": single,
                "systems": systems,
                "commands": commands,
            }
            Path(given.output).write_text(json.dumps(report, indent=2) + "\n")
            print(json.dumps({one: systems[one]["verdict"] for one in systems}, indent=2), flush=True)


def main() -> None:
    """Parse, measure, write the table."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("recipe", nargs="?", default="recipes/no_regret.yaml", help="Recipe (default: %(default)s).")
    parser.add_argument(
        "--data_root", help="Folder of the data sets; unset, nothing is run and the table written anew."
    )
    parser.add_argument("--singles", default="outputs/compare_six_tasks", help="Folder of the finished runs.")
    parser.add_argument("--embedding_of", help="Task whose model teaches embeddings (default: the encoder itself).")
    trained = ["plain", "taught"]
    parser.add_argument("--systems", nargs="+", choices=trained, default=trained, help="What to train.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="Seeds to train with.")
    output = ROOT / "benchmarks" / "results" / "no_regret_differences.json"
    parser.add_argument("--output", default=str(output), help="Results file.")
    parser.add_argument("--guide", default=str(GUIDE), help="The text with the table (default: %(default)s).")
    given, further = parse_with_further(parser)
    if given.data_root:
        measure(given, further)
    guide = Path(given.guide)
    guide.write_text(guide_with(guide.read_text(), json.loads(Path(given.output).read_text())))


if __name__ == "__main__":
    main()
