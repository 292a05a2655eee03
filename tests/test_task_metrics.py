"""Metrics equal the libraries' own numbers, count only labelled rows, and refuse what cannot be scored."""

import functools
import math
from itertools import chain

import numpy as np
import pytest
import torch
from scipy import stats
from seqeval.metrics import f1_score as entity_f1
from seqeval.metrics import precision_score as entity_precision
from seqeval.metrics import recall_score as entity_recall
from seqeval.scheme import IOB2
from sklearn import metrics as sklearn_metrics
from sklearn.metrics.pairwise import cosine_similarity
from transformers import EvalPrediction

from task_metrics import (
    ClassificationMetric,
    MultiTaskMetrics,
    confusion,
    mean_score,
    preprocess_logits_for_metrics,
    primary_metric,
)

BIO_LABELS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-work-of-art", "I-work-of-art"]
SPECS = {
    "topic": {"kind": "text-classification", "labels": ["World", "Sports", "Business", "Science"]},
    "genre": {
        "kind": "text-classification",
        "problem_type": "multi_label_classification",
        "labels": ["news", "essay", "review"],
    },
    "stars": {"kind": "text-classification", "problem_type": "regression", "labels": ["score"]},
    "ner": {"kind": "token-classification", "labels": BIO_LABELS},
    "pos": {"kind": "token-classification", "labels": ["NOUN", "VERB", "ADJ", "X"]},
    "sts": {"kind": "sentence-similarity"},
    "teacher": {"kind": "feature-extraction"},
}
PRIMARY = {
    "topic": "accuracy",
    "genre": "micro_f1",
    "stars": "spearman",
    "ner": "f1",
    "pos": "accuracy",
    "sts": "spearman",
    "teacher": "mean_cosine",
}


def score(task_name, predictions, labels, specs=SPECS):
    """Score one task as Trainer does: both arrays in a dict by task."""
    prediction = EvalPrediction(predictions={task_name: predictions}, label_ids={task_name: labels})
    return MultiTaskMetrics(specs)(prediction)


def random_tags(seed, classes, rows=60, tokens=12):
    """Predicted and true tag ids (rows, tokens), padded with -100: special tokens, second sub-words, row ends.

    A true tag is predicted right two times in three, so that entities are found and missed.
    """
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, (rows, tokens))
    predicted = np.where(rng.random((rows, tokens)) < 0.67, true, rng.integers(0, classes, (rows, tokens)))
    lengths = rng.integers(3, tokens, rows)
    padding = np.arange(tokens) >= lengths[:, None]
    unlabelled = padding | (rng.random((rows, tokens)) < 0.2)
    unlabelled[:, 0] = True  # [CLS]
    unlabelled[:, 1] = False
    return np.where(padding, -100, predicted), np.where(unlabelled, -100, true)


def names_of(labels, predicted, true):
    """Tag names a row, only where there is a label: the plain reading that the module is compared with."""
    rows = zip(predicted, true, strict=True)
    pairs = [[(labels[p], labels[t]) for p, t in zip(*row, strict=True) if t != -100] for row in rows]
    return [[p for p, _ in row] for row in pairs], [[t for _, t in row] for row in pairs]


def equal(value, expected):
    return value == pytest.approx(expected, abs=1e-12, rel=0)


@pytest.mark.parametrize("task_name", SPECS)
def test_primary_metric_is_the_one_of_the_kind_and_is_computed(task_name):
    assert primary_metric(SPECS[task_name]) == PRIMARY[task_name]


@pytest.mark.parametrize("seed", range(3))
def test_classification_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(200, 4)).astype(np.float32), rng.integers(0, 4, 200)
    scores, predicted = score("topic", logits, labels), logits.argmax(1)
    assert equal(scores["accuracy"], sklearn_metrics.accuracy_score(labels, predicted))
    assert equal(scores["macro_f1"], sklearn_metrics.f1_score(labels, predicted, average="macro"))
    assert equal(scores["matthews"], sklearn_metrics.matthews_corrcoef(labels, predicted))
    assert scores["rows"] == 200 and set(scores) == {"accuracy", "macro_f1", "matthews", "rows"}


