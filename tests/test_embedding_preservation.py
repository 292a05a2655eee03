"""The benchmark of kept embeddings writes means by weight, and the guide's table is the one of its results file."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import embedding_preservation  # noqa: E402


def run(weight: float, seed: int, *further: str, sts: float = 0.5, topic: float = 0.9) -> dict[str, Any]:
    """One entry of a results file."""
    return {"weight": weight, "seed": seed, "further": list(further), "scores": {"topic": topic, "sts": sts}}


def test_a_line_has_the_means_over_the_seeds_and_what_the_untrained_task_lost() -> None:
    runs = [
        run(10.0, 1, sts=0.8),
        run(10.0, 2, sts=0.81, topic=0.7),
        run(0.0, 1),
        run(0.0, 1, "--max_steps=1", sts=0.1),
    ]
    report = {"before": {"sts": 0.82}, "runs": runs, "hardware": {"cpu": "a CPU", "threads": 1}}
    assert embedding_preservation.table(report).splitlines() == [
        "| weight | sts | topic |",
        "|---|---|---|",
        "| before training | 0.8200 | - |",
        "| 0 | 0.5000 (-32.0) | 0.9000 |",
        "| 10 | 0.8050 (-1.5) | 0.8000 |",
        "",
        "Seeds 1, 2; `python benchmarks/embedding_preservation.py --data_root DATA --weights 0 10`; a CPU, 1 "
        "thread(s).",
    ]


def test_the_guide_has_the_table_of_the_results() -> None:
    report = json.loads((BENCHMARKS / "results" / "embedding_preservation.json").read_text())
    text = embedding_preservation.GUIDE.read_text()
    assert text.count(embedding_preservation.BEGIN) == 1
    assert embedding_preservation.guide_with(text, report) == text


def test_kept_with_the_recipes_weight_the_embedding_loses_at_most_half_a_point() -> None:
    """Of the Spearman correlation on STS-B; without being kept it loses much more."""
    report = json.loads((BENCHMARKS / "results" / "embedding_preservation.json").read_text())
    recipe = yaml.safe_load((BENCHMARKS.parent / report["recipe"]).read_text())
    (weight,) = {task["loss"]["weight"] for name, task in recipe["tasks"].items() if name.startswith("keep_")}
    after = {run["weight"]: run["scores"]["sts"] - report["before"]["sts"] for run in report["runs"]}
    assert after[weight] >= -0.005 > after[0.0]
