"""What balancing of losses and sampling of tasks are worth: one recipe, one thing changed at a time, several seeds.

    python benchmarks/ablations.py balancing --data_root DATA --seeds 1 2 3
    python benchmarks/ablations.py sampling --data_root DATA --seeds 1 2 3
    python benchmarks/ablations.py sampling                         # only write the table into docs/training.md again

Each run is `train_hf.py recipes/six_tasks.yaml` on a sixteenth of every task's training rows (so that the tasks keep
their sizes to each other), three epochs, in a process of its own. `benchmarks/results/ablation_<table>.json`
gets every seed's test scores; runs that it holds are not run again, and seeds that are not asked for stay in it. The
table in `docs/training.md`, between two marks, has their means, and how far each mean score lies from that of the first
line, seed by seed. A test compares.
"""

import json
from pathlib import Path
from typing import Any

from recipe_results import ROOT, between_marks, hardware  # first: it puts the sources on the path

from command_help import CommandParser
from recipe_runs import Run
from task_metrics import PRIMARY_METRICS

RECIPE = "recipes/six_tasks.yaml"
GUIDE = ROOT / "docs" / "training.md"
ROWS = {"topic": 2500, "sentiment": 4200, "question": 340, "ner": 880, "pos": 780, "similarity": 360}
"""Task -> training rows, a sixteenth of all."""
TEST_ROWS = 2000
EQUAL = [word for task in ROWS for word in (f"--tasks.{task}.loss.weight", "1")]
NO_SHARES = ["--sampling_shares", "{}", "--sampling_strategy"]
TABLES: dict[str, dict[str, list[str]]] = {
    "balancing": {
        "static weights of the recipe": [],
        "equal weights": EQUAL,
        "equal weights, `uncertainty`": [*EQUAL, "--loss_balancing", "uncertainty"],
        "equal weights, `dwa`": [*EQUAL, "--loss_balancing", "dwa"],
        "weights of the recipe, `uncertainty`": ["--loss_balancing", "uncertainty"],
    },
    "sampling": {
        "`shares` of the recipe": [],
        "`temperature` (2)": [*NO_SHARES, "temperature"],
        "`proportional`": [*NO_SHARES, "proportional"],
        "`uniform`": [*NO_SHARES, "uniform"],
        "`annealed`": [*NO_SHARES, "annealed"],
        "`alternating`": [*NO_SHARES, "alternating"],
        "`shares`, `grouping: none`": ["--grouping", "none"],
    },
}
"""Table -> what is changed, as its lines say it -> arguments of train_hf.py."""


def run_of(variant: str, options: list[str], seed: int, data_root: str, work: Path) -> Run:
    """One training, in a folder named by what is changed; where that is nothing, both tables have the same."""
    words = ["--data_root", data_root, "--seed", str(seed), "--num_train_epochs", "3", "--report_to", "none"]
    for task, rows in ROWS.items():
        caps = {"train": rows, "validation": max(100, rows // 8), "test": TEST_ROWS}
        words += [f"--tasks.{task}.max_rows", json.dumps(caps)]
    title = variant if options else "recipe"
    name = "_".join("".join(letter if letter.isalnum() else " " for letter in title).split())
    return Run(name, work / f"{name}-seed{seed}", str(ROOT / RECIPE), [*words, *options])


def primary(scores: dict[str, float]) -> dict[str, float]:
    """Task -> its primary metric, and the mean score."""
    names = {f"test_{task}_{metric}": task for task in ROWS for metric in PRIMARY_METRICS}
    found = {names[key]: value for key, value in scores.items() if key in names}
    return {task: found[task] for task in ROWS} | {"mean": scores["test_mean_score"]}


def measured(run: Run, variant: str, seed: int) -> dict[str, Any]:
    """Train; what the results file says of it."""
    result = run.finish()
    (run.folder / "model.safetensors").unlink(missing_ok=True)
    found = {"variant": variant, "seed": seed, "primary": primary(result["scores"])}
    return found | {key: result[key] for key in ("command", "train_seconds", "scores")}


def table(report: dict[str, Any]) -> str:
    """Means over the seeds, a line a variant; the last column is the mean score's difference to the first line.

    Seeds that some lines lack yet (a benchmark that was broken off) are left out.
    """
    runs: dict[str, dict[int, dict[str, float]]] = {}
    for run in report["runs"]:
        runs.setdefault(run["variant"], {})[run["seed"]] = run["primary"]
    common = sorted(set.intersection(*(set(seeds) for seeds in runs.values())))
    first = next(iter(runs.values()))
    columns = [*ROWS, "mean"]
    lines = [
        f"| | {' | '.join(columns)} | mean, points to the first line (by seed) |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for variant, seeds in runs.items():
        means = [sum(seeds[seed][column] for seed in common) / len(common) for column in columns]
        shared = [100 * (seeds[seed]["mean"] - first[seed]["mean"]) for seed in common]
        by_seed = ", ".join(f"{points:+.2f}" for points in shared)
        change = "-" if seeds is first else f"{sum(shared) / len(shared):+.2f} ({by_seed})"
        lines.append(f"| {variant} | {' | '.join(f'{value:.3f}' for value in means)} | {change} |")
    listed = ", ".join(map(str, common))
    machine = f"{report['hardware']['cpu']}, {report['hardware']['threads']} thread(s)"
    return "\n".join([*lines, "", f"Means over seeds {listed}; `{report['command']}`; {machine}."])


def guide_with(text: str, name: str, report: dict[str, Any]) -> str:
    """The guide with the table of a report between its marks."""
    return between_marks(text, f"<!-- benchmarks/ablations.py {name} -->", f"<!-- end of {name} -->", table(report))


def main() -> None:
    """Run what is not there yet; write file and table after each run."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("table", choices=TABLES, help="Which table.")
    parser.add_argument(
        "--data_root", help="Folder of the data sets; unset, nothing is run and the table written anew."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="Seeds to train with.")
    parser.add_argument("--work", default="outputs/ablations", help="Folder for the runs.")
    parser.add_argument("--output", help="Results file (default: benchmarks/results/ablation_<table>.json).")
    parser.add_argument("--guide", default=str(GUIDE), help="The text with the table (default: %(default)s).")
    given = parser.parse_args()
    output = Path(given.output or ROOT / "benchmarks" / "results" / f"ablation_{given.table}.json")
    guide = Path(given.guide)
    report: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    if given.data_root:
        command = (
            f"python benchmarks/ablations.py {given.table} --data_root DATA --seeds {' '.join(map(str, given.seeds))}"
        )
        data_root, work = str(Path(given.data_root).resolve()), Path(given.work).resolve()
        planned = [
            (variant, seed, run_of(variant, options, seed, data_root, work))
            for variant, options in TABLES[given.table].items()
            for seed in given.seeds
        ]
        held = {one["command"]: one for one in report.get("runs", [])}
        asked = {(variant, seed) for variant, seed, _ in planned}
        others = [one for one in held.values() if (one["variant"], one["seed"]) not in asked]
        for variant, seed, run in planned:
            if run.command not in held:
                held[run.command] = measured(run, variant, seed)
            runs = [held[run.command] for *_, run in planned if run.command in held]
            report = {"recipe": RECIPE, "command": command, "hardware": hardware(), "runs": runs + others}
            output.write_text(json.dumps(report, indent=2) + "\n")
            print(f"{variant}, seed {seed}: mean score {held[run.command]['primary']['mean']:.4f}", flush=True)
    guide.write_text(guide_with(guide.read_text(), given.table, report))


if __name__ == "__main__":
    main()