@pytest.mark.parametrize("seed", range(3))
def test_multi_label_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(200, 3)).astype(np.float32), rng.integers(0, 2, (200, 3)).astype(np.float32)
    scores, predicted = score("genre", logits, labels), (logits > 0).astype(int)
    assert equal(scores["micro_f1"], sklearn_metrics.f1_score(labels, predicted, average="micro"))
    assert equal(scores["macro_f1"], sklearn_metrics.f1_score(labels, predicted, average="macro"))
    assert equal(scores["subset_accuracy"], sklearn_metrics.accuracy_score(labels, predicted))
    assert set(scores) == {"micro_f1", "macro_f1", "subset_accuracy", "rows"}


@pytest.mark.parametrize("columns", [(150,), (150, 1)])
def test_regression_equals_scipy_for_a_vector_and_for_a_column(columns):
    rng = np.random.default_rng(4)
    labels = rng.normal(size=150).astype(np.float32)
    predictions = (labels + rng.normal(size=150)).astype(np.float32)
    scores = score("stars", predictions.reshape(columns), labels)
    true, predicted = labels.astype(np.float64), predictions.astype(np.float64)
    assert equal(scores["mse"], sklearn_metrics.mean_squared_error(true, predicted))
    assert equal(scores["pearson"], stats.pearsonr(true, predicted).statistic)
    assert equal(scores["spearman"], stats.spearmanr(true, predicted).statistic)
    assert set(scores) == {"mse", "pearson", "spearman", "rows"}


def test_similarity_equals_scipy_ties_included():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 6, 300).astype(np.float32) / 5
    cosines = np.round(labels - 0.5 + rng.normal(scale=0.3, size=300), 1)
    scores = score("sts", cosines, labels)
    assert equal(scores["spearman"], stats.spearmanr(labels.astype(np.float64), cosines).statistic)
    assert equal(scores["pearson"], stats.pearsonr(labels.astype(np.float64), cosines).statistic)
    assert set(scores) == {"spearman", "pearson", "rows"}


def test_embeddings_equal_scikit_learns_cosine():
    rng = np.random.default_rng(6)
    labels, predictions = rng.normal(size=(50, 8)), rng.normal(size=(50, 8))
    scores = score("teacher", predictions, labels)
    assert equal(scores["mean_cosine"], cosine_similarity(predictions, labels).diagonal().mean())
    assert set(scores) == {"mean_cosine", "rows"}


@pytest.mark.parametrize("seed", range(3))
def test_entities_equal_seqeval(seed):
    predicted, true = random_tags(seed, len(BIO_LABELS))
    scores = score("ner", predicted, true)
    predicted_names, true_names = names_of(BIO_LABELS, predicted, true)
    assert equal(scores["f1"], entity_f1(true_names, predicted_names))
    assert equal(scores["precision"], entity_precision(true_names, predicted_names))
    assert equal(scores["recall"], entity_recall(true_names, predicted_names))
    assert equal(scores["strict_f1"], entity_f1(true_names, predicted_names, mode="strict", scheme=IOB2))
    assert scores["strict_f1"] != scores["f1"]  # random tags are ill-formed, so the two must differ
    words, true_words = sum(predicted_names, []), sum(true_names, [])
    assert equal(scores["word_accuracy"], sklearn_metrics.accuracy_score(true_words, words))
    types = [[tag.split("-", 1)[-1] for tag in tags] for tags in (true_words, words)]
    assert equal(scores["reduced_word_accuracy"], sklearn_metrics.accuracy_score(*types))
    keys = {"f1", "precision", "recall", "strict_f1", "word_accuracy", "reduced_word_accuracy", "rows"}
    assert set(scores) == keys and scores["rows"] == 60


def test_tags_equal_scikit_learn_over_words():
    predicted, true = random_tags(9, 4)
    scores, there = score("pos", predicted, true), true != -100
    assert equal(scores["accuracy"], sklearn_metrics.accuracy_score(true[there], predicted[there]))
    assert equal(scores["macro_f1"], sklearn_metrics.f1_score(true[there], predicted[there], average="macro"))
    assert set(scores) == {"accuracy", "macro_f1", "rows"}


