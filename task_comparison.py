"""Whether one system is better than another on a task: paired bootstrap over examples, and a verdict in words.

Pure functions over predictions by row (`task_predictions`); nothing is read, run or drawn here.

    comparison = compare_task([(single_1, multi_1), (single_2, multi_2), (single_3, multi_3)])
    verdict = judge(comparison)

The difference is `second - first` in the task's primary metric. How it is estimated (Efron 1979; paired for systems on
the same examples as in Koehn 2004, https://aclanthology.org/W04-3250):

- The point value of a seed is the difference of the metrics that the evaluation reported; the mean over the seeds is
  the difference of the task.
- The unit that is drawn is an example (a row of the source split), with all that any seed's pair of runs said of it. A
  resample draws as many examples as there are, with replacement; both systems, and all seeds, are scored on the same
  ones, and the seeds' differences are averaged. A seed that scored only some of the examples (a capped split is drawn
  by seed) is scored on those of its own that were drawn.
- The interval is the 2.5th to the 97.5th percentile of the resamples. It says how far other examples would move the
  difference of *these* trained models; the chance of training is not in it: `by_seed` shows that.

Metrics that are a ratio of sums over rows are resampled by those sums: entity F1 by each sentence's true positives,
predicted and true entities (seqeval's own extraction), accuracy by right and all words or rows. Spearman's
correlation is ranked anew in each resample. A score that nothing defines (nan: all answers equal) counts as 0, as in
the mean score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.preprocessing import normalize

from task_metrics import primary_metric
from task_predictions import TaskPredictions

RESAMPLES = 10_000
LEVEL = 0.95
"""Share of the resamples that lie in the interval."""
CELLS = 1_000_000
"""Numbers of one table of draws (resamples x examples): 8 MB each for draws, weights, ranks and their products."""
SPLIT_OFF_BEYOND = 0.01
"""Loss of score, by the whole interval, from which on a model of its own is advised."""
WIDE = 0.01
"""Half the width of an interval from which on `no difference` may hide one that matters."""

Score = Callable[[np.ndarray], np.ndarray]
"""How often each row was drawn (resamples, rows) -> the metric of each resample (resamples,)."""


@dataclass(frozen=True)
class TaskComparison:
    """A task's scores under two systems.

    Attributes:
        metric (str): The primary metric.
        rows (int): Examples in all: the rows of the source split that any seed scored.
        first, second (tuple): The two systems' scores, one a seed, 0 where nothing defines it.
        difference (float): Mean over the seeds of `second - first`.
        interval (tuple): Lowest and highest difference, see the module.
        resamples (int): How many were drawn.
    """

    metric: str
    rows: int
    first: tuple[float, ...]
    second: tuple[float, ...]
    difference: float
    interval: tuple[float, float]
    resamples: int

    @property
    def by_seed(self) -> tuple[float, ...]:
        """The difference of each seed."""
        return tuple(second - first for first, second in zip(self.first, self.second, strict=True))


@dataclass(frozen=True)
class Verdict:
    """What a comparison comes to: `helps`, `no difference` or `hurts`, why, and what to do about it."""

    verdict: str
    evidence: str
    advice: str


# ---------------------------------------------------------------------------------------------------------------------
# Scores of resampled rows


def scorer(predicted: TaskPredictions) -> Score:
    """The function that scores these predictions, each row counted as often as it was drawn."""
    if primary_metric(predicted.spec) == "spearman":
        return spearman_scorer(np.asarray(predicted.labels), np.asarray(predicted.predictions))
    return ratio_scorer(row_sums(predicted))


def row_sums(predicted: TaskPredictions) -> np.ndarray:
    """What each row adds to the numerator and to the denominator of the task's primary metric. Shape (rows, 2)."""
    metric = primary_metric(predicted.spec)
    pairs = list(zip(predicted.labels, predicted.predictions, strict=True))
    if metric == "f1":
        return np.array([f1_sums(set(get_entities(true)), set(get_entities(said))) for true, said in pairs])
    if metric == "micro_f1":
        positives = [(set(np.flatnonzero(true)), set(np.flatnonzero(said))) for true, said in pairs]
        return np.array([f1_sums(true, said) for true, said in positives])
    if metric == "mean_cosine":
        said, true = normalize(np.asarray(predicted.predictions)), normalize(np.asarray(predicted.labels))
        return np.stack([(said * true).sum(axis=1), np.ones(len(true))], axis=1)
    words = [(np.atleast_1d(true), np.atleast_1d(said)) for true, said in pairs]  # accuracy, of rows or of words
    return np.array([((true == said).sum(), len(true)) for true, said in words])


