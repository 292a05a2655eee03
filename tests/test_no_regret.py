"""The no-regret benchmark hands every task its teacher, judges by intervals, and the guide's table is its results'."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import no_regret  # noqa: E402

from arguments_multitask import DataArguments  # noqa: E402


@pytest.fixture
def singles(tmp_path: Path) -> Path:
    """A folder with finished models of topic and similarity; that of ner was stopped."""
    for name, finished in (("topic", True), ("similarity", True), ("ner", False)):
        folder = tmp_path / f"{name}-seed2"
        folder.mkdir()
        if finished:
            (folder / no_regret.RESULTS).write_text("{}")
    return tmp_path


def test_a_task_is_taught_by_its_own_model_and_embeddings_by_that_of_the_named_task(singles: Path) -> None:
    """An unfinished model teaches nothing; the control has neither teachers nor embeddings."""
    keep = {"dataset": "builtin:topic", "kind": "feature-extraction"}
    names = {"topic": {"dataset": "builtin:topic"}, "ner": {"dataset": "builtin:entities"}, "keep": keep}
    data_args = DataArguments(tasks=names)
    given = Namespace(singles=singles, embedding_of="similarity")
    assert no_regret.words_of("taught", data_args, given, 2) == [
        *("--tasks.topic.distill_from", str(singles / "topic-seed2")),
        *("--tasks.keep.distill_from", str(singles / "similarity-seed2")),
    ]
    assert no_regret.words_of("taught", data_args, given, 3) == []
    assert no_regret.words_of("plain", data_args, given, 2) == ["--tasks.keep.loss.weight", "0"]
    given.embedding_of = None
    assert no_regret.words_of("taught", data_args, given, 2) == [
        "--tasks.topic.distill_from",
        str(singles / "topic-seed2"),
    ]


@pytest.mark.parametrize(
    ("differences", "regretted", "no_regret_at_all"),
    [
        ({"a": (0.01, (0.0, 0.02)), "b": (-0.004, (-0.006, -0.002))}, [], True),
        ({"a": (0.01, (0.0, 0.02)), "b": (-0.006, (-0.008, -0.0031))}, ["b"], False),
        ({"a": (0.001, (0.0, 0.02)), "b": (-0.004, (-0.006, -0.002))}, [], False),
    ],
)
def test_regret_is_an_interval_below_the_bound_or_a_mean_below_nothing(
    differences: dict, regretted: list[str], no_regret_at_all: bool
) -> None:
    compared = {name: {"difference": one, "interval": interval} for name, (one, interval) in differences.items()}
    verdict = no_regret.judge(compared)
    assert verdict["regretted"] == regretted and verdict["no_regret"] is no_regret_at_all


def test_the_guide_has_the_table_of_the_results() -> None:
    """With bold figures where a task is regretted, as its verdict has it."""
    report = json.loads((BENCHMARKS / "results" / "no_regret_differences.json").read_text())
    text = no_regret.GUIDE.read_text()
    assert text.count(no_regret.BEGIN) == 1
    assert no_regret.guide_with(text, report) == text
    for one in report["systems"].values():
        assert one["verdict"] == no_regret.judge(one["compared"])
