"""Train a recipe with its own single-task models as teachers ("no-regret mode"), and compare it with them.

    python benchmarks/no_regret.py recipes/six_tasks.yaml --data_root DATA --singles outputs/compare_six_tasks
    python benchmarks/no_regret.py RECIPE --data_root DATA --singles DIR --seeds 1 2 -- --learning_rate 1e-4

`--singles` is a folder of finished runs, `<task>-seed<S>` of each task alone and, as control, `together-seed<S>` of all
tasks without teachers: what `compare_hf.py` leaves, or any runs of `train_hf.py` under those names. Tasks without such
a folder have no teacher. For each seed `train_hf.py` with the seed and each task's `distill_from` goes to
`taught-seed<S>` beside them; a finished one is kept. What follows `--` goes to `train_hf.py`.

`benchmarks/results/no_regret_<recipe>.json` gets the test scores of all, and for the plain sum and the taught model the
difference to the single-task models with its paired-bootstrap interval, seeds pooled (`task_comparison`). Nothing is
regretted if no task's interval of the taught model lies below -0.3 points and its mean score is not below theirs.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from recipe_results import ROOT, hardware, without_paths  # first: it puts the sources on the path

from command_help import CommandParser
from recipe_arguments import parse_arguments
from task_comparison import compare_task
from task_metrics import primary_metric
from task_predictions import predictions_path, read_predictions

REGRET = -0.003
"""Difference to a single-task model below which a task would have been better off alone."""
RESULTS = "all_results.json"
"""What a finished run leaves in its folder."""


def scores_of(folder: Path) -> dict[str, float]:
    """Task -> primary test metric of a finished run; empty where there is none."""
    if not (folder / RESULTS).exists():
        return {}
    results = json.loads((folder / RESULTS).read_text())
    tasks = json.loads((folder / "config.json").read_text())["tasks"]
    keys = {name: f"test_{name}_{primary_metric(spec)}" for name, spec in tasks.items()}
    return {name: results[key] for name, key in keys.items() if key in results}


def run_seed(recipe: str, tasks: list[str], singles: Path, seed: int, further: list[str]) -> dict[str, Any]:
    """Train with teachers, if that is not finished; the scores of single tasks, plain sum and this run."""
    teachers = {name: singles / f"{name}-seed{seed}" for name in tasks}
    teachers = {name: folder for name, folder in teachers.items() if (folder / RESULTS).exists()}
    if not teachers:
        raise SystemExit(f"{singles} must hold <task>-seed{seed} with {RESULTS} for some of {', '.join(tasks)}.")
    folder = singles / f"taught-seed{seed}"
    words = ["train_hf.py", recipe, "--seed", str(seed), *further, "--output_dir", str(folder)]
    words += [word for name, path in teachers.items() for word in (f"--tasks.{name}.distill_from", str(path))]
    if not (folder / RESULTS).exists():
        subprocess.run([sys.executable, *words, "--overwrite_output"], cwd=ROOT, check=True)
    shown = [word.replace(str(singles), "SINGLES") for word in without_paths(words)]
    return {
        "seed": seed,
        "command": " ".join(["python", *shown]),
        "single": {name: scores_of(path)[name] for name, path in teachers.items()},
        "plain_sum": scores_of(singles / f"together-seed{seed}"),
        "taught": scores_of(folder),
    }


def differences(system: str, tasks: list[str], singles: Path, seeds: list[int]) -> dict[str, Any]:
    """Task -> difference of a system (`together`, `taught`) to the single-task models, over some seeds."""

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


def main() -> None:
    """Parse, train each seed, write the file after each."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("recipe", help="Recipe of several tasks.")
    parser.add_argument("--data_root", required=True, help="Folder of the data sets.")
    parser.add_argument("--singles", required=True, help="Folder of the finished runs.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="Seeds to train with.")
    parser.add_argument("--output", help="Results file (default: benchmarks/results/no_regret_<recipe>.json).")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, further = parser.parse_args(sys.argv[1:cut]), sys.argv[cut + 1 :]
    further = ["--data_root", str(Path(given.data_root).resolve()), *further]
    singles = Path(given.singles).resolve()
    output = Path(given.output or ROOT / "benchmarks" / "results" / f"no_regret_{Path(given.recipe).stem}.json")
    tasks = list(parse_arguments([given.recipe, *further])[1].tasks)
    runs = []
    for seed in given.seeds:
        runs.append(run_seed(given.recipe, tasks, singles, seed, further))
        seeds, compared = [run["seed"] for run in runs], list(runs[0]["single"])
        systems = {name: differences(name, compared, singles, seeds) for name in ("together", "taught")}
        verdicts = {name: judge(found) for name, found in systems.items()}
        report = {
            "recipe": given.recipe,
            "hardware": hardware(),
            "verdicts": verdicts,
            "compared": systems,
            "runs": runs,
        }
        output.write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps(verdicts, indent=2), f"written to {output}", sep="\n", flush=True)


if __name__ == "__main__":
    main()
