"""What a model answered to every row it was scored on, as a small file: so that runs can be compared later.

One Parquet file a task holds, in the order of evaluation, the `row` of the source split, the `label` and the
`prediction` that the task's metric compared (see `task_metrics.labelled_values`), and in its metadata the task's
specification. `task_report.evaluate_tasks` writes them beside the results; nothing is scored or compared here.

    write_predictions(path, "topic", spec, dataset["row"], output)
    predicted = read_predictions(path)

| task | `label` and `prediction` |
|---|---|
| one class | class id |
| several classes | 0/1, one a label |
| a number, a similarity | number (float64) |
| tags | tag ids, one a labelled word |
| embeddings | vector (float32) |
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import EvalPrediction

from configuration_multitask import (
    FEATURE_EXTRACTION,
    MULTI_LABEL,
    SINGLE_LABEL,
    TOKEN_CLASSIFICATION,
    has_entities,
)
from task_metrics import answer_form, arrays_by_task, label_is_there, labelled_values, metric_class

VALUE_TYPES = {
    SINGLE_LABEL: pa.int32(),
    MULTI_LABEL: pa.list_(pa.int8()),
    TOKEN_CLASSIFICATION: pa.list_(pa.int32()),
    FEATURE_EXTRACTION: pa.list_(pa.float32()),
}
"""Arrow type of a value by form of answer; numbers are float64."""


@dataclass(frozen=True)
class TaskPredictions:
    """One task's predictions on one split.

    Attributes:
        spec (dict): The task's entry of `MultiTaskConfig.tasks`.
        rows (ndarray): Index of each row in the source split. Shape (rows,), int64.
        labels (list): What was right, a value a row, as the task's metric takes it.
        predictions (list): What the model said, likewise.
    """

    spec: dict[str, Any]
    rows: np.ndarray
    labels: list[Any]
    predictions: list[Any]

    def score(self) -> dict[str, float]:
        """The task's metrics: those that the evaluation reported."""
        return metric_class(self.spec)().compute(predictions=self.predictions, references=self.labels)


def predictions_path(folder: str | Path, split: str, task_name: str) -> Path:
    """Where a run's folder has a task's predictions on a split."""
    return Path(folder) / "predictions" / f"{split}_{task_name}.parquet"


def write_predictions(
    path: Path, task_name: str, spec: dict[str, Any], rows: Sequence[int], output: EvalPrediction
) -> None:
    """Write one task's predictions; rows without a label are left out, as the metrics leave them out.

    Args:
        path (Path): The file; its folder is made.
        task_name (str): The task.
        spec (dict): Its specification.
        rows (Sequence[int]): Index in the source split of every evaluated row.
        output (EvalPrediction): Predictions and labels of this task, as `MultiTaskMetrics` takes them.
    """
    predictions, labels = arrays_by_task(output)[task_name]
    there = label_is_there(np.asarray(labels))
    labelled = np.asarray(rows)[there if there.ndim == 1 else there.any(axis=1)]
    predicted, true = labelled_values(task_name, spec, predictions, labels)
    if has_names(spec):
        ids = {name: number for number, name in enumerate(spec["labels"])}
        predicted, true = ([[ids[tag] for tag in row] for row in values] for values in (predicted, true))
    value = VALUE_TYPES.get(answer_form(spec), pa.float64())
    columns = {"row": pa.array(labelled, pa.int64())}
    columns |= {"label": pa.array(true, value), "prediction": pa.array(predicted, value)}
    table = pa.table(columns).replace_schema_metadata({"task": task_name, "spec": json.dumps(spec)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def read_predictions(path: Path) -> TaskPredictions:
    """What `write_predictions` wrote."""
    table = pq.read_table(path)
    spec = json.loads(table.schema.metadata[b"spec"])
    true, predicted = table["label"].to_pylist(), table["prediction"].to_pylist()
    if has_names(spec):
        true, predicted = ([[spec["labels"][tag] for tag in row] for row in values] for values in (true, predicted))
    return TaskPredictions(spec, table["row"].to_numpy(), true, predicted)


def has_names(spec: dict[str, Any]) -> bool:
    """Whether the task's metric compares tag names, of which the file holds the ids."""
    return spec["kind"] == TOKEN_CLASSIFICATION and has_entities(spec["labels"])
