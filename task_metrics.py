"""Predictions and labels of one evaluation -> named numbers, by kind of task, and their mean over tasks.

The numbers come from scikit-learn, scipy and seqeval, through `evaluate.Metric` subclasses that are defined here, so
that scoring needs no network. This module loads no data, runs no model and draws nothing (`task_plots` does).

    metrics = MultiTaskMetrics(config.tasks)
    Trainer(..., compute_metrics=metrics, preprocess_logits_for_metrics=preprocess_logits_for_metrics)

What is computed (0 to 1, higher is better; but `mse` has no upper bound and correlations reach down to -1):

| task | primary | beside it |
|---|---|---|
| one class | `accuracy` | `macro_f1` over the classes that occur in labels or predictions, `matthews` |
| several classes | `micro_f1` | `macro_f1` over all labels, `subset_accuracy`; predicted is what has a logit above 0 |
| a number | `spearman` | `pearson`, `mse` |
| tags in BIO form | `f1` | `precision`, `recall` of entities as conlleval counts them; `strict_f1` of strict IOB2; |
| | | `word_accuracy`; `reduced_word_accuracy`, which compares entity types only (no B- and I-) |
| other tags | `accuracy` | `macro_f1` over the tags that occur; both count words |
| similarity | `spearman` | `pearson`; both of the cosine |
| embeddings | `mean_cosine` | |

and everywhere `rows`: the items that carried a label; only they are scored. Where a score divides by zero it follows
the libraries and is 0 (F1, precision, recall without a positive; Matthews of a constant). A number is nan only where
nothing defines it: a correlation with a constant or over fewer than two rows, and anything over no rows.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
import torch
from scipy import stats
from seqeval.metrics import f1_score as entity_f1_score
from seqeval.metrics import precision_score as entity_precision_score
from seqeval.metrics import recall_score as entity_recall_score
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef, mean_squared_error
from sklearn.preprocessing import normalize
from transformers import EvalPrediction

from configuration_multitask import (
    FEATURE_EXTRACTION,
    LABEL_PADDING,
    MULTI_LABEL,
    REGRESSION,
    SENTENCE_SIMILARITY,
    SINGLE_LABEL,
    TASK_KINDS,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    check_choice,
    entity_types,
    has_entities,
    nearest_name,
)

logger = logging.getLogger(__name__)


def correlation(name: str, x: np.ndarray, y: np.ndarray) -> float:
    """The `pearson` or `spearman` correlation of two float64 vectors; nan where one is constant or shorter than 2."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    function = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[name]
    return float(function(x, y).statistic)


def matthews(true: np.ndarray, predicted: np.ndarray) -> float:
    """Matthews' correlation of two vectors of class ids; 0 where one of them is constant, as scikit-learn has it."""
    if len(np.union1d(true, predicted)) < 2:
        return 0.0  # scikit-learn's value too, but with a warning about the shape of a matrix that nobody asked for
    return float(matthews_corrcoef(true, predicted))


def entity_type(tag: str) -> str:
    """The type of a BIO tag without its prefix: `B-PER` -> `PER`; `O` stays `O`."""
    return tag if tag == "O" else tag[2:]


class TaskMetric(evaluate.Metric):
    """Base of the metrics of one kind of task: `compute(predictions=..., references=...)` over labelled rows.

    Values are kept in memory, none is written to a cache file. In a distributed evaluation `Trainer` gathers first, so
    every process scores all rows.
    """

    metric_names: ClassVar[tuple[str, ...]] = ()
    """The keys of what `compute` returns; the first is the primary metric."""
    value: ClassVar[Any] = None
    """The `datasets` feature of one prediction and of one reference."""

    def __init__(self, **kwargs: Any):
        """Pass `kwargs` on to `evaluate.Metric`."""
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="",
            features=datasets.Features({"predictions": self.value, "references": self.value}),
        )


class ClassificationMetric(TaskMetric):
    """Accuracy, macro-F1 and Matthews' correlation of class ids, one a row."""

    metric_names = ("accuracy", "macro_f1", "matthews")
    value = datasets.Value("int64")

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        predicted, true = np.asarray(predictions), np.asarray(references)
        return {
            "accuracy": float(accuracy_score(true, predicted)),
            "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0)),
            "matthews": matthews(true, predicted),
        }


