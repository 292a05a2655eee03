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


def stack_pooled(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Pooling -> the rows' vectors, zeros where a row has none. Each (rows, hidden_size), float32."""
    sizes = {pooling: len(vector) for row in rows for pooling, vector in row.items()}
    stacked = {pooling: np.zeros((len(rows), size), dtype=np.float32) for pooling, size in sizes.items()}
    for index, row in enumerate(rows):
        for pooling, vector in row.items():
            stacked[pooling][index] = vector
    return {pooling: torch.from_numpy(vectors) for pooling, vectors in stacked.items()}


@dataclass
class MultiTaskDataCollator:
    """Pads a list of features into the batch of `MultiTaskModel.forward`.

    A feature is one item: `input_ids`, for jointly read pairs `token_type_ids`, for similarity `pair_input_ids` (the
    second text), `labels`, task -> label, and where tasks have teachers `teacher_logits`, task -> a teacher's answer (a
    number a class, such a list a token, or one number). An item may carry several labels, and a label may be None where
    it carries another. Keys that are none of these (`length`, `row`) are left out.

    Rows of an `encoder_cache` have the encoder's outputs in place of token ids (`token_states` of their tokens,
    `pooled_states` and `pair_pooled_states` by pooling, `attention_mask` and `pair_attention_mask` for the lengths) and
    become the batch of the same shapes; items without an output that others have get zeros.

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
        batch = self._pad_texts(features) if "input_ids" in features[0] else self._stack_stored(features)
        if any("labels" in feature for feature in features):
            batch["labels"] = self._labels(features, batch["attention_mask"].shape[1])
        if any(feature.get("teacher_logits") for feature in features):
            batch["teacher_logits"] = self._teacher_logits(features, batch["attention_mask"].shape[1])
        return batch

    def _pad_texts(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch, without labels, of items that come with token ids."""
        batch: dict[str, Any] = self._pad_text([feature["input_ids"] for feature in features])
        if any(feature.get("token_type_ids") is not None for feature in features):
            types = [feature.get("token_type_ids") or [0] * len(feature["input_ids"]) for feature in features]
            batch["token_type_ids"] = pad_rows(types, 0, self.pad_to_multiple_of)
        pair_items = [index for index, feature in enumerate(features) if feature.get("pair_input_ids") is not None]
        if pair_items:
            pairs = self._pad_text([features[index]["pair_input_ids"] for index in pair_items])
            batch |= {f"pair_{name}": tensor for name, tensor in pairs.items()}
            batch["pair_items"] = torch.tensor(pair_items)
        return batch

    def _teacher_logits(self, features: Sequence[dict[str, Any]], tokens: int) -> dict[str, Tensor]:
        """Task -> its teacher's answers, for the tasks of which any item has one."""
        answers = [{n: v for n, v in (f.get("teacher_logits") or {}).items() if v is not None} for f in features]
        names = sorted({name for item in answers for name in item})
        return {name: self._answers(name, [item.get(name) for item in answers], tokens) for name in names}

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
        return {"input_ids": ids, "attention_mask": self._mask(rows)}

    def _mask(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """1 for the places of each row, 0 for padding to the longest. Shape (rows, longest), int64."""
        lengths = torch.tensor([len(row) for row in rows])
        width = int(lengths.max())
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        return (torch.arange(width) < lengths[:, None]).long()

    def _stack_stored(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch, without labels, of items that come with the encoder's outputs."""
        batch: dict[str, Any] = {"attention_mask": self._mask([feature["attention_mask"] for feature in features])}
        batch["pooled_states"] = stack_pooled([feature.get("pooled_states") or {} for feature in features])
        pair_items = [index for index, feature in enumerate(features) if feature.get("pair_pooled_states")]
        if pair_items:
            pairs = [features[index] for index in pair_items]
            batch["pair_attention_mask"] = self._mask([feature["pair_attention_mask"] for feature in pairs])
            batch["pair_pooled_states"] = stack_pooled([feature["pair_pooled_states"] for feature in pairs])
            batch["pair_items"] = torch.tensor(pair_items)
        states = {i: f["token_states"] for i, f in enumerate(features) if f.get("token_states") is not None}
        if states:
            size = next(iter(states.values())).shape[1]
            batch["token_states"] = torch.zeros(*batch["attention_mask"].shape, size)
            for index, rows in states.items():
                batch["token_states"].numpy()[index, : len(rows)] = rows
        return batch

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
            kind = self.tasks[name]["kind"]
            tokens = len(feature["input_ids"] if "input_ids" in feature else feature["attention_mask"])
            if kind == TOKEN_CLASSIFICATION and len(value) != tokens:
                raise ValueError(
                    f"Task {name!r} needs a tag for each token ({LABEL_PADDING} for none); {where} has {len(value)} "
                    f"tags for {tokens} tokens. Make the features with task_data."
                )
            has_second = feature.get("pair_input_ids") is not None or bool(feature.get("pair_pooled_states"))
            if kind == SENTENCE_SIMILARITY and not has_second:
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