def f1_sums(true: set[Any], said: set[Any]) -> tuple[int, int]:
    """Numerator and denominator of F1 = 2 tp / (predicted + true)."""
    return 2 * len(true & said), len(true) + len(said)


def ratio_scorer(sums: np.ndarray) -> Score:
    """The score of a metric that is a ratio of two sums over rows; 0 where the lower sum is. `sums` (rows, 2)."""

    def score(counts: np.ndarray) -> np.ndarray:
        upper, lower = (counts.astype(np.float64) @ sums.astype(np.float64)).T
        return np.divide(upper, lower, out=np.zeros_like(upper), where=lower > 0)

    return score


def spearman_scorer(true: np.ndarray, said: np.ndarray) -> Score:
    """Spearman's correlation of the rows drawn, ranked anew: Pearson's of the mean ranks; 0 where one is constant."""
    of_true, of_said = resampled_ranks(true), resampled_ranks(said)

    def score(counts: np.ndarray) -> np.ndarray:
        weights = counts.astype(np.float64)
        total = np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
        x, y = of_true(weights), of_said(weights)
        x, y = (ranks - (weights * ranks).sum(axis=1, keepdims=True) / total for ranks in (x, y))
        covariance, of_x, of_y = ((weights * product).sum(axis=1) for product in (x * y, x * x, y * y))
        scale = np.sqrt(of_x * of_y)
        return np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 1e-9)

    return score


def resampled_ranks(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """How often each row was drawn -> its rank among all that was drawn, equal values having their mean rank.

    Both of shape (resamples, rows). The ranks of `c` copies of equal values after `b` smaller ones are b + 1 to b + c.
    """
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(distinct)))

    def ranks(weights: np.ndarray) -> np.ndarray:
        copies = np.add.reduceat(weights[:, order], starts, axis=1)  # (resamples, distinct values)
        return (np.cumsum(copies, axis=1) - copies + (copies + 1) / 2)[:, group]

    return ranks


# ---------------------------------------------------------------------------------------------------------------------
# The comparison


def check_pair(first: TaskPredictions, second: TaskPredictions) -> TaskPredictions:
    """The second with its rows in the order of the first.

    Raises:
        ValueError: unless both scored the same rows, with the same labels.
    """
    there = {int(row): place for place, row in enumerate(second.rows)}
    if sorted(there) != sorted(first.rows.tolist()) or len(there) != len(second.rows):
        shared = len(there.keys() & set(first.rows.tolist()))
        raise ValueError(
            f"A paired comparison needs two systems scored on the same rows; {len(first.rows)} and {len(second.rows)} "
            f"rows were scored, of which {shared} are shared. Score both on the same split with the same seed."
        )
    places = [there[int(row)] for row in first.rows]
    labels = [second.labels[place] for place in places]
    differ = [i for i, (one, other) in enumerate(zip(first.labels, labels, strict=True)) if not np.all(one == other)]
    if differ:
        raise ValueError(
            f"A paired comparison needs the same labels on both sides; they differ in {len(differ)} rows, the first is "
            f"row {first.rows[differ[0]]}. Score both with the same data and the same order of labels."
        )
    return TaskPredictions(second.spec, first.rows, labels, [second.predictions[place] for place in places])