def random_fixture(task_name, seed):
    """Predictions and labels of 5 to 60 rows, about a third without a label; few rows miss classes, ties are many."""
    rng = np.random.default_rng([seed, *task_name.encode()])
    rows = int(rng.integers(5, 60))
    absent = rng.random(rows) < 0.33
    absent[:3] = False
    if task_name in ("ner", "pos"):
        predicted, true = random_tags(seed, len(SPECS[task_name]["labels"]), rows)
        return predicted, np.where(absent[:, None], -100, true)
    if task_name == "topic":
        return rng.normal(size=(rows, 4)).astype(np.float32), np.where(absent, -100, rng.integers(0, 4, rows))
    if task_name in ("genre", "teacher"):
        labels = rng.integers(0, 2, (rows, 3)) if task_name == "genre" else rng.normal(size=(rows, 3))
        return rng.normal(size=(rows, 3)), np.where(absent[:, None], np.nan, labels.astype(float))
    labels = np.where(absent, np.nan, rng.permutation(rows) % 7)
    return np.round(rng.normal(size=rows), 1) + rng.permutation(rows) / 20, labels


def libraries_scores(task_name, predictions, labels):
    """What scikit-learn, scipy and seqeval say of the labelled rows alone."""
    there = labels != -100 if labels.dtype == np.int64 else ~np.isnan(labels)
    f1 = functools.partial(sklearn_metrics.f1_score, zero_division=0)
    accuracy = sklearn_metrics.accuracy_score
    if task_name == "ner":
        pred, true = names_of(BIO_LABELS, predictions, labels)
        pred, true = ([row for row, kept in zip(rows, there.any(1), strict=True) if kept] for rows in (pred, true))
        words = [list(chain.from_iterable(rows)) for rows in (true, pred)]
        options = {"zero_division": 0}
        return {
            "f1": entity_f1(true, pred, **options),
            "precision": entity_precision(true, pred, **options),
            "recall": entity_recall(true, pred, **options),
            "strict_f1": entity_f1(true, pred, mode="strict", scheme=IOB2, **options),
            "word_accuracy": accuracy(*words),
            "reduced_word_accuracy": accuracy(*[[tag.split("-", 1)[-1] for tag in tags] for tags in words]),
        }
    if task_name == "teacher":
        kept = there.all(1)
        return {"mean_cosine": cosine_similarity(predictions[kept], labels[kept]).diagonal().mean()}
    if task_name == "genre":
        kept = there.all(1)
        pair = labels[kept].astype(int), (predictions[kept] > 0).astype(int)
        averages = {"micro_f1": "micro", "macro_f1": "macro"}
        return {k: f1(*pair, average=v) for k, v in averages.items()} | {"subset_accuracy": accuracy(*pair)}
    predictions, labels = predictions[there], labels[there]
    if task_name in ("stars", "sts"):
        correlations = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}
        scores = {name: function(labels, predictions).statistic for name, function in correlations.items()}
        return scores | (
            {"mse": sklearn_metrics.mean_squared_error(labels, predictions)} if task_name == "stars" else {}
        )
    predicted = predictions.argmax(-1) if task_name == "topic" else predictions
    scores = {"accuracy": accuracy(labels, predicted), "macro_f1": f1(labels, predicted, average="macro")}
    return scores | ({"matthews": sklearn_metrics.matthews_corrcoef(labels, predicted)} if task_name == "topic" else {})


@pytest.mark.parametrize("task_name", SPECS)
def test_every_metric_of_random_fixtures_with_gaps_is_the_libraries_own(task_name):
    for seed in range(20):
        predictions, labels = random_fixture(task_name, seed)
        scores = score(task_name, predictions, labels)
        expected = libraries_scores(task_name, predictions, labels)
        assert scores.keys() - {"rows"} == expected.keys()
        for name, value in expected.items():
            assert equal(scores[name], value), (seed, name)


