"""`task_predictions` and `task_comparison`: files that hold what was scored, and intervals that mean what they say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_trainer_multitask import arguments, data_of, new_model, new_trainer
from tiny_models import TINY_TASKS

import task_comparison
from task_comparison import (
    TaskComparison,
    compare_task,
    draws,
    judge,
    ratio_scorer,
    resampled_ranks,
    row_sums,
    scorer,
    spearman_scorer,
)
from task_metrics import primary_metric, score_task
from task_predictions import TaskPredictions, predictions_path, read_predictions, write_predictions
from task_sampler import TaskSamplingDataset

ROWS = 60
TASKS = {**TINY_TASKS, "one": {**TINY_TASKS["tags"], "labels": ["only"]}}
"""One of every kind, and several classes of which there is one."""


def random_output(name: str, seed: int) -> Any:
    """Predictions and labels as an evaluation has them: rows without a label among them, words of several tokens."""
    spec = TASKS[name]
    generator = np.random.default_rng([seed, *name.encode()])
    classes = len(spec.get("labels", ()))
    labels = np.random.default_rng([99, *name.encode()])  # the same for every system
    if spec["kind"] == "token-classification":
        true = labels.integers(-1, classes, (ROWS, 9))
        true = np.where(true < 0, -100, true)
        said = np.where(
            generator.random(true.shape) < 0.6, np.maximum(true, 0), generator.integers(0, classes, true.shape)
        )
        true[3] = -100
    elif spec["kind"] == "feature-extraction":
        true = labels.normal(size=(ROWS, 8)).astype(np.float32)
        said = (true + generator.normal(size=true.shape)).astype(np.float32)
        true[3] = np.nan
    elif spec.get("problem_type") == "multi_label_classification":
        true = labels.integers(0, 2, (ROWS, classes)).astype(np.float32)
        said = (true - 0.5 + generator.normal(size=true.shape)).astype(np.float32)
        true[3] = np.nan
    elif "labels" in spec:
        true = labels.integers(0, classes, ROWS)
        said = (np.eye(classes)[true] + generator.normal(size=(ROWS, classes))).astype(np.float32)
        true[3] = -100
    else:
        true = labels.integers(0, 6, ROWS) / 5  # with ties, as scores of similarity have them
        said = (true + 0.5 * generator.normal(size=ROWS)).astype(np.float32)
        true[3] = np.nan
    return EvalOutput({name: said}, {name: true})


class EvalOutput:
    """What `Trainer.predict` returns, as far as it is read."""

    def __init__(self, predictions: dict[str, Any], label_ids: dict[str, Any]):
        self.predictions, self.label_ids = predictions, label_ids


@pytest.fixture
def system(tmp_path: Path) -> Callable[[str, int], TaskPredictions]:
    """Predictions of a random system, through a file."""

    def of(name: str, seed: int) -> TaskPredictions:
        path = predictions_path(tmp_path, f"seed{seed}", name)
        write_predictions(path, name, TASKS[name], list(range(100, 100 + ROWS)), random_output(name, seed))
        return read_predictions(path)

    return of


def classes(right: np.ndarray) -> TaskPredictions:
    """A system that is right where it is said to be."""
    spec = {"kind": "text-classification", "labels": ["a", "b"]}
    return TaskPredictions(spec, np.arange(len(right)), [0] * len(right), [int(not one) for one in right])


# Predictions


@pytest.mark.parametrize("name", TASKS)
def test_a_file_of_predictions_gives_the_reported_metrics_back(name: str, system) -> None:
    """All of them, to the last bit: what was written is what was scored."""
    output = random_output(name, 1)
    reported = score_task(name, TASKS[name], output.predictions[name], output.label_ids[name])
    assert system(name, 1).score() | {"rows": ROWS - 1} == reported


@pytest.mark.parametrize("name", TASKS)
def test_the_point_value_is_the_reported_metric(name: str, system) -> None:
    """Sums over sentences, and ranks with ties, come to what seqeval, scikit-learn and scipy come to."""
    predicted = system(name, 1)
    reported = predicted.score()[primary_metric(TASKS[name])]
    once = np.ones((1, len(predicted.rows)), dtype=np.int64)
    assert scorer(predicted)(once)[0] == pytest.approx(reported, abs=1e-12)
    assert 0.1 < reported < 0.99, "premise: not a score that anything would give"


@pytest.mark.parametrize("name", TASKS)
def test_a_resample_scores_as_a_data_set_with_those_rows(name: str, system) -> None:
    """The libraries' metrics on rows that are there several times, or not at all."""
    predicted = system(name, 1)
    (counts,) = draws(len(predicted.rows), 5, seed=3)
    fast = scorer(predicted)(counts)
    for drawn, value in zip(counts, fast, strict=True):
        rows = np.repeat(np.arange(len(drawn)), drawn)
        again = TaskPredictions(
            predicted.spec,
            rows,
            [predicted.labels[row] for row in rows],
            [predicted.predictions[row] for row in rows],
        )
        assert value == pytest.approx(again.score()[primary_metric(predicted.spec)], abs=1e-9)
    assert len(set(fast)) > 1


