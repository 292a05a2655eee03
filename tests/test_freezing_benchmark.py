"""The freezing benchmark trains what its lines say, and the guide's table is the one that its results file makes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from recipe_arguments import parse_arguments

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import freezing  # noqa: E402

FROZEN = {"encoder": ["encoder"], "layers": ["layers:3"], "embeddings": ["embeddings"], "head": ["topic"]}
"""What a variant freezes from end to end; the others freeze nothing so."""


def report_of(*runs: tuple[str, int, float]) -> dict[str, Any]:
    """A results file with runs of a variant, a seed and a score."""
    measured = [
        {
            "variant": variant,
            "seed": seed,
            "scores": dict.fromkeys(freezing.SCORES, score),
            "train_seconds": 10.0 * seed,
            "peak_memory_mib": 1000 * seed,
            "trained_numbers": [5, 1234] if variant == "gradual" else [1234],
        }
        for variant, seed, score in runs
    ]
    return {"settings": {"rows": 16}, "hardware": {"cpu": "a CPU", "threads": 1}, "runs": measured}


@pytest.mark.parametrize("variant", freezing.VARIANTS)
def test_the_variants_differ_in_what_is_frozen_and_in_the_rates_alone(
    variant: str, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(freezing.ROOT)
    words = freezing.run_words(variant, 3, 16, 8, "DATA", str(tmp_path))
    _, data, training = parse_arguments(words)
    assert training.freeze == FROZEN.get(variant, [])
    assert (training.stages is not None) == (variant == "gradual")
    assert (training.layer_decay is not None) == (variant == "layer_decay")
    assert (training.num_train_epochs, training.seed) == (freezing.EPOCHS, 3)
    for task in data.tasks.values():
        assert task.max_rows == {"train": 16, "validation": 4, "test": 8} and task.loss["r_drop"] == 0


def test_a_line_holds_the_means_over_the_seeds_in_the_order_of_the_variants() -> None:
    table = freezing.table(report_of(("full", 1, 0.8), ("encoder", 1, 0.5), ("gradual", 1, 0.7), ("encoder", 3, 0.6)))
    assert table.splitlines()[2:] == [
        "| `encoder` | 0.5500 | 0.5500 | 0.5500 | 20 | 2,000 | 1,234 |",
        "| gradual: `encoder`, then `embeddings` | 0.7000 | 0.7000 | 0.7000 | 10 | 1,000 | 5, then 1,234 |",
        "| nothing | 0.8000 | 0.8000 | 0.8000 | 10 | 1,000 | 1,234 |",
        "",
        "Means over seeds 1, 3 (rows 16; a CPU, 1 thread(s)).",
    ]


def test_writing_the_table_again_changes_nothing_around_it() -> None:
    guide = freezing.GUIDE.read_text()
    once = freezing.guide_with(guide, report_of(("full", 1, 0.8)))
    assert freezing.guide_with(once, report_of(("full", 1, 0.8))) == once
    ends = [text.partition(freezing.BEGIN)[0] + text.partition(freezing.END)[2] for text in (guide, once)]
    assert ends[0] == ends[1] and len(ends[0]) > 1000


def test_the_guides_table_is_that_of_the_results_file() -> None:
    guide = freezing.GUIDE.read_text()
    if freezing.RESULTS.exists():
        assert freezing.guide_with(guide, json.loads(freezing.RESULTS.read_text())) == guide
    else:
        assert f"{freezing.BEGIN}\n\nNot measured yet.\n\n{freezing.END}" in guide
