"""Features of mixed tasks -> one padded batch whose keys are the parameters of `MultiTaskModel.forward`.

It pads and stacks; it tokenises nothing and knows no dataset (`task_data` makes the features, `task_sampler` chooses
them). Padding is on the right, to the longest item of the batch.

    collator = MultiTaskDataCollator(tokenizer, model.config.tasks)
    Trainer(model=model, data_collator=collator, ...)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configuration_multitask import (
    FEATURE_EXTRACTION,
    LABEL_PADDING,
    MULTI_LABEL,
    REGRESSION,
    SENTENCE_SIMILARITY,
    TOKEN_CLASSIFICATION,
)


def pad_rows(rows: Sequence[Sequence[int]], value: int, multiple_of: int | None = None) -> Tensor:
    """Stack lists of different length. Shape (rows, longest), int64, padded on the right with `value`."""
    width = max(len(row) for row in rows)
    if multiple_of:
        width = -(-width // multiple_of) * multiple_of
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)


@dataclass
class MultiTaskDataCollator:
    """Pads a list of features into the batch of `MultiTaskModel.forward`.

    A feature is one item: `input_ids`, for jointly read pairs `token_type_ids`, for similarity `pair_input_ids` (the
    second text), `labels`, task -> label, and where tasks have teachers `teacher_logits`, task -> a teacher's answer (a
    number a class, such a list a token, or one number). An item may carry several labels, and a label may be None where
    it carries another. Keys that are none of these (`length`, `row`) are left out.

    Args:
        tokenizer: Gives the padding token.
        tasks (dict): `config.tasks`; tells the shape and type of each task's labels.
        pad_to_multiple_of (int): Rounds the batch's width up, for accelerators that like it.

    Example, with `tasks = {"ner": {"kind": "token-classification", ...},
    "topic": {"kind": "text-classification", ...}}`:

        >>> collator([
        ...     {"input_ids": [2, 7, 3], "labels": {"topic": 1}},
        ...     {"input_ids": [2, 8, 9, 3], "labels": {"ner": [-100, 0, 1, -100]}},
        ... ])
        {"input_ids":      [[2, 7, 3, 0], [2, 8, 9, 3]],
         "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]],
         "labels": {"ner":   [[-100, -100, -100, -100], [-100, 0, 1, -100]],
                    "topic": [1, -100]}}

    A similarity item adds its second text: `pair_input_ids` and `pair_attention_mask` (pairs, pair tokens), and
    `pair_items` (pairs,), the item that each belongs to. `teacher_logits` become task -> (items, classes), (items,
    tokens, classes) for tags, (items,) for numbers, float32, NaN where an item or a token has none.

    Raises:
        ValueError: for a batch without items, an item without any label while others have one, a label of a task that
            the model does not know, tags that are not one a token, or a similarity without a second text.
    """

    tokenizer: Any
    tasks: dict[str, dict[str, Any]]
    pad_to_multiple_of: int | None = None

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch; see the class."""
        if not features:
            raise ValueError("A batch needs at least one item; got none.")
        batch: dict[str, Any] = self._pad_text([feature["input_ids"] for feature in features])
        if any(feature.get("token_type_ids") is not None for feature in features):
            types = [feature.get("token_type_ids") or [0] * len(feature["input_ids"]) for feature in features]
            batch["token_type_ids"] = pad_rows(types, 0, self.pad_to_multiple_of)
        pair_items = [index for index, feature in enumerate(features) if feature.get("pair_input_ids") is not None]
        if pair_items:
            pairs = self._pad_text([features[index]["pair_input_ids"] for index in pair_items])
            batch |= {f"pair_{name}": tensor for name, tensor in pairs.items()}
            batch["pair_items"] = torch.tensor(pair_items)
        if any("labels" in feature for feature in features):
            batch["labels"] = self._labels(features, batch["input_ids"].shape[1])
        answers = [{n: v for n, v in (f.get("teacher_logits") or {}).items() if v is not None} for f in features]
        if any(answers):
            tokens, names = batch["input_ids"].shape[1], sorted({name for item in answers for name in item})
            batch["teacher_logits"] = {n: self._answers(n, [item.get(n) for item in answers], tokens) for n in names}
        return batch

    def _answers(self, name: str, values: list[Any], tokens: int) -> Tensor:
        """One task's answers of its teacher, a row an item, NaN where there is none."""
        shape = np.shape(next(value for value in values if value is not None))
        if self.tasks[name]["kind"] == TOKEN_CLASSIFICATION:
            shape = (tokens, *shape[1:])
        rows = np.full((len(values), *shape), np.nan, np.float32)
        for row, value in enumerate(values):
            if value is not None and shape:
                rows[row, : len(value)] = value
            elif value is not None:
                rows[row] = value
        return torch.from_numpy(rows)

    def _pad_text(self, rows: list[list[int]]) -> dict[str, Tensor]:
        ids = pad_rows(rows, self.tokenizer.pad_token_id, self.pad_to_multiple_of)
        lengths = torch.tensor([len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}

    def _labels(self, features: Sequence[dict[str, Any]], tokens: int) -> dict[str, Tensor]:
        labels = [{n: v for n, v in (f.get("labels") or {}).items() if v is not None} for f in features]
        names = sorted({name for item in labels for name in item})
        unknown = [name for name in names if name not in self.tasks]
        if unknown:
            raise ValueError(f"Labels of unknown tasks {unknown}; the model's tasks are: {', '.join(self.tasks)}.")
        for index, (feature, item) in enumerate(zip(features, labels, strict=True)):
            where = "" if feature.get("row") is None else f" (row {feature['row']} of its dataset)"
            self._check_item(f"item {index} of the batch{where}", feature, item)
        return {name: self._task_labels(name, [item.get(name) for item in labels], tokens) for name in names}

    def _check_item(self, where: str, feature: dict[str, Any], labels: dict[str, Any]) -> None:
        """Refuse an item whose labels would be lost or would turn the loss into NaN; `where` names the item."""
        if not labels:
            raise ValueError(
                f"Every item needs a label of at least one task; {where} has none. Remove the row, or label it."
            )
        for name, value in labels.items():
            kind, tokens = self.tasks[name]["kind"], len(feature["input_ids"])
            if kind == TOKEN_CLASSIFICATION and len(value) != tokens:
                raise ValueError(
                    f"Task {name!r} needs a tag for each token ({LABEL_PADDING} for none); {where} has {len(value)} "
                    f"tags for {tokens} tokens. Make the features with task_data."
                )
            if kind == SENTENCE_SIMILARITY and feature.get("pair_input_ids") is None:
                raise ValueError(
                    f"Task {name!r} compares two texts, so an item needs pair_input_ids; {where} has none. Give the "
                    "row its second text, or leave out its label."
                )

    def _task_labels(self, name: str, values: list[Any], tokens: int) -> Tensor:
        """One task's labels, a row an item; items without one get padding of the same shape."""
        spec = self.tasks[name]
        kind, problem_type = spec["kind"], spec.get("problem_type")
        if kind == TOKEN_CLASSIFICATION:
            labels = pad_rows([value if value is not None else [] for value in values], LABEL_PADDING)
            return torch.nn.functional.pad(labels, (0, tokens - labels.shape[1]), value=LABEL_PADDING)
        if kind == FEATURE_EXTRACTION or problem_type == MULTI_LABEL:
            size = len(next(value for value in values if value is not None))
            rows = [value if value is not None else [float("nan")] * size for value in values]
            return torch.tensor(rows, dtype=torch.float32)
        if kind == SENTENCE_SIMILARITY or problem_type == REGRESSION:
            return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float32)
        return torch.tensor([LABEL_PADDING if value is None else value for value in values], dtype=torch.long)