class MultiLabelMetric(TaskMetric):
    """Micro-F1, macro-F1 and subset accuracy of 0/1 vectors, one a row, one place a label."""

    metric_names = ("micro_f1", "macro_f1", "subset_accuracy")
    value = datasets.Sequence(datasets.Value("int64"))

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        predicted, true = np.asarray(predictions), np.asarray(references)
        labels = list(range(true.shape[1]))
        if len(labels) == 1:  # scikit-learn reads one column as binary classes, of which only class 1 is the label
            predicted, true, labels = predicted[:, 0], true[:, 0], [1]
        return {
            "micro_f1": float(f1_score(true, predicted, average="micro", labels=labels, zero_division=0)),
            "macro_f1": float(f1_score(true, predicted, average="macro", labels=labels, zero_division=0)),
            "subset_accuracy": float(accuracy_score(true, predicted)),
        }


class RegressionMetric(TaskMetric):
    """Spearman's and Pearson's correlation and the mean squared error of numbers, one a row."""

    metric_names = ("spearman", "pearson", "mse")
    value = datasets.Value("float64")

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        predicted, true = np.asarray(predictions), np.asarray(references)
        return {
            "spearman": correlation("spearman", true, predicted),
            "pearson": correlation("pearson", true, predicted),
            "mse": float(mean_squared_error(true, predicted)),
        }


class SimilarityMetric(TaskMetric):
    """Spearman's and Pearson's correlation of the cosines of text pairs with their labels."""

    metric_names = ("spearman", "pearson")
    value = datasets.Value("float64")

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        predicted, true = np.asarray(predictions), np.asarray(references)
        return {name: correlation(name, true, predicted) for name in self.metric_names}


class EmbeddingMetric(TaskMetric):
    """Mean cosine of embeddings with the teacher's; a vector of zeros has cosine 0 with everything."""

    metric_names = ("mean_cosine",)
    value = datasets.Sequence(datasets.Value("float64"))

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        predicted, true = normalize(np.asarray(predictions)), normalize(np.asarray(references))
        return {"mean_cosine": float((predicted * true).sum(axis=1).mean())}


class EntityMetric(TaskMetric):
    """Entity and word scores of BIO tag names, a list of names a row (seqeval).

    `f1`, `precision` and `recall` count entities as conlleval does (an I- may begin one), micro-averaged over types;
    `strict_f1` takes only well-formed IOB2 entities. The two differ wherever a model writes an I- without its B-.
    """

    metric_names = ("f1", "precision", "recall", "strict_f1", "word_accuracy", "reduced_word_accuracy")
    value = datasets.Sequence(datasets.Value("string"))

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        predicted, true = list(map(list, predictions)), list(map(list, references))
        words, true_words = list(chain.from_iterable(predicted)), list(chain.from_iterable(true))
        types, true_types = list(map(entity_type, words)), list(map(entity_type, true_words))
        return {
            "f1": float(entity_f1_score(true, predicted, zero_division=0)),
            "precision": float(entity_precision_score(true, predicted, zero_division=0)),
            "recall": float(entity_recall_score(true, predicted, zero_division=0)),
            "strict_f1": float(entity_f1_score(true, predicted, mode="strict", scheme=IOB2, zero_division=0)),
            "word_accuracy": float(accuracy_score(true_words, words)),
            "reduced_word_accuracy": float(accuracy_score(true_types, types)),
        }


class TagMetric(TaskMetric):
    """Accuracy and macro-F1 over words of tag ids, a list of ids a row."""

    metric_names = ("accuracy", "macro_f1")
    value = datasets.Sequence(datasets.Value("int64"))

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        predicted, true = np.concatenate(list(predictions)), np.concatenate(list(references))
        return {
            "accuracy": float(accuracy_score(true, predicted)),
            "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0)),
        }


METRIC_CLASSES: dict[str, type[TaskMetric]] = {
    SINGLE_LABEL: ClassificationMetric,
    MULTI_LABEL: MultiLabelMetric,
    REGRESSION: RegressionMetric,
    SENTENCE_SIMILARITY: SimilarityMetric,
    FEATURE_EXTRACTION: EmbeddingMetric,
}
"""The metric by problem type (text-classification) or kind; token-classification is decided by its labels."""
TAG_METRIC_CLASSES: tuple[type[TaskMetric], ...] = (EntityMetric, TagMetric)
PRIMARY_METRICS = frozenset(metric.metric_names[0] for metric in (*METRIC_CLASSES.values(), *TAG_METRIC_CLASSES))
"""The primary metrics of all forms; the metrics of one task hold exactly one of these names."""


def answer_form(spec: dict[str, Any]) -> str:
    """What a task answers: the problem type of a text-classification task (default: one class), else its kind."""
    if spec["kind"] == TEXT_CLASSIFICATION:
        return spec.get("problem_type") or SINGLE_LABEL
    return spec["kind"]