def test_classification_worked_example():
    # classes 0,0,1,2; answers 0,1,1,2: F1 of 0 is 2/3, of 1 is 2/3, of 2 is 1; class 3 occurs nowhere and is left out
    scores = score("topic", np.eye(4)[[0, 1, 1, 2]], np.array([0, 0, 1, 2]))
    assert equal(scores["accuracy"], 3 / 4) and equal(scores["macro_f1"], (2 / 3 + 2 / 3 + 1) / 3)
    # Gorodkin's R_K: (c s - sum p t) / sqrt((s^2 - sum p^2)(s^2 - sum t^2)), c = 3, s = 4, p = (1, 2, 1), t = (2, 1, 1)
    assert equal(scores["matthews"], (3 * 4 - 5) / math.sqrt((16 - 6) * (16 - 6)))


def test_multi_label_worked_example():
    logits = np.array([[2.0, -1.0, -1.0], [1.0, 1.0, -2.0]])
    labels = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    # 2 true positives, 1 false positive, none missed; F1: news 2/3, essay 1, review 0 (never there, never said)
    scores = score("genre", logits, labels)
    assert equal(scores["micro_f1"], 4 / 5) and equal(scores["subset_accuracy"], 1 / 2)
    assert equal(scores["macro_f1"], (2 / 3 + 1 + 0) / 3)


def test_multi_label_with_one_label_scores_that_label():
    specs = {"spam": {**SPECS["genre"], "labels": ["spam"]}}
    scores = score("spam", np.array([[1.0], [1.0], [-1.0]]), np.array([[1.0], [0.0], [0.0]]), specs)
    assert equal(scores["micro_f1"], 2 / 3) and equal(scores["macro_f1"], 2 / 3)
    assert equal(scores["subset_accuracy"], 2 / 3)


def test_regression_worked_example():
    scores = score("stars", np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 2.0, 3.0]))
    assert equal(scores["mse"], 1 / 3) and equal(scores["spearman"], 1.0)
    assert equal(scores["pearson"], 3 / math.sqrt(2 * 14 / 3))


def test_entity_worked_example():
    tag = BIO_LABELS.index
    # true: PER, ORG; predicted: PER, ORG by an I- without its B-, and a PER too many: 2 of 3 right, 2 of 2 found
    true = [[-100, tag("B-PER"), tag("I-PER"), tag("O"), tag("B-ORG"), tag("O"), -100]]
    predicted = [[5, tag("B-PER"), tag("I-PER"), tag("O"), tag("I-ORG"), tag("B-PER"), -100]]
    scores = score("ner", np.array(predicted), np.array(true))
    assert equal(scores["precision"], 2 / 3) and equal(scores["recall"], 1.0) and equal(scores["f1"], 4 / 5)
    assert equal(scores["strict_f1"], 2 / 4)  # strict IOB2 sees no entity in I-ORG: 1 of 2 right, 1 of 2 found
    assert equal(scores["word_accuracy"], 3 / 5) and equal(scores["reduced_word_accuracy"], 4 / 5)


def test_embedding_worked_example():
    predictions, labels = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    assert equal(score("teacher", predictions, labels)["mean_cosine"], (1 + math.sqrt(0.5) + 0) / 3)


def test_rows_without_a_label_are_left_out_of_rows_and_scores():
    rng = np.random.default_rng(11)
    nan, rows = np.nan, 40
    kept = rng.random(rows) < 0.6
    tags, true_tags = random_tags(12, len(BIO_LABELS), rows)
    words, true_words = random_tags(13, 4, rows)
    arrays = {
        "topic": (rng.normal(size=(rows, 4)), rng.integers(0, 4, rows), -100),
        "genre": (rng.normal(size=(rows, 3)), rng.integers(0, 2, (rows, 3)).astype(float), nan),
        "stars": (rng.normal(size=(rows, 1)), rng.normal(size=rows), nan),
        "ner": (tags, true_tags, -100),
        "pos": (words, true_words, -100),
        "sts": (rng.normal(size=rows), rng.normal(size=rows), nan),
        "teacher": (rng.normal(size=(rows, 8)), rng.normal(size=(rows, 8)), nan),
    }
    for task_name, (predictions, labels, absent) in arrays.items():
        with_gaps = labels.copy()
        with_gaps[~kept] = absent
        scores = score(task_name, predictions, with_gaps)
        assert scores == score(task_name, predictions[kept], labels[kept]), task_name
        assert scores["rows"] == kept.sum(), task_name


