"""What training for other tasks does to the plain sentence embedding, with its preservation and without.

    python benchmarks/embedding_preservation.py --data_root DATA
    python benchmarks/embedding_preservation.py --data_root DATA --weights 0 2 10 --seeds 1 2 -- --max_steps 200

The recipe has feature-extraction tasks (which keep the embedding) and tasks that are scored and never trained (which
say what became of it). The latter are scored before training, then the recipe is trained, for each seed, once for each
weight of the former; 0 is training without them, on the same rows in the same order. Every training is `python
train_hf.py` in a process of its own, to the last epoch (not the best one, so that all are equally long), and finished
ones are not run again. What follows `--` goes to `train_hf.py`. Results go to
`benchmarks/results/embedding_preservation.json`; the table in `docs/training.md`, between two marks, is made of it
(without `--data_root` nothing else is done). A test compares.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from recipe_results import (  # first: it puts the sources on the path
    ROOT,
    between_marks,
    hardware,
    parse_with_further,
    without_paths,
)

from command_help import CommandParser
from configuration_multitask import FEATURE_EXTRACTION
from recipe_arguments import parse_arguments
from task_metrics import primary_metric
from task_report import evaluate_tasks
from training_run import build_trainer, prepare_run

GUIDE = ROOT / "docs" / "training.md"
BEGIN, END = "<!-- benchmarks/embedding_preservation.py -->", "<!-- end of embedding_preservation -->"


def scores_of(tasks: dict[str, dict[str, Any]], results: dict[str, Any], prefix: str) -> dict[str, float]:
    """Task -> its primary metric, for those that a result file has."""
    keys = {name: f"{prefix}_{name}_{primary_metric(spec)}" for name, spec in tasks.items()}
    return {name: results[key] for name, key in keys.items() if key in results}


def score_before(words: list[str], folder: Path) -> tuple[dict[str, float], list[str]]:
    """The scores of the tasks that are not trained, before training; and the names of those that keep the embedding."""
    run = prepare_run(*parse_arguments([*words, "--output_dir", str(folder), "--overwrite_output"]))
    datasets = {name: rows for name, rows in run.features.test.items() if "train" not in run.loaded[name].splits}
    tasks = run.model.config.tasks
    results = evaluate_tasks(build_trainer(run), datasets, str(folder), "test")
    keeping = [name for name, spec in tasks.items() if spec["kind"] == FEATURE_EXTRACTION]
    return scores_of({name: tasks[name] for name in datasets}, results, "test"), keeping


def train(words: list[str], folder: Path) -> dict[str, Any]:
    """Run the command; its test scores, seconds and command."""
    command = ["train_hf.py", *words, "--output_dir", str(folder), "--overwrite_output"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    results = json.loads((folder / "all_results.json").read_text())
    tasks = json.loads((folder / "config.json").read_text())["tasks"]
    return {
        "command": " ".join(["python", *without_paths(command)]),
        "train_seconds": round(results["train_runtime"], 1),
        "scores": scores_of(tasks, results, "test"),
    }


def table(report: dict[str, Any]) -> str:
    """A line a weight, means over its seeds: what is scored and not trained (with its change in points), then the rest.

    Runs with further arguments are left out.
    """
    before, runs = report["before"], [run for run in report["runs"] if not run["further"]]
    others = sorted(runs[0]["scores"].keys() - before.keys())
    lines = [f"| weight | {' | '.join([*before, *others])} |", "|---" * (1 + len(before) + len(others)) + "|"]
    first = [*(f"{value:.4f}" for value in before.values()), *("-" for _ in others)]
    lines.append(f"| before training | {' | '.join(first)} |")
    for weight in sorted({run["weight"] for run in runs}):
        scores = [run["scores"] for run in runs if run["weight"] == weight]
        means = {name: sum(one[name] for one in scores) / len(scores) for name in [*before, *others]}
        cells = [f"{means[name]:.4f} ({100 * (means[name] - before[name]):+.1f})" for name in before]
        cells += [f"{means[name]:.4f}" for name in others]
        lines.append(f"| {weight:g} | {' | '.join(cells)} |")
    seeds = ", ".join(map(str, sorted({run["seed"] for run in runs})))
    machine = f"{report['hardware']['cpu']}, {report['hardware']['threads']} thread(s)"
    command = "python benchmarks/embedding_preservation.py --data_root DATA --weights"
    weights = " ".join(f"{weight:g}" for weight in sorted({run["weight"] for run in runs}))
    return "\n".join([*lines, "", f"Seeds {seeds}; `{command} {weights}`; {machine}."])


def guide_with(text: str, report: dict[str, Any]) -> str:
    """The guide with the table of a report between its marks."""
    return between_marks(text, BEGIN, END, table(report))


def measure(given: argparse.Namespace, further: list[str]) -> None:
    """Score, train what the results file does not hold, write it after every run."""
    work, output = Path(given.work).resolve(), Path(given.output)
    words = [given.recipe, "--data_root", str(Path(given.data_root).resolve()), *further]
    words += ["--load_best_model_at_end", "false"]
    before, keeping = score_before(words, work / "before")
    runs = json.loads(output.read_text())["runs"] if output.exists() else []
    for seed in given.seeds:
        for weight in given.weights:
            if any(run["seed"] == seed and run["weight"] == weight and run["further"] == further for run in runs):
                continue
            weights = [word for name in keeping for word in (f"--tasks.{name}.loss.weight", str(weight))]
            run = train([*words, *weights, "--seed", str(seed)], work / f"weight{weight:g}-seed{seed}")
            runs.append({"seed": seed, "weight": weight, "further": further, **run})
            report = {"recipe": given.recipe, "hardware": hardware(), "before": before, "runs": runs}
            output.write_text(json.dumps(report, indent=2) + "\n")
            after = {name: run["scores"][name] for name in before}
            print(f"weight {weight:g}, seed {seed}: before {before}, after {after}", flush=True)


def main() -> None:
    """Parse, measure, write the table."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("--recipe", default="recipes/preserved_embedding.yaml", help="Recipe to train.")
    parser.add_argument(
        "--data_root", help="Folder of the data sets; unset, nothing is run and the table written anew."
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        default=[0.0, 2.0],
        help="Loss weights of the tasks that keep the embedding.",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="Seeds to train with.")
    parser.add_argument("--work", default="outputs/embedding_preservation", help="Folder for the models.")
    parser.add_argument(
        "--output", default=str(ROOT / "benchmarks" / "results" / "embedding_preservation.json"), help="Results file."
    )
    parser.add_argument("--guide", default=str(GUIDE), help="The text with the table (default: %(default)s).")
    given, further = parse_with_further(parser)
    if given.data_root:
        measure(given, further)
    guide = Path(given.guide)
    guide.write_text(guide_with(guide.read_text(), json.loads(Path(given.output).read_text())))


if __name__ == "__main__":
    main()
