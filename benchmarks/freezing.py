"""What freezing costs and saves: one recipe trained with other parts frozen, on real data.

    python benchmarks/freezing.py --data_root DATA --seeds 1 2
    python benchmarks/freezing.py --table                   # only write the table into docs/freezing.md again

A variant (see `VARIANTS`) is `train_hf.py recipes/news_entities.yaml` with few rows, no R-Drop and `--freeze` or
`--stages`, in a process of its own, all of them with the same rows and steps; `all` is scored and not trained. Into
`benchmarks/results/freezing.json` go each run's test scores, seconds of training, the largest memory of its process and
how many numbers each stage trains. Runs that the file holds are not run again. The table of their means stands in
`docs/freezing.md` between two marks; a test compares.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import transformers.trainer
from recipe_results import ROOT, between_marks, hardware, without_paths
from transformers import TrainerCallback

import train_hf
from command_help import CommandParser
from recipe_arguments import parse_arguments
from task_report import evaluate_tasks
from training_run import build_trainer, prepare_run

RECIPE = "recipes/news_entities.yaml"
RESULTS = ROOT / "benchmarks" / "results" / "freezing.json"
GUIDE = ROOT / "docs" / "freezing.md"
BEGIN, END = "<!-- benchmarks/freezing.py writes from here -->", "<!-- to here -->"
EPOCHS = 2
GRADUAL = "[{epochs: 1, freeze: [encoder]}, {epochs: 1, freeze: [embeddings]}]"
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "all": ("all (not trained)", ["--freeze", ""]),
    "encoder": ("`encoder`", ["--freeze", "encoder"]),
    "layers": ("`layers:3`", ["--freeze", "layers:3"]),
    "embeddings": ("`embeddings`", ["--freeze", "embeddings"]),
    "head": ("`topic` (one head)", ["--freeze", "topic"]),
    "gradual": ("gradual: `encoder`, then `embeddings`", ["--freeze", "", "--stages", GRADUAL]),
    "full": ("nothing", ["--freeze", ""]),
    "layer_decay": ("nothing, `layer_decay: 0.8`", ["--freeze", "", "--layer_decay", "0.8"]),
}
"""Variant -> what is frozen, as the table says it; arguments of train_hf.py."""
SCORES = ("test_topic_accuracy", "test_ner_f1", "test_mean_score")


class TrainableNumbers(TrainerCallback):
    """How many numbers are trained in each `train()` call."""

    counts: ClassVar[list[int]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Count them."""
        self.counts.append(sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad))


def run_words(variant: str, seed: int, rows: int, test_rows: int | None, data_root: str, folder: str) -> list[str]:
    """The arguments of train_hf.py for a run."""
    test = f", test: {test_rows}" if test_rows else ""
    caps = f"{{train: {rows}, validation: {max(1, rows // 4)}{test}}}"
    words = [RECIPE, "--data_root", data_root, "--output_dir", folder, "--overwrite_output", "--seed", str(seed)]
    words += ["--num_train_epochs", str(EPOCHS), "--report_to", "none"]
    for task in ("topic", "ner"):
        words += [f"--tasks.{task}.max_rows", caps, f"--tasks.{task}.loss.r_drop", "0"]
    return words + VARIANTS[variant][1]