def test_nan_cosine_of_an_item_without_a_pair_is_left_out():
    scores = score("sts", np.array([0.1, np.nan, 0.5, 0.9]), np.array([0.0, np.nan, 0.5, 1.0]))
    assert scores["rows"] == 3 and equal(scores["spearman"], 1.0)


def test_minus_100_is_a_score_like_any_other_where_labels_are_floats():
    scores = score("stars", np.array([-100.0, 0.0, 1.0]), np.array([-100.0, 0.0, 2.0]))
    assert scores["rows"] == 3 and equal(scores["mse"], 1 / 3)


def test_more_padding_never_changes_a_score():
    predicted, true = random_tags(14, len(BIO_LABELS))
    wider = [np.pad(array, ((0, 0), (0, 5)), constant_values=-100) for array in (predicted, true)]
    assert score("ner", *wider) == score("ner", predicted, true)


@pytest.mark.parametrize("task_name", ["topic", "genre", "ner", "pos"])
def test_scores_depend_on_label_names_not_on_their_order(task_name):
    rng = np.random.default_rng(15)
    labels = SPECS[task_name]["labels"]
    order = rng.permutation(len(labels))  # position in the new list -> position in the old one
    specs = {task_name: {**SPECS[task_name], "labels": [labels[i] for i in order]}}
    if task_name in ("ner", "pos"):
        new_id = np.append(np.argsort(order), -100)  # position -1 holds -100: padding stays padding
        pair = [np.where(array == -100, -1, array) for array in random_tags(16, len(labels))]
        old, new = [np.where(array == -1, -100, array) for array in pair], [new_id[array] for array in pair]
    elif task_name == "genre":
        logits, true = rng.normal(size=(80, 3)), rng.integers(0, 2, (80, 3)).astype(float)
        old, new = (logits, true), (logits[:, order], true[:, order])
    else:
        logits, true = rng.normal(size=(80, 4)), rng.integers(0, 4, 80)
        old, new = (logits, true), (logits[:, order], np.argsort(order)[true])
    assert score(task_name, *new, specs) == pytest.approx(score(task_name, *old), abs=1e-12)


def test_one_class_everywhere_is_perfect_with_matthews_0():
    scores = score("topic", np.eye(4)[[2, 2, 2]], np.array([2, 2, 2]))
    assert scores == {"accuracy": 1.0, "macro_f1": 1.0, "matthews": 0.0, "rows": 3}


def test_constant_answer_has_matthews_0():
    scores = score("topic", np.eye(4)[[2, 2, 2, 2]], np.array([2, 2, 1, 0]))
    assert scores["matthews"] == 0.0 and equal(scores["macro_f1"], (2 * 2 / 6) / 3)


def test_labels_without_a_positive_score_0():
    scores = score("genre", np.full((3, 3), -1.0), np.zeros((3, 3)))
    assert scores == {"micro_f1": 0.0, "macro_f1": 0.0, "subset_accuracy": 1.0, "rows": 3}


def test_text_without_an_entity_scores_0_by_entity_and_1_by_word():
    outside = np.array([[-100, 0, 0, -100]])
    scores = score("ner", np.zeros((1, 4), dtype=int), outside)
    assert scores["f1"] == scores["precision"] == scores["recall"] == scores["strict_f1"] == 0.0
    assert scores["word_accuracy"] == scores["reduced_word_accuracy"] == 1.0 and scores["rows"] == 1


def test_one_tag_everywhere_is_perfect():
    scores = score("pos", np.full((2, 3), 1), np.full((2, 3), 1))
    assert scores == {"accuracy": 1.0, "macro_f1": 1.0, "rows": 2}