def metric_class(spec: dict[str, Any]) -> type[TaskMetric]:
    """The `TaskMetric` that scores a task with this specification."""
    if spec["kind"] == TOKEN_CLASSIFICATION:
        return EntityMetric if has_entities(spec["labels"]) else TagMetric
    return METRIC_CLASSES[answer_form(spec)]


def primary_metric(spec: dict[str, Any]) -> str:
    """The name of the one number that a task is judged by, without prefix: `accuracy`, `f1`, `spearman`, ..."""
    return metric_class(spec).metric_names[0]


def label_is_there(labels: np.ndarray) -> np.ndarray:
    """Where there is a label, as bool of the same shape: not `LABEL_PADDING` (integers), not NaN (floats)."""
    return ~np.isnan(labels) if np.issubdtype(labels.dtype, np.floating) else labels != LABEL_PADDING


def shapes_fit(spec: dict[str, Any], predictions: np.ndarray, labels: np.ndarray) -> bool:
    """Whether predictions and labels have the shapes that the task's form asks for (see `labelled_values`)."""
    form = answer_form(spec)
    if form == SINGLE_LABEL:
        return labels.ndim == 1 and predictions.shape == (len(labels), len(spec["labels"]))
    if form == MULTI_LABEL:
        return labels.shape == predictions.shape == (len(labels), len(spec["labels"]))
    return labels.shape == predictions.shape and labels.ndim == (1 if form in (REGRESSION, SENTENCE_SIMILARITY) else 2)


def check_shapes(task_name: str, spec: dict[str, Any], predictions: np.ndarray, labels: np.ndarray) -> None:
    """Raise ValueError, showing both shapes, unless predictions and labels go together."""
    if shapes_fit(spec, predictions, labels):
        return
    classes = f" with {len(spec['labels'])} labels" if spec.get("labels") else ""
    way_out = "Score with the task specifications of the model that made the predictions."
    if spec["kind"] == TOKEN_CLASSIFICATION and predictions.ndim == 3:
        way_out = "Pass preprocess_logits_for_metrics to Trainer: it makes tag ids of tag logits."
    raise ValueError(
        f"Task {task_name!r} ({answer_form(spec)}{classes}): predictions of shape {predictions.shape} do not go with "
        f"labels of shape {labels.shape}. {way_out}"
    )


def check_finite(task_name: str, predictions: np.ndarray, rows: np.ndarray) -> None:
    """Raise ValueError naming the first of `rows` (their numbers) whose prediction has a NaN or an infinity."""
    finite = np.isfinite(predictions).all(axis=tuple(range(1, predictions.ndim)))
    if not finite.all():
        raise ValueError(
            f"Task {task_name!r}: every labelled row needs a finite prediction; evaluated row {rows[~finite][0]} (and "
            f"{(~finite).sum() - 1} more of {len(rows)}) got {predictions[~finite][0]}. A model that puts out NaN or "
            f"infinity has diverged: lower the learning rate, or train without bf16."
        )


def check_ids(task_name: str, what: str, ids: np.ndarray, labels: list[str]) -> None:
    """Raise ValueError unless all `ids` are positions in `labels`."""
    wrong = ids[(ids < 0) | (ids >= len(labels))]
    if wrong.size:
        raise ValueError(
            f"Task {task_name!r}: {what} must be 0 to {len(labels) - 1} ({len(labels)} labels); got {wrong[0]}. Data "
            f"and model know different labels; align the data by label names (task_data does)."
        )