def measure(variant: str, words: list[str]) -> dict[str, Any]:
    """Train or, for `all`, only score, in this process; what came of it."""
    transformers.trainer.DEFAULT_CALLBACKS.append(TrainableNumbers)
    folder = Path(words[words.index("--output_dir") + 1])
    if variant == "all":
        run = prepare_run(*parse_arguments(words))
        run.model.freeze("all")
        results = evaluate_tasks(build_trainer(run), run.features.test, str(folder), "test")
        TrainableNumbers.counts.append(0)
    else:
        train_hf.main(words)
        results = json.loads((folder / "all_results.json").read_text())
    mebibyte = 1024**2 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    return {
        "scores": {name: results[name] for name in SCORES},
        "train_seconds": round(results.get("train_runtime", 0.0), 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // mebibyte,
        "trained_numbers": TrainableNumbers.counts,
    }


def measured(variant: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process of its own, whose files are removed."""
    folder = Path(given.work).resolve() / f"freezing-{variant}-seed{seed}"
    words = run_words(variant, seed, given.rows, given.test_rows, str(Path(given.data_root).resolve()), str(folder))
    report = folder.with_suffix(".json")
    report.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, __file__, "--one", variant, str(report), *words], cwd=ROOT, check=True)
    found = json.loads(report.read_text())
    shutil.rmtree(folder)
    report.unlink()
    command = " ".join(
        ["python", "train_hf.py", *(repr(word) if " " in word else word for word in without_paths(words))]
    )
    return {"variant": variant, "seed": seed, **found, "command": command}


def table(report: dict[str, Any]) -> str:
    """The means over the seeds as a Markdown table, and a line that says how they came about."""
    head = "| frozen | topics, accuracy | entities, F1 | mean score | training, s | memory, MiB | numbers trained |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for variant, (title, _) in VARIANTS.items():
        runs = [run for run in report["runs"] if run["variant"] == variant]
        if runs:
            scores = [f"{_mean([run['scores'][name] for run in runs]):.4f}" for name in SCORES]
            seconds, memory = (_mean([run[name] for run in runs]) for name in ("train_seconds", "peak_memory_mib"))
            trained = ", then ".join(f"{count:,}" for count in runs[0]["trained_numbers"])
            lines.append(f"| {title} | {' | '.join(scores)} | {seconds:.0f} | {memory:,.0f} | {trained} |")
    settings, seeds = report["settings"], sorted({run["seed"] for run in report["runs"]})
    rows = ", ".join(f"{name} {value}" for name, value in settings.items())
    machine = f"{report['hardware']['cpu']}, {report['hardware']['threads']} thread(s)"
    return "\n".join([*lines, "", f"Means over seeds {', '.join(map(str, seeds))} ({rows}; {machine})."])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def guide_with(text: str, report: dict[str, Any]) -> str:
    """The guide with the table of a report between its marks."""
    return between_marks(text, BEGIN, END, table(report))


def main() -> None:
    """Run what the file does not hold, and write file and table after each run."""
    if sys.argv[1:2] == ["--one"]:
        variant, written, *words = sys.argv[2:]
        Path(written).write_text(json.dumps(measure(variant, words)))
        return
    parser = CommandParser(doc=__doc__)
    runs = parser.add_argument_group("runs")
    runs.add_argument("--data_root", help="Folder of the data sets; unset, nothing is run.")
    runs.add_argument("--seeds", type=int, nargs="+", default=[1], help="Seeds (default: 1).")
    runs.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="Variants to train (default: all)."
    )
    runs.add_argument("--rows", type=int, default=2000, help="Training rows a task (default: 2000).")
    runs.add_argument("--test_rows", type=int, help="Test rows a task (default: all).")
    files = parser.add_argument_group("files")
    files.add_argument("--work", default="outputs/freezing", help="Folder for the models, which are removed.")
    files.add_argument("--output", default=str(RESULTS), help="Results file (default: %(default)s).")
    files.add_argument("--guide", default=str(GUIDE), help="The text with the table (default: %(default)s).")
    files.add_argument("--table", action="store_true", help="Run nothing; write the table from the results file.")
    given = parser.parse_args()
    output, guide = Path(given.output), Path(given.guide)
    settings = {"training rows a task": given.rows, "test rows a task": given.test_rows or "all", "epochs": EPOCHS}
    report: dict[str, Any] = {"settings": settings, "runs": []}
    if output.exists():
        report = json.loads(output.read_text())
    if not given.table:
        if given.data_root is None or report["settings"] != settings:
            parser.error(f"--data_root is needed, and {output} is of {report['settings']}; name another --output.")
        done = {(run["variant"], run["seed"]) for run in report["runs"]}
        for variant, seed in [(variant, seed) for seed in given.seeds for variant in given.variants]:
            if (variant, seed) not in done:
                report["runs"].append(measured(variant, seed, given))
                report |= {"recipe": RECIPE, "hardware": hardware()}
                output.write_text(json.dumps(report, indent=2) + "\n")
    guide.write_text(guide_with(guide.read_text(), report))


if __name__ == "__main__":
    main()
