"""Results for people and for files: score tables, answers, protocol, confusion matrices, predictions by row.

It scores nothing itself (`task_metrics` does) and runs the model only through the Trainer it is given. The commands end
with it.

    metrics = evaluate_tasks(trainer, features.test, output_dir)
    trainer.save_metrics("test", metrics | {"test_protocol": protocol(features.test, loaded)})
    print(format_scores(model.config.tasks, metrics, "test"))
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import Trainer

from calibration import calibration_errors
from configuration_multitask import TOKEN_CLASSIFICATION, has_entities
from task_data import LoadedTask
from task_metrics import confusion, mean_score, primary_metric
from task_plots import plot_confusion
from task_predictions import predictions_path, write_predictions

SCORERS = {
    "f1": "entity F1 by seqeval, conlleval's lenient default; strict_f1 is strict IOB2",
    "accuracy": "accuracy by scikit-learn",
    "micro_f1": "micro-F1 by scikit-learn, threshold 0.5",
    "spearman": "Spearman correlation by scipy",
    "mean_cosine": "mean cosine to the teacher's embedding",
}


def evaluate_tasks(
    trainer: Trainer, datasets: dict[str, Dataset], output_dir: str, prefix: str = "test"
) -> dict[str, Any]:
    """Score each task on its dataset, draw its confusion matrix and write its predictions by row.

    Args:
        trainer (Trainer): Holds the model, the collator and `compute_metrics`.
        datasets (dict): Task -> features with this task's labels.
        output_dir (str): Where `confusion_<task>.png` and `predictions/<prefix>_<task>.parquet` are written, by the
            main process.
        prefix (str): The split, in front of every key.

    Returns:
        `<prefix>_<task>_<metric>` for every task and `<prefix>_mean_score`; of tasks with a temperature also the
        expected calibration error (see `calibration.calibration_errors`).
    """
    tasks = {name: trainer.model.config.tasks[name] for name in datasets}
    metrics: dict[str, Any] = {}
    for name, dataset in datasets.items():
        output = trainer.predict(dataset, metric_key_prefix=f"{prefix}_{name}")
        metrics |= output.metrics
        matrix = confusion(tasks[name], output)
        if trainer.is_world_process_zero():
            write_predictions(predictions_path(output_dir, prefix, name), name, tasks[name], dataset["row"], output)
        if matrix is not None and trainer.is_world_process_zero():
            plot_confusion(*matrix, Path(output_dir) / f"confusion_{name}.png", title=f"{name}, {prefix}")
    metrics |= calibration_errors(trainer, datasets, prefix)
    return metrics | {f"{prefix}_mean_score": mean_score(metrics, tasks, prefix)}


def protocol(loaded: Mapping[str, LoadedTask], datasets: Mapping[str, Dataset], notes: Sequence[str]) -> dict[str, Any]:
    """How the scores came about: for each task the data, split, rows and scorer, and what was cut or inferred."""
    return {
        name: {
            **loaded[name].source,
            "rows_scored": len(dataset),
            "scorer": scorer(loaded[name].spec),
            "notes": [note for note in notes if repr(name) in note],
        }
        for name, dataset in datasets.items()
    }


def scorer(spec: dict[str, Any]) -> str:
    """What the primary metric of a task is and how it counts."""
    counted = " over words, each by its first sub-word" if spec["kind"] == TOKEN_CLASSIFICATION else ""
    name = primary_metric(spec)
    return SCORERS[name] + ("" if name == "f1" and not has_entities(spec["labels"]) else counted)


def format_scores(tasks: dict[str, dict[str, Any]], metrics: Mapping[str, Any], prefix: str = "test") -> str:
    """A table of every scored task: rows, primary metric first, then the others."""
    lines = [f"{'task':<16} {'rows':>7}  scores ({prefix})"]
    for name, spec in tasks.items():
        own = metrics_of(name, tasks, metrics, prefix)
        first = primary_metric(spec)
        if first not in own:
            continue
        hidden = {first, "rows", "loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time"}
        scores = [f"{first} {own[first]:.4f}", *(f"{key} {own[key]:.4f}" for key in own if key not in hidden)]
        lines.append(f"{name:<16} {int(own['rows']):>7,}  {'  '.join(scores)}")
    lines.append(f"{'mean score':<16} {'':>7}  {metrics[f'{prefix}_mean_score']:.4f}")
    return "\n".join(lines)


def metrics_of(name: str, tasks: Iterable[str], metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What was scored of one task, keys without prefix and name, and nothing of a task called `<name>_...`."""
    start = f"{prefix}_{name}_"
    others = tuple(f"{prefix}_{other}_" for other in tasks if other.startswith(f"{name}_"))
    found = {key: value for key, value in metrics.items() if key.startswith(start) and not key.startswith(others)}
    return {key.removeprefix(start): value for key, value in found.items()}


def format_answer(answer: Any) -> str:
    """One task's answer in one line."""
    if isinstance(answer, np.ndarray):
        return f"{len(answer)} numbers: {np.array2string(answer[:3], precision=3, separator=', ')[:-1]}, ...]"
    if isinstance(answer, list):
        parts = [f"{part['word']} {part.get('entity_group') or part.get('entity')}" for part in answer]
        return ", ".join(parts) or "-"
    if "labels" in answer:
        return ", ".join(f"{label} {answer['scores'][label]:.2f}" for label in answer["labels"]) or "-"
    return f"{answer['label']} {answer['score']:.2f}" if "label" in answer else f"{answer['score']:.3f}"


def format_answers(texts: Sequence[Any], answers: Sequence[Mapping[str, Any]]) -> str:
    """Every task's answer for every text, a line each."""
    lines = []
    for text, answer in zip(texts, answers, strict=True):
        lines.append(f"\n{text if isinstance(text, str) else ' | '.join(text)}")
        lines += [f"  {name:<20} {format_answer(value)}" for name, value in sorted(answer.items())]
    return "\n".join(lines)