@pytest.mark.parametrize("task_name", ["stars", "sts"])
@pytest.mark.parametrize(
    ("predictions", "labels"),
    [([0.5, 0.5, 0.5], [0.0, 0.5, 1.0]), ([0.1, 0.5, 0.9], [1.0, 1.0, 1.0]), ([0.3], [0.4])],
)
def test_correlation_is_nan_where_nothing_defines_it(task_name, predictions, labels):
    scores = score(task_name, np.array(predictions), np.array(labels))
    assert math.isnan(scores["spearman"]) and math.isnan(scores["pearson"])
    assert task_name == "sts" or scores["mse"] >= 0


def test_no_labelled_row_gives_nan_and_a_warning(caplog):
    scores = score("topic", np.zeros((2, 4)), np.array([-100, -100]))
    assert scores["rows"] == 0 and all(math.isnan(scores[key]) for key in ("accuracy", "macro_f1", "matthews"))
    assert "'topic': none of the 2 evaluated rows has a label" in caplog.text


def test_several_tasks_at_once_get_their_name_in_front():
    logits, labels, cosines = np.eye(4), np.array([0, 1, 2, -100]), np.array([0.1, 0.2, np.nan, 0.4])
    prediction = EvalPrediction(
        predictions={"sts": cosines, "topic": logits, "stars": np.zeros((4, 1))},
        label_ids={"sts": np.array([0.0, 0.1, np.nan, 1.0]), "topic": labels},
    )
    scores = MultiTaskMetrics(SPECS)(prediction)
    assert scores["topic_accuracy"] == 1.0 and scores["topic_rows"] == 3 and equal(scores["sts_spearman"], 1.0)
    assert {key.split("_")[0] for key in scores} == {"topic", "sts"}


def test_scores_are_plain_numbers():
    scores = score("ner", *random_tags(17, len(BIO_LABELS)))
    assert {type(value) for value in scores.values()} == {float, int}


@pytest.mark.parametrize(
    ("task_name", "predictions", "labels", "message"),
    [
        ("topic", np.zeros((2, 3)), np.array([0, 1]), r"4 labels\): predictions of shape \(2, 3\) .* shape \(2,\)"),
        ("topic", np.zeros((2, 4)), np.array([0, 4]), "class ids must be 0 to 3 .*got 4"),
        ("topic", np.zeros((2, 4)), np.array([0, -1]), "class ids must be 0 to 3 .*got -1"),
        ("topic", np.full((2, 4), np.nan), np.array([-100, 1]), "evaluated row 1 .*diverged"),
        ("sts", np.array([0.1, np.nan]), np.array([0.0, 1.0]), "finite prediction; evaluated row 1"),
        ("ner", np.zeros((2, 3, 7)), np.zeros((2, 3), dtype=int), "preprocess_logits_for_metrics"),
        ("ner", np.zeros((2, 4), dtype=int), np.zeros((2, 3), dtype=int), r"shape \(2, 4\) .* shape \(2, 3\)"),
        ("ner", np.array([[0, -100]]), np.array([[0, 1]]), "predicted tag ids must be 0 to 6 .*got -100"),
        ("pos", np.array([[0, 1]]), np.array([[0, 9]]), "'pos': tag ids must be 0 to 3 .*got 9"),
        ("genre", np.zeros((2, 3)), np.zeros((2, 2)), r"shape \(2, 3\) .* shape \(2, 2\)"),
        ("tpoic", np.zeros((2, 4)), np.array([0, 1]), "known tasks: genre, ner, .*Did you mean 'topic'"),
    ],
)
def test_what_cannot_be_scored_is_refused(task_name, predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        score(task_name, predictions, labels)


def test_bare_arrays_and_missing_predictions_are_refused():
    metrics = MultiTaskMetrics(SPECS)
    with pytest.raises(ValueError, match="dicts from task name to array; got ndarray and ndarray"):
        metrics(EvalPrediction(predictions=np.eye(4), label_ids=np.arange(4)))
    with pytest.raises(ValueError, match="sts has labels only"):
        metrics(EvalPrediction(predictions={"topic": np.eye(4)}, label_ids={"sts": np.arange(4.0)}))
    with pytest.raises(ValueError, match="kind must be one of"):
        MultiTaskMetrics({"topic": {"kind": "classification"}})


def test_logits_of_tags_become_ids_and_others_stay():
    logits = {"ner": torch.randn(2, 5, 7), "topic": torch.randn(2, 4), "sts": torch.randn(2)}
    reduced = preprocess_logits_for_metrics(logits, {})
    assert torch.equal(reduced["ner"], logits["ner"].argmax(-1)) and reduced["ner"].dtype == torch.int64
    assert reduced["topic"] is logits["topic"] and reduced["sts"] is logits["sts"]


def test_mean_score_is_the_mean_of_the_primary_metrics_with_nan_as_0():
    tasks = {name: SPECS[name] for name in ("topic", "ner", "sts")}
    metrics = {
        "test_topic_accuracy": 0.9,
        "test_topic_macro_f1": 0.1,
        "test_ner_f1": 0.6,
        "test_sts_spearman": math.nan,
    }
    assert equal(mean_score(metrics, tasks, prefix="test"), 0.5)


def test_mean_score_without_a_tasks_metric_is_refused():
    with pytest.raises(ValueError, match="missing: eval_sts_spearman"):
        mean_score({"eval_topic_accuracy": 1.0}, {"topic": SPECS["topic"], "sts": SPECS["sts"]})
    with pytest.raises(ValueError, match="missing: any task"):
        mean_score({}, {})


def test_metrics_are_evaluate_metrics_that_take_batches():
    metric = ClassificationMetric()
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add_batch(predictions=[1, 1], references=[0, 1])
    assert metric.compute()["accuracy"] == 0.75
    assert metric.compute(predictions=[0], references=[1])["accuracy"] == 0.0  # nothing is left of the first run


def test_confusion_of_classes_counts_true_by_predicted():
    prediction = EvalPrediction({"topic": np.eye(4)[[0, 1, 1, 2, 3]]}, {"topic": np.array([0, 0, 1, 2, -100])})
    names, counts = confusion(SPECS["topic"], prediction)
    assert names == ["World", "Sports", "Business", "Science"]
    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]] and counts.dtype == np.int64