def test_rows_and_order_of_an_evaluation_are_in_the_file(system) -> None:
    """Row 3 has no label and is not there."""
    predicted = system("topic", 1)
    assert predicted.rows.tolist() == [100 + row for row in range(ROWS) if row != 3]
    output = random_output("topic", 1)
    kept = [row for row in range(ROWS) if row != 3]
    assert predicted.labels == output.label_ids["topic"][kept].tolist()
    assert predicted.predictions == output.predictions["topic"][kept].argmax(1).tolist()


def test_predictions_of_a_trainer_are_what_its_metrics_were_computed_of(tmp_path: Path) -> None:
    """Every kind of task, batches that do not go up, through the real evaluation."""
    sampling = TaskSamplingDataset(data_of(TINY_TASKS, 8), rows_per_step=8)
    trainer = new_trainer(arguments(tmp_path), new_model(TINY_TASKS), sampling)
    for name, rows in data_of(TINY_TASKS, 13).items():
        output = trainer.predict(rows)
        path = tmp_path / f"{name}.parquet"
        write_predictions(path, name, TINY_TASKS[name], [row["row"] for row in rows], output)
        for metric, value in read_predictions(path).score().items():
            assert output.metrics[f"test_{metric}"] == pytest.approx(value, abs=1e-12, nan_ok=True), metric
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}


# Comparison


@pytest.mark.parametrize("name", TASKS)
def test_identical_predictions_differ_by_zero_in_every_resample(name: str, system) -> None:
    one = system(name, 1)
    compared = compare_task([(one, one), (system(name, 2),) * 2], resamples=200)
    assert (compared.difference, compared.interval, compared.by_seed) == (0.0, (0.0, 0.0), (0.0, 0.0))
    assert judge(compared).verdict == "no difference"


@pytest.mark.parametrize("name", TASKS)
def test_swapped_systems_negate_difference_and_interval(name: str, system) -> None:
    one, other = system(name, 1), system(name, 2)
    here, there = compare_task([(one, other)], 500), compare_task([(other, one)], 500)
    assert here.difference == pytest.approx(-there.difference) and here.difference != 0
    assert here.interval == pytest.approx((-there.interval[1], -there.interval[0]))
    assert here.interval[0] < here.difference < here.interval[1]


def test_the_order_of_rows_and_the_number_of_equal_seeds_change_nothing(system) -> None:
    """A seed is no example: seeds that say the same do not narrow the interval."""
    one, other = system("ner", 1), system("ner", 2)
    order = np.random.default_rng(0).permutation(len(other.rows))
    shuffled = TaskPredictions(
        other.spec, other.rows[order], [other.labels[i] for i in order], [other.predictions[i] for i in order]
    )
    alone = compare_task([(one, other)], 500)
    assert compare_task([(one, shuffled)], 500) == alone
    thrice = compare_task([(one, other)] * 3, 500)
    assert thrice.interval == pytest.approx(alone.interval) and thrice.difference == pytest.approx(alone.difference)