def labelled_values(task_name: str, spec: dict[str, Any], predictions: Any, labels: Any) -> tuple[list[Any], list[Any]]:
    """Return what a task's metric compares: one prediction and one reference for every row that carries a label.

    Args:
        task_name (str): For messages.
        spec (dict): The task's specification.
        predictions (ndarray): Logits (rows, classes); numbers (rows,) or (rows, 1); tag ids (rows, tokens); cosines
            (rows,); or embeddings (rows, dim).
        labels (ndarray): Class ids (rows,); 0/1 (rows, classes); numbers (rows,); tag ids (rows, tokens); scores
            (rows,); or embeddings (rows, dim). `LABEL_PADDING` (integers) or NaN (floats) where there is none.

    Returns:
        Two lists, predictions and references: class ids, 0/1 vectors, float64 numbers or vectors; for tags a list a
        row over its labelled words, of names (BIO tags) or ids (others).

    Raises:
        ValueError: for shapes, ids or values that cannot be scored; the message names the task.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    form = answer_form(spec)
    if form == REGRESSION and predictions.ndim == 2 and predictions.shape[1] == 1:
        predictions = predictions[:, 0]
    check_shapes(task_name, spec, predictions, labels)
    there = label_is_there(labels)
    rows = np.flatnonzero(there if labels.ndim == 1 else there.any(axis=1))
    predictions, labels, there = predictions[rows], labels[rows], there[rows]
    if form == TOKEN_CLASSIFICATION:
        return labelled_tags(task_name, spec["labels"], predictions, labels, there)
    check_finite(task_name, predictions, rows)
    if form == SINGLE_LABEL:
        check_ids(task_name, "class ids", labels, spec["labels"])
        return list(predictions.argmax(axis=1)), list(labels)
    if form == MULTI_LABEL:
        return list((predictions > 0).astype(int)), list((labels > 0.5).astype(int))
    return list(predictions.astype(np.float64)), list(labels.astype(np.float64))


def labelled_tags(
    task_name: str, labels: list[str], predicted_ids: np.ndarray, true_ids: np.ndarray, there: np.ndarray
) -> tuple[list[Any], list[Any]]:
    """Return predicted and true tags, a list a row, of the words that are `there`: names of BIO tags, ids of others."""
    check_ids(task_name, "tag ids", true_ids[there], labels)
    check_ids(task_name, "predicted tag ids", predicted_ids[there], labels)
    names = np.array(labels, dtype=object) if has_entities(labels) else np.arange(len(labels))
    ids = ((p[place], t[place]) for p, t, place in zip(predicted_ids, true_ids, there, strict=True))
    pairs = [(names[predicted].tolist(), names[true].tolist()) for predicted, true in ids]
    return [predicted for predicted, _ in pairs], [true for _, true in pairs]


def arrays_by_task(prediction: EvalPrediction) -> dict[str, tuple[Any, Any]]:
    """Return task name -> (predictions, labels) of an evaluation, for the tasks that came with labels.

    Raises:
        ValueError: if they did not come as dicts by task, or a task has labels but no predictions.
    """
    predictions: Any = prediction.predictions  # transformers declares arrays, but nests them as the model's outputs are
    labels: Any = prediction.label_ids
    if not isinstance(predictions, Mapping) or not isinstance(labels, Mapping) or not labels:
        raise ValueError(
            f"Multi-task metrics need predictions and label_ids as dicts from task name to array; got "
            f"{type(predictions).__name__} and {type(labels).__name__}. Evaluate a MultiTaskModel with a batch of "
            f"MultiTaskDataCollator (a one-head view puts out bare arrays)."
        )
    missing = sorted(set(labels) - set(predictions))
    if missing:
        raise ValueError(
            f"Every labelled task needs predictions; {', '.join(missing)} has labels only (predictions came for: "
            f"{', '.join(sorted(predictions)) or 'none'}). Run the model with these tasks."
        )
    return {task_name: (predictions[task_name], labels[task_name]) for task_name in labels}


def score_task(task_name: str, spec: dict[str, Any], predictions: Any, labels: Any) -> dict[str, float]:
    """Return the metrics of one task and its `rows`; arguments and errors as `labelled_values` has them."""
    predicted, true = labelled_values(task_name, spec, predictions, labels)
    metric = metric_class(spec)
    if not true:
        logger.warning(f"Task {task_name!r}: none of the {len(labels)} evaluated rows has a label; its scores are nan.")
        return {**dict.fromkeys(metric.metric_names, math.nan), "rows": 0}
    return {**metric().compute(predictions=predicted, references=true), "rows": len(true)}


class MultiTaskMetrics:
    """`compute_metrics` for any mix of tasks: reads the task from the keys of predictions and labels.

    Args:
        tasks (dict): Task name -> specification, as `MultiTaskConfig.tasks` has it.

    Raises:
        ValueError: for a kind that is not known.
    """

    def __init__(self, tasks: dict[str, dict[str, Any]]):
        for task_name, spec in tasks.items():
            check_choice(task_name, "kind", spec.get("kind"), TASK_KINDS)
        self.tasks = tasks

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the metrics of the labelled task (keys as in the module's table), on the rows that carry a label.

        `Trainer` puts `eval_<task>_` in front when it evaluates task by task. Where several tasks come with labels at
        once (one evaluation set of aligned or mixed items), the keys are `<task>_<metric>`, so that under Trainer's
        `eval_` they read the same.

        Raises:
            ValueError: for arrays that do not come by task, an unknown task, or values that cannot be scored.
        """
        arrays = arrays_by_task(prediction)
        for task_name in arrays:
            if task_name not in self.tasks:
                raise ValueError(
                    f"Labels came for a task {task_name!r} that is not known; known tasks: "
                    f"{', '.join(sorted(self.tasks)) or 'none'}.{nearest_name(task_name, self.tasks)}"
                )
        scores = {name: score_task(name, self.tasks[name], *pair) for name, pair in arrays.items()}
        if len(scores) == 1:
            return next(iter(scores.values()))
        return {f"{name}_{metric}": value for name, metrics in scores.items() for metric, value in metrics.items()}


