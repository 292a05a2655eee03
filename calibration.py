"""Temperatures of heads: how sure a model says it is, fitted to how often it is right.

A head's logits are divided by one number, fitted on validation rows after training (Guo et al. 2017,
https://arxiv.org/abs/1706.04599), which stands in the task's entry of `config.json`. The model does that division
(`MultiTaskModel.forward`), so that whatever answers has it; no answer changes by it, only scores do. Fitted are heads
with classes: one class, several (the number is then that of all their sigmoids), tags. Losses stay those of the logits
themselves. Nothing is trained or saved here.

    report = calibrate(trainer, features.validation)                           # sets the temperatures
    scores |= calibration_errors(trainer, features.test, "test")               # test_topic_ece, ..._ece_uncalibrated
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from transformers import Trainer

from configuration_multitask import MULTI_LABEL, SINGLE_LABEL, TOKEN_CLASSIFICATION
from task_metrics import answer_form, label_is_there

BINS = 15
LEAST_ROWS = 50
"""Labelled rows (of tags: words) below which no temperature is fitted."""
TEMPERATURES = (0.05, 20.0)
"""Between which it is looked for; an optimum at an end is none."""


def has_classes(spec: dict[str, Any]) -> bool:
    """Whether a task's scores are probabilities of classes, so that they have a temperature."""
    return answer_form(spec) in (SINGLE_LABEL, MULTI_LABEL, TOKEN_CLASSIFICATION)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """The mean over rows (of several classes: over rows and classes) at a temperature.

    Args:
        logits (ndarray): Shape (rows, classes), float64.
        labels (ndarray): Class ids (rows,), or 0/1 (rows, classes).
        temperature (float): What the logits are divided by.
    """
    scaled = logits / temperature
    if labels.ndim == 2:
        return float((np.logaddexp(0, scaled) - labels * scaled).mean())
    return -float(log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].mean())