def test_confusion_of_bio_tags_is_over_words_and_entity_types():
    predicted, true = random_tags(18, len(BIO_LABELS))
    names, counts = confusion(SPECS["ner"], EvalPrediction({"ner": predicted}, {"ner": true}))
    predicted_names, true_names = names_of(BIO_LABELS, predicted, true)
    types = [[tag.split("-", 1)[-1] for tag in sum(tags, [])] for tags in (true_names, predicted_names)]
    assert names == ["O", "ORG", "PER", "work-of-art"]
    assert counts.tolist() == sklearn_metrics.confusion_matrix(*types, labels=names).tolist()
    accuracy = score("ner", predicted, true)["reduced_word_accuracy"]
    assert equal(accuracy, counts.trace() / counts.sum())


def test_confusion_of_other_tags_is_over_their_names():
    predicted, true = random_tags(19, 4)
    names, counts = confusion(SPECS["pos"], EvalPrediction({"pos": predicted}, {"pos": true}))
    assert names == SPECS["pos"]["labels"] and counts.sum() == (true != -100).sum()
    assert counts[1, 2] == ((true == 1) & (predicted == 2)).sum()


def test_confusion_without_labelled_rows_is_zero():
    _, counts = confusion(SPECS["topic"], EvalPrediction({"topic": np.eye(4)[:1]}, {"topic": np.array([-100])}))
    assert counts.tolist() == np.zeros((4, 4)).tolist()


@pytest.mark.parametrize("task_name", ["genre", "stars", "sts", "teacher"])
def test_tasks_without_one_class_an_answer_have_no_confusion(task_name):
    assert confusion(SPECS[task_name], EvalPrediction({}, {})) is None


def test_confusion_of_several_tasks_is_refused():
    prediction = EvalPrediction({"a": np.eye(4), "b": np.eye(4)}, {"a": np.arange(4), "b": np.arange(4)})
    with pytest.raises(ValueError, match="of one task; labels came for a, b"):
        confusion(SPECS["topic"], prediction)