def draws(examples: int, resamples: int, seed: int) -> Any:
    """Tables of how often each example was drawn, until there are enough resamples. Each (some, examples), int64."""
    generator = np.random.default_rng(seed)
    size = max(1, min(resamples, CELLS // max(1, examples)))
    for start in range(0, resamples, size):
        some = min(size, resamples - start)
        drawn = generator.integers(examples, size=(some, examples)) + examples * np.arange(some)[:, None]
        yield np.bincount(drawn.ravel(), minlength=some * examples).reshape(some, examples)


def compare_task(
    pairs: Sequence[tuple[TaskPredictions, TaskPredictions]], resamples: int = RESAMPLES, seed: int = 0
) -> TaskComparison:
    """Compare two systems on a task; see the module.

    Args:
        pairs (Sequence): First and second system's predictions, one pair a seed of training.
        resamples (int): Bootstrap resamples.
        seed (int): Decides the draws.

    Raises:
        ValueError: if there is no pair, no row, or a pair was not scored on the same rows and labels.
    """
    if not pairs or not all(len(first.rows) for first, _ in pairs):
        raise ValueError("A comparison needs at least one pair of runs, and rows that both were scored on; got none.")
    pairs = [(first, check_pair(first, second)) for first, second in pairs]
    examples = np.unique(np.concatenate([first.rows for first, _ in pairs]))
    places = [np.searchsorted(examples, first.rows) for first, _ in pairs]
    scorers = [(scorer(first), scorer(second)) for first, second in pairs]
    once = [np.ones((1, len(first.rows)), dtype=np.int64) for first, _ in pairs]
    firsts = tuple(float(first(counts)[0]) for (first, _), counts in zip(scorers, once, strict=True))
    seconds = tuple(float(second(counts)[0]) for (_, second), counts in zip(scorers, once, strict=True))
    resampled = [
        np.mean([second(c[:, p]) - first(c[:, p]) for (first, second), p in zip(scorers, places, strict=True)], axis=0)
        for c in draws(len(examples), resamples, seed)
    ]
    low, high = np.quantile(np.concatenate(resampled), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return TaskComparison(
        metric=primary_metric(pairs[0][0].spec),
        rows=len(examples),
        first=firsts,
        second=seconds,
        difference=float(np.mean(np.subtract(seconds, firsts))),
        interval=(float(low), float(high)),
        resamples=resamples,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The verdict

RULES = f"""- **helps**: the whole interval lies above 0, and the difference is above 0 for every seed. Advice: keep.
- **hurts**: the whole interval lies below 0, and the difference is below 0 for every seed. Advice: split off, if the
  whole interval lies below -{100 * SPLIT_OFF_BEYOND:.2f} points (a model of its own costs a second pass, and wins that
  much); else weight: raise the task's `loss.weight` or its sampling share. Where its gradients point against those of
  another task (mean cosine more than two standard errors below 0), that task is named.
- **no difference**: everything else. Advice: keep, since one model and one pass do the work of several; where half the
  interval is wider than {100 * WIDE:.2f} points, more test rows or seeds would have to say whether there is one."""
"""How `judge` comes to its words, for the report."""


def judge(comparison: TaskComparison, opponent: str | None = None) -> Verdict:
    """The verdict of sharing, where the second system is the shared one; the rules are `RULES`.

    Args:
        comparison (TaskComparison): First: the task alone; second: the tasks together.
        opponent (str): The task whose gradients point against this one's, if any does.
    """
    low, high = comparison.interval
    seeds = comparison.by_seed
    evidence = f"{points(comparison.difference)} points, interval {points(low)} to {points(high)}"
    if len(seeds) > 1:
        evidence += f"; seeds {points(min(seeds))} to {points(max(seeds))}"
    else:
        evidence += "; one seed, so chance of training is not covered"
    if low > 0 and min(seeds) > 0:
        return Verdict("helps", evidence, "keep")
    if high < 0 and max(seeds) < 0:
        against = f"; its gradients point against those of {opponent}" if opponent else ""
        if high < -SPLIT_OFF_BEYOND:
            return Verdict("hurts", evidence, f"split off: train it alone{against}")
        return Verdict("hurts", evidence, f"weight: raise its loss.weight or its sampling share{against}")
    is_wide = (high - low) / 2 > WIDE
    doubt = ", but the interval is wide: more test rows or seeds would tell" if is_wide else ""
    return Verdict("no difference", evidence, f"keep{doubt}")


def points(difference: float) -> str:
    """A difference of scores in points (hundredths) with its sign."""
    return f"{100 * difference:+.2f}"