def test_seeds_that_scored_other_rows_are_pooled_over_all_rows() -> None:
    """With nothing shared, the difference is the mean of both and the interval is that of the mean of two."""
    generator = np.random.default_rng(0)
    halves = [np.arange(400), np.arange(400, 800)]
    pairs = []
    for rows in halves:
        right = generator.random((2, 400)) < [[0.7], [0.8]]
        pairs.append(tuple(TaskPredictions(one.spec, rows, one.labels, one.predictions) for one in map(classes, right)))
    both = compare_task(pairs, 4000)
    single = [compare_task([pair], 4000) for pair in pairs]
    assert both.rows == 800
    assert both.difference == pytest.approx(np.mean([one.difference for one in single]))
    width = np.mean([np.ptp(one.interval) for one in single]) / np.sqrt(2)
    assert np.ptp(both.interval) == pytest.approx(width, rel=0.08)
    first, second = pairs[0]
    swapped = [TaskPredictions(one.spec, halves[1], one.labels, one.predictions) for one in (second, first)]
    opposed = compare_task([(first, second), tuple(swapped)], 4000)
    assert opposed.difference == 0 and np.ptp(opposed.interval) > 0.01, "each half is drawn for itself"


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    """Two systems that are right on the same rows more often than chance has it; 400 test sets of 300 rows."""
    generator = np.random.default_rng(1)
    both_right = np.array([[True, True], [True, False], [False, True], [False, False]])
    covered = 0
    for trial in range(400):
        first, second = both_right[generator.choice(4, size=300, p=[0.6, 0.1, 0.14, 0.16])].T
        low, high = compare_task([(classes(first), classes(second))], resamples=400, seed=trial).interval
        covered += low <= 0.04 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_the_interval_is_as_wide_as_the_formula_for_paired_shares() -> None:
    """McNemar's standard error of a difference of accuracies on the same rows."""
    generator = np.random.default_rng(2)
    right = generator.random((2, 2000)) < [[0.8], [0.82]]
    compared = compare_task([(classes(right[0]), classes(right[1]))], 4000)
    error = np.std(right[1].astype(float) - right[0]) / np.sqrt(2000)
    assert np.ptp(compared.interval) == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_tables_of_draws_are_cut_without_losing_a_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has as many examples as there are; together as many resamples as asked."""
    monkeypatch.setattr(task_comparison, "CELLS", 70)
    tables = list(draws(10, 25, seed=0))
    assert [len(table) for table in tables] == [7, 7, 7, 4]
    assert all((table.sum(axis=1) == 10).all() for table in tables)


def test_ranks_of_a_resample_are_those_of_scipy() -> None:
    values = np.array([0.5, 0.1, 0.5, 2.0, 0.1])
    counts = np.array([[2, 1, 0, 3, 1]])
    expected = stats.rankdata(np.repeat(values, counts[0]))
    found = np.repeat(resampled_ranks(values)(counts.astype(float))[0], counts[0])
    np.testing.assert_allclose(found, expected)


def test_a_score_that_nothing_defines_counts_as_zero() -> None:
    """As in the mean score: all answers equal, no entity anywhere."""
    assert spearman_scorer(np.arange(4.0), np.ones(4))(np.ones((1, 4)))[0] == 0.0
    assert ratio_scorer(np.zeros((4, 2)))(np.ones((1, 4)))[0] == 0.0
    empty = TaskPredictions(TINY_TASKS["ner"], np.arange(1), [["O", "O"]], [["O", "O"]])
    assert row_sums(empty).tolist() == [[0, 0]]


def test_systems_that_were_scored_on_other_rows_or_labels_are_not_compared() -> None:
    one = classes(np.ones(5, dtype=bool))
    fewer = TaskPredictions(one.spec, one.rows[:4], one.labels[:4], one.predictions[:4])
    with pytest.raises(ValueError, match="5 and 4 rows were scored, of which 4 are shared"):
        compare_task([(one, fewer)])
    other = TaskPredictions(one.spec, one.rows, [0, 0, 1, 0, 0], one.predictions)
    with pytest.raises(ValueError, match="differ in 1 rows, the first is row 2"):
        compare_task([(one, other)])
    with pytest.raises(ValueError, match="at least one pair"):
        compare_task([])


# Verdict


def compared(difference: float, interval: tuple[float, float], seeds: tuple[float, ...]) -> TaskComparison:
    """A comparison with these differences."""
    return TaskComparison(
        "accuracy", 100, (0.5,) * len(seeds), tuple(0.5 + s for s in seeds), difference, interval, 100
    )


@pytest.mark.parametrize(
    ("difference", "interval", "seeds", "verdict", "advice"),
    [
        (0.02, (0.01, 0.03), (0.02, 0.01), "helps", "keep"),
        (0.02, (0.01, 0.03), (0.05, -0.01), "no difference", "keep"),  # one seed lost
        (0.02, (-0.01, 0.05), (0.02, 0.02), "no difference", "keep, but the interval is wide"),
        (0.0, (-0.004, 0.004), (0.0, 0.0), "no difference", "keep"),
        (-0.008, (-0.015, -0.001), (-0.01, -0.006), "hurts", "weight: "),
        (-0.03, (-0.04, -0.02), (-0.03, -0.03), "hurts", "split off: "),
        (-0.03, (-0.04, -0.02), (-0.07, 0.01), "no difference", "keep"),  # one seed won
    ],
)
def test_the_verdict_needs_the_whole_interval_and_every_seed(
    difference: float, interval: tuple[float, float], seeds: tuple[float, ...], verdict: str, advice: str
) -> None:
    found = judge(compared(difference, interval, seeds))
    assert found.verdict == verdict and found.advice.startswith(advice)
    assert f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}" in found.evidence
    assert (found.advice == advice) == (advice == "keep")


def test_the_evidence_of_one_seed_says_so_and_the_opponent_is_named() -> None:
    found = judge(compared(-0.03, (-0.04, -0.02), (-0.03,)), opponent="topic")
    assert "one seed" in found.evidence and found.advice.endswith("against those of topic")
    assert "topic" not in judge(compared(0.03, (0.02, 0.04), (0.03,)), opponent="topic").advice
