"""What a comparison of single-task and multi-task training came to: numbers for files, a report for people.

Two steps: `summarise` makes `comparison.json` of finished runs and their comparisons, `render` makes Markdown of that
file alone, so that no number in a report was typed. Nothing is trained, scored or resampled here.

    facts = summarise(...)
    write_report(facts, Path("outputs/compare_x"))
    insert_report(facts, Path("outputs/compare_x"), Path("docs/fine_tuning_report.md"))
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradient_cosines import as_lists
from single_task_recipe import Budget
from task_comparison import RULES, TaskComparison, judge, points
from task_plots import plot_cosines, plot_differences

FILE_NAME = "comparison.json"
DIFFERENCES_NAME = "differences.png"
COSINES_NAME = "gradient_cosines.png"
BUDGET = (
    "Same budget: a task alone draws as many of its rows as it drew together with the others (the same passes over the "
    "same rows), in batches of the same size, with the same learning rates, schedule, seed and number of evaluations, "
    "but no teacher. "
    "So all models alone take together as many optimizer steps as the one model. Its best checkpoint is chosen by its "
    "own score; that of the model of all tasks by the mean over the tasks."
)
BOOTSTRAP = (
    "Paired bootstrap over test examples: {resamples:,} resamples; both models and all seeds are scored on the same "
    "examples, and the seeds' differences averaged. The interval (2.5th to 97.5th percentile) says how far other "
    "examples would move the difference of these trained models; the spread over the seeds says how far the chance of "
    "training moves it."
)

# ---------------------------------------------------------------------------------------------------------------------
# The facts


def strongest_opponent(task: str, cosines: Mapping[str, Any]) -> str | None:
    """The task whose gradients point most against this one's, beyond what chance explains; None where none does.

    Beyond chance is a mean cosine more than two standard errors below 0: gradients of batches that have nothing to do
    with each other have cosines on both sides of 0.
    """
    if task not in cosines.get("tasks", []):
        return None
    row = cosines["tasks"].index(task)
    measured = zip(cosines["tasks"], cosines["mean"][row], cosines["standard_error"][row], strict=True)
    against = {
        other: mean
        for other, mean, error in measured
        if other != task and mean is not None and error is not None and mean + 2 * error < 0
    }
    return min(against, key=lambda other: against[other]) if against else None


def mean_cosines(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard error of the gradient cosines over all measurements of all seeds; `{}` where none was measured.

    The error of a single measurement is None, as is whatever a measurement does not know.
    """
    found = [one for one in measured if one]
    if not found:
        return {}
    matrices = np.array([each["cosines"] for one in found for each in one["measurements"]], dtype=float)
    count = len(matrices)
    errors = matrices.std(axis=0, ddof=1) / count**0.5 if count > 1 else np.full(matrices.shape[1:], np.nan)
    return {
        "measured": found[0]["measured"],
        "tasks": found[0]["tasks"],
        "mean": as_lists(matrices.mean(axis=0)),
        "standard_error": as_lists(errors),
        "measurements": count,
    }


def summarise_task(comparison: TaskComparison, budget: Budget, opponent: str | None) -> dict[str, Any]:
    """One task of `comparison.json`."""
    return {
        "metric": comparison.metric,
        "rows": comparison.rows,
        "alone": list(comparison.first),
        "together": list(comparison.second),
        "difference": comparison.difference,
        "interval": list(comparison.interval),
        "by_seed": list(comparison.by_seed),
        "resamples": comparison.resamples,
        **dataclasses.asdict(judge(comparison, opponent)),
        "budget": dataclasses.asdict(budget) | {"passes": budget.passes},
    }