def preprocess_logits_for_metrics(logits: Any, labels: Any) -> Any:
    """Return `logits` with tag logits (items, tokens, tags) reduced to tag ids (items, tokens), others untouched.

    For `Trainer(preprocess_logits_for_metrics=...)`, which would keep the logits of every token of the evaluation set.

    Args:
        logits (dict): Task name -> tensor, one row per item.
        labels (dict): Not read; Trainer passes it.
    """
    if not isinstance(logits, Mapping):
        return logits
    return {name: tag_ids(tensor) if tensor.ndim == 3 else tensor for name, tensor in logits.items()}


def tag_ids(logits: torch.Tensor) -> torch.Tensor:
    """Tag logits (items, tokens, tags) -> the best tag's id (items, tokens), int64."""
    return logits.argmax(dim=-1)


def mean_score(metrics: Mapping[str, float], tasks: dict[str, dict[str, Any]], prefix: str = "eval") -> float:
    """Return the mean over tasks of the primary metrics `<prefix>_<task>_<metric>`; a nan counts as 0.

    A model that answers every pair with the same cosine has no rank correlation (nan); 0 is what it has earned, and a
    nan would end the search for the best model.

    Raises:
        ValueError: if `tasks` is empty or a task's primary metric is missing; the message lists the missing keys.
    """
    keys = [f"{prefix}_{task_name}_{primary_metric(spec)}" for task_name, spec in tasks.items()]
    missing = [key for key in keys if key not in metrics]
    if missing or not keys:
        raise ValueError(
            f"The mean score needs the primary metric of every task; missing: {', '.join(missing) or 'any task'}. "
            f"Metrics that came: {', '.join(sorted(metrics)) or 'none'}. Evaluate every task first "
            f"(eval_dataset={{task: dataset}})."
        )
    return sum(0.0 if math.isnan(metrics[key]) else float(metrics[key]) for key in keys) / len(keys)


def confusion(spec: dict[str, Any], prediction: EvalPrediction) -> tuple[list[str], np.ndarray] | None:
    """Return label names and how often each (row) was answered with each (column), for a task of classes or tags.

    Args:
        spec (dict): The task's specification.
        prediction (EvalPrediction): Predictions and labels of this one task, as `MultiTaskMetrics` takes them.

    Returns:
        Names and counts, shape (names, names), true x predicted, int64, over labelled rows; for tags over words, and
        for BIO tags over `O` and the entity types. None for the other kinds, several classes (multi-label) among them.

    Raises:
        ValueError: if labels came for more than one task, or cannot be scored.
    """
    if answer_form(spec) not in (SINGLE_LABEL, TOKEN_CLASSIFICATION):
        return None
    arrays = arrays_by_task(prediction)
    if len(arrays) != 1:
        raise ValueError(f"A confusion matrix is of one task; labels came for {', '.join(arrays)}. Pass one of them.")
    [(task_name, pair)] = arrays.items()
    predicted, true = labelled_values(task_name, spec, *pair)
    if spec["kind"] == TOKEN_CLASSIFICATION:
        predicted, true = list(chain.from_iterable(predicted)), list(chain.from_iterable(true))
        if has_entities(spec["labels"]):
            types = ["O", *entity_types(spec["labels"])]
            return types, count_pairs(list(map(entity_type, true)), list(map(entity_type, predicted)), types)
    return list(spec["labels"]), count_pairs(true, predicted, list(range(len(spec["labels"]))))


def count_pairs(true: list[Any], predicted: list[Any], classes: list[Any]) -> np.ndarray:
    """How often each of the `classes` (row) met each (column); shape (classes, classes), int64, zeros without data."""
    if not true:
        return np.zeros((len(classes), len(classes)), dtype=np.int64)
    return confusion_matrix(true, predicted, labels=classes).astype(np.int64)