def confidences(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How sure each answer is, and whether it is right.

    An answer is the best class of a row and its probability. Where a row has several classes, each of them is an
    answer, yes or no, with the probability of what was said (0.5 to 1).

    Args:
        logits (ndarray): Shape (rows, classes).
        labels (ndarray): Class ids (rows,), or 0/1 (rows, classes).

    Returns:
        Probabilities (float64) and bools, both (rows,), or (rows * classes,).
    """
    if labels.ndim == 2:
        yes = expit(logits)
        return np.maximum(yes, 1 - yes).ravel(), ((logits > 0) == (labels > 0.5)).ravel()
    return softmax(logits, axis=1).max(axis=1), logits.argmax(axis=1) == labels


def expected_calibration_error(confidence: np.ndarray, is_right: np.ndarray, bins: int = BINS) -> float:
    """Mean over answers of |share that is right - mean confidence| in their bin; equation 5 of Guo et al. 2017.

    The bins are of equal width over (0, 1], a bin with its upper end; empty ones count nothing. 0 to 1, 0 is best.
    """
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, weights=is_right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> tuple[float | None, str]:
    """The temperature of least negative log-likelihood, or None where there is none to be had.

    The likelihood is log-concave in 1 / temperature, so that a bounded search finds its only optimum.

    Args:
        logits (ndarray): Shape (rows, classes), float64, not divided yet.
        labels (ndarray): Class ids (rows,), or 0/1 (rows, classes).

    Returns:
        The temperature, and why there is none (else an empty string).
    """
    if len(labels) < LEAST_ROWS:
        return None, f"{len(labels)} labelled rows or words are too few, {LEAST_ROWS} are needed"
    if confidences(logits, labels)[1].all():
        return None, f"all {len(labels)} answers are right, so that the surest scores would always be the best"
    low, high = map(math.log, TEMPERATURES)
    found = minimize_scalar(
        lambda log: negative_log_likelihood(logits, labels, math.exp(log)),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    if min(found.x - low, high - found.x) < 0.01:
        return None, f"the best one lies beyond {TEMPERATURES[0]} to {TEMPERATURES[1]}: the scores say too little"
    return math.exp(found.x), ""


@torch.no_grad()
def labelled_logits(trainer: Trainer, name: str, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """A task's logits, as the model gives them, and labels of all labelled rows; of tags, of all labelled words.

    Words are labelled at their first sub-word in evaluation data. Every rank gets the rows of all.

    Returns:
        Logits (rows, classes), float64; labels (rows,), or (rows, classes).
    """
    trainer.model.eval()
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in trainer.get_test_dataloader(dataset):
        labels = batch.pop("labels")[name].cpu().numpy()
        with trainer.compute_loss_context_manager():
            logits = trainer.model(**batch, tasks=[name]).logits[name].double().cpu().numpy()
        items = [labelled_part(*pair) for pair in zip(logits, labels, strict=True)]
        found += trainer.accelerator.gather_for_metrics(items, use_gather_object=True)
    return np.concatenate([logits for logits, _ in found]), np.concatenate([labels for _, labels in found])


def labelled_part(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What an item has of a task: logits (n, classes) and labels (n,) or (n, classes), n = 0 without a label.

    Args:
        logits (ndarray): Shape (classes,), or (tokens, classes).
        labels (ndarray): Of one class (), of several (classes,), of tags (tokens,).
    """
    there = label_is_there(labels)
    if logits.ndim == 2:
        return logits[there], labels[there]
    count = int(there.any())
    return logits[None][:count], labels[None][:count]


def calibrate(trainer: Trainer, datasets: Mapping[str, Dataset]) -> dict[str, Any]:
    """Fit the temperature of every task with classes and set it in the model's configuration.

    Args:
        trainer (Trainer): Holds the trained model.
        datasets (Mapping): Task -> validation features.

    Returns:
        For each task `calibration_<task>_rows` and, where one was fitted, `..._temperature`, `..._nll`, `..._ece` and
        both before (`..._uncalibrated`), on these rows; `calibration_notes`, a sentence a task.
    """
    tasks = trainer.model.config.tasks
    report: dict[str, Any] = {}
    notes = []
    for name in (name for name in datasets if has_classes(tasks[name])):
        tasks[name].pop("temperature", None)
        logits, labels = labelled_logits(trainer, name, datasets[name])
        temperature, problem = fit_temperature(logits, labels)
        start = f"calibration_{name}"
        report[f"{start}_rows"] = len(labels)
        if temperature is None:
            notes.append(f"Task {name!r} is not calibrated: {problem}.")
            continue
        tasks[name]["temperature"] = temperature
        report[f"{start}_temperature"] = temperature
        for suffix, divisor in {"": temperature, "_uncalibrated": 1.0}.items():
            report[f"{start}_nll{suffix}"] = negative_log_likelihood(logits, labels, divisor)
            report[f"{start}_ece{suffix}"] = expected_calibration_error(*confidences(logits / divisor, labels))
        notes.append(
            f"Task {name!r}: temperature {temperature:.3f}; expected calibration error on {len(labels):,} validation "
            f"rows or words {report[f'{start}_ece_uncalibrated']:.4f} -> {report[f'{start}_ece']:.4f}."
        )
    return report | {"calibration_notes": notes}


def calibration_errors(trainer: Trainer, datasets: Mapping[str, Dataset], prefix: str) -> dict[str, float]:
    """`<prefix>_<task>_ece` and `..._ece_uncalibrated` (at temperature 1) of every task that has a temperature."""
    found = {}
    for name, dataset in datasets.items():
        temperature = trainer.model.config.tasks[name].get("temperature")
        if temperature is not None:
            logits, labels = labelled_logits(trainer, name, dataset)
            for suffix, factor in {"": 1.0, "_uncalibrated": temperature}.items():
                error = expected_calibration_error(*confidences(logits * factor, labels))
                found[f"{prefix}_{name}_ece{suffix}"] = error
    return found