def summarise_cost(alone: Mapping[str, Sequence[dict[str, Any]]], together: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a model a task costs, and what the one model costs.

    Args:
        alone (Mapping): Task -> results of its runs, a seed each.
        together (Sequence): Results of the runs of all tasks; `measuring_seconds` is not part of their training.

    Returns:
        For both: `models`, `train_seconds` (mean over the seeds; None where every run was killed in between),
        `parameters` in sum, `passes` of an encoder for all answers to a text.
    """
    seconds = [mean_seconds(runs) for runs in alone.values()]
    return {
        "alone": {
            "models": len(alone),
            "train_seconds": None if None in seconds else sum(one for one in seconds if one is not None),
            "parameters": sum(runs[0]["parameters"] for runs in alone.values()),
            "passes": len(alone),
        },
        "together": {
            "models": 1,
            "train_seconds": mean_seconds(together),
            "parameters": together[0]["parameters"],
            "passes": 1,
        },
    }


def mean_seconds(runs: Sequence[dict[str, Any]]) -> float | None:
    """Mean seconds of training over the seeds whose clock is whole, without what measuring took."""
    known = [run["train_seconds"] - run.get("measuring_seconds", 0) for run in runs if run["train_seconds"] is not None]
    return float(np.mean(known)) if known else None


# ---------------------------------------------------------------------------------------------------------------------
# The report


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def spread(scores: Sequence[float]) -> str:
    """The mean of the seeds' scores, with their range where there are several."""
    mean = f"{np.mean(scores):.4f}"
    return mean if len(scores) == 1 else f"{mean} ({min(scores):.4f} to {max(scores):.4f})"


def in_words(tasks: Mapping[str, Any]) -> str:
    """The result in a sentence."""
    by_verdict = {
        verdict: [name for name, one in tasks.items() if one["verdict"] == verdict]
        for verdict in ("helps", "no difference", "hurts")
    }
    said = {"helps": "helps", "no difference": "makes no difference to", "hurts": "hurts"}
    parts = [f"{said[verdict]} {', '.join(names)}" for verdict, names in by_verdict.items() if names]
    return f"Training together {'; '.join(parts)}."


def in_line(value: Any) -> str:
    """A fact of the machine in words."""
    return " and ".join(value) if isinstance(value, list) else str(value)


def results_table(facts: Mapping[str, Any]) -> str:
    """A line a task, and the mean over them."""
    tasks = facts["tasks"]
    rows = [
        [
            name,
            one["metric"],
            f"{one['rows']:,}",
            spread(one["alone"]),
            spread(one["together"]),
            f"{points(one['difference'])} ({points(one['interval'][0])} to {points(one['interval'][1])})",
            ", ".join(map(points, one["by_seed"])),
            f"**{one['verdict']}**",
            one["advice"],
        ]
        for name, one in tasks.items()
    ]
    means = {key: np.mean([one[key] for one in tasks.values()], axis=0) for key in ("alone", "together", "by_seed")}
    difference = points(float(np.mean(means["by_seed"])))
    by_seed = ", ".join(points(float(one)) for one in means["by_seed"])
    rows.append(["mean", "", "", spread(means["alone"]), spread(means["together"]), difference, by_seed, "", ""])
    head = "task, metric, test rows, alone, together, difference in points (95 % interval), by seed, sharing, advice"
    return table(head.split(", "), rows)


def cost_table(cost: Mapping[str, Any]) -> str:
    """Both ways, a line each."""
    names = {"alone": "a model for each task", "together": "one model"}
    rows = [
        [
            names[way],
            "-" if one["train_seconds"] is None else f"{one['train_seconds']:,.0f}",
            f"{one['parameters']:,}",
            one["passes"],
        ]
        for way, one in cost.items()
    ]
    return table(["", "seconds of training", "parameters in sum", "passes of an encoder a text"], rows)


def cosines_table(cosines: Mapping[str, Any]) -> str:
    """The matrix, each mean with its standard error."""

    def cell(mean: float | None, error: float | None) -> str:
        return "-" if mean is None else f"{mean:z.3f}" if error is None else f"{mean:z.3f} ± {error:.3f}"

    lines = zip(cosines["tasks"], cosines["mean"], cosines["standard_error"], strict=True)
    rows = [[name, *map(cell, means, errors)] for name, means, errors in lines]
    return table(["", *cosines["tasks"]], rows)


def budget_table(tasks: Mapping[str, Any]) -> str:
    """What each task was given, together and alone."""
    rows = [
        [name, f"{one['rows']:,}", f"{one['drawn']:,}", f"{one['passes']:.2f}", f"{one['steps']:,}"]
        for name, one in ((name, task["budget"]) for name, task in tasks.items())
    ]
    return table(["task", "training rows", "rows drawn", "passes", "steps alone"], rows)


def render(facts: Mapping[str, Any], pictures: str = "", level: int = 1) -> str:
    """The report as Markdown.

    Args:
        facts (Mapping): What `comparison.json` holds.
        pictures (str): In front of the pictures' names: their folder, with its slash.
        level (int): Of the title.
    """
    tasks, cosines, seeds = facts["tasks"], facts["gradient_cosines"], facts["seeds"]
    deep = "#" * (level + 1)
    parts = [
        f"{'#' * level} Does sharing help? {facts['recipe']}",
        f"{in_words(tasks)} {len(seeds)} seed{'s' * (len(seeds) > 1)}, {facts['split']} split.",
        results_table(facts),
        "Scores are means over the seeds (range). A point is a hundredth of a score.",
        f"![Together minus alone: each task's difference with its interval]({pictures}{DIFFERENCES_NAME})",
        *(f"Not compared: {name}, {reason}." for name, reason in facts["not_compared"].items()),
        f"{deep} Cost",
        cost_table(facts["cost"]),
        "Seconds are those of training with its evaluations, without what measuring gradients took.",
    ]
    if cosines:
        parts += [
            f"{deep} Do the tasks pull in the same direction?",
            cosines_table(cosines),
            f"{cosines['measured']} Means and standard errors of {cosines['measurements']} measurements.",
            f"![Matrix of the cosines between the gradients of every two tasks]({pictures}{COSINES_NAME})",
        ]
    first = next(iter(tasks.values()))
    scorers = [f"- {name}: {facts['protocol'][name]['scorer']}." for name in tasks]
    parts += [
        f"{deep} Protocol",
        budget_table(tasks),
        f"{BUDGET} {first['budget']['all_steps']:,} steps together.",
        BOOTSTRAP.format(resamples=first["resamples"]),
        "\n".join(scorers),
        f"Verdict and advice:\n\n{RULES}",
        "Machine: " + ", ".join(f"{name} {in_line(value)}" for name, value in facts["hardware"].items()) + ".",
        f"{deep} Commands",
        f"All of it, from `{FILE_NAME}`: `{facts['command']}`. Its runs:",
        "```bash\n" + "\n".join(run["command"] for run in facts["runs"]) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def write_report(facts: Mapping[str, Any], folder: Path) -> None:
    """Write `comparison.json`, `report.md` and, where matplotlib is, their pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(render(facts), encoding="utf-8")
    plot_differences(facts["tasks"], folder / DIFFERENCES_NAME)
    if facts["gradient_cosines"]:
        plot_cosines(facts["gradient_cosines"]["tasks"], facts["gradient_cosines"]["mean"], folder / COSINES_NAME)


def insert_report(facts: Mapping[str, Any], folder: Path, document: Path) -> None:
    """Put the report into a document that may hold those of other recipes, in place of an earlier one of this recipe.

    Numbers and pictures are copied into a folder beside it: `docs/x.md` has those of a recipe in `docs/x/<recipe>/`.

    Args:
        facts (Mapping): What `comparison.json` holds.
        folder (Path): Where `write_report` wrote.
        document (Path): Markdown; made if need be.
    """
    name = facts["recipe"]
    beside = document.with_suffix("") / name
    beside.mkdir(parents=True, exist_ok=True)
    for file in (FILE_NAME, DIFFERENCES_NAME, COSINES_NAME):
        if (folder / file).is_file():
            shutil.copyfile(folder / file, beside / file)
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n\n{render(facts, f'{document.stem}/{name}/', level=2)}\n{end}\n"
    text = document.read_text(encoding="utf-8") if document.is_file() else "# What sharing an encoder costs and gains\n"
    earlier = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}\n", re.DOTALL)
    text = earlier.sub(lambda _: section, text) if earlier.search(text) else f"{text}\n{section}"
    document.write_text(text, encoding="utf-8")
