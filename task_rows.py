"""Source rows -> canonical, checked rows: one text or list of words, one label, the number of the row.

It refuses what nothing can be learnt from, naming row and value. Rows are read as Arrow batches, never as Python lists.
Which column is which stands in the `TaskSchema` (`task_schema`); tokens come later (`task_data`).

    rows = canonical_rows(schema, "train", splits["train"])  # columns text, label, row
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher

from configuration_multitask import (
    FEATURE_EXTRACTION,
    MULTI_LABEL,
    REGRESSION,
    SENTENCE_SIMILARITY,
    SINGLE_LABEL,
    TOKEN_CLASSIFICATION,
    nearest_name,
)
from task_schema import (
    TaskSchema,
    as_names,
    contents_of,
    declared_names,
    is_list,
    refuse_differing_labels,
    refuse_mixed_types,
)

LABEL_FEATURES = {
    SINGLE_LABEL: Value("int64"),
    MULTI_LABEL: List(Value("float32")),
    REGRESSION: Value("float32"),
    TOKEN_CLASSIFICATION: List(Value("int64")),
    SENTENCE_SIMILARITY: Value("float32"),
    FEATURE_EXTRACTION: List(Value("float32")),
}
"""Problem type, or kind where it has none -> type of a canonical label."""

CODE_DIGEST = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
"""Part of the cache keys: `datasets` knows a function by its name alone and would reuse what an older version made."""


def canonical_rows(schema: TaskSchema, split: str, rows: Dataset) -> Dataset:
    """The rows of a split in canonical form, checked.

    Args:
        schema (TaskSchema): From `infer_schema`.
        split (str): Name of the source split, for messages.
        rows (Dataset): The source rows.

    Returns:
        Dataset with the columns `text` (and `text_pair`) or `tokens` (list of str), `label`, `row` (index in the source
        split). A label is a class index, a list of 0.0 and 1.0 a class, a float, a list of tag indices or an embedding;
        None where the source has none. Written to `datasets`' cache, if `rows` stand there too.

    Raises:
        ValueError: for an empty text, a label that is no label of the task, a number that is none or out of its range,
            or tags that are not as many as the words; the message names task, split, row, value and the way out.

    Example, a CSV file with the line `"It rains",weather` and labels [sport, weather]:

        {"text": "It rains", "label": 1, "row": 0}
    """
    roles = schema.roles(rows.features)
    if "label" in roles:
        check_split_labels(schema, split, rows.features[roles["label"]])
    for column in roles.values():
        refuse_mixed_types(schema.task_name, split, rows, column)
    features = {role: List(Value("string")) if role == "tokens" else Value("string") for role in roles}
    if "label" in roles:
        features["label"] = LABEL_FEATURES[schema.target]
    reader = RowReader(schema, split, roles, rows.features)
    rows = rows.select_columns(list(dict.fromkeys(roles.values())))
    return (
        rows.with_format("arrow")
        .map(
            reader.read_batch,
            with_indices=True,
            batched=True,
            batch_size=5_000,
            features=Features({**features, "row": Value("int64")}),
            remove_columns=rows.column_names,
            new_fingerprint=Hasher.hash((CODE_DIGEST, rows._fingerprint, reader.cache_key)),
            desc=f"Checking {schema.task_name} {split}",
        )
        .with_format(None)
    )


def check_split_labels(schema: TaskSchema, split: str, feature: Any) -> None:
    """Raise ValueError if the label column of a split holds something else than that of the split labels came from."""
    if contents_of(feature) != schema.contents:
        raise ValueError(
            f"Task {schema.task_name!r}: labels must be of one type in all splits; they are {schema.contents}, but in "
            f"split {split!r} the column holds {feature}. Mend that split's file."
        )
    declared = declared_names(feature)
    if declared is not None and schema.spec.get("labels"):
        where = f"split {split!r}"
        refuse_differing_labels(schema.task_name, where, declared, "the task", schema.spec["labels"])


class Shown(str):
    """What a message says of a row's value, in place of the value itself."""


class RowReader:
    """Reads Arrow batches of a source split into canonical columns, and refuses what nothing can be learnt from."""

    def __init__(self, schema: TaskSchema, split: str, roles: dict[str, str], features: Features):
        self.schema = schema
        self.split = split
        self.roles = roles
        self.labels = list(schema.spec.get("labels") or [])
        self.declared = declared_names(features[roles["label"]]) if "label" in roles else None
        self.vector_size = len(self.labels) or None

    @property
    def cache_key(self) -> tuple[Any, ...]:
        """All that the result depends on besides the rows."""
        return (
            self.schema.target,
            self.labels,
            self.declared,
            self.schema.score_range,
            sorted(self.roles.items()),
        )

    def refuse(self, row: int, value: Any, invariant: str, remedy: str) -> NoReturn:
        """Raise ValueError: the invariant, what came instead, the way out."""
        shown = value if isinstance(value, Shown) else repr(value)
        raise ValueError(
            f"Task {self.schema.task_name!r}: {invariant}; row {row} of split {self.split!r} has "
            f"{shown[:100]}{'...' if len(shown) > 100 else ''}. {remedy}"
        )

    def refuse_first(self, bad: Any, values: Any, indices: Sequence[int], invariant: str, remedy: str) -> None:
        """Refuse the first row for which `bad` (Arrow booleans, a row each; null counts as bad) is true, if any."""
        found = np.flatnonzero(pc.fill_null(bad, True).to_numpy(zero_copy_only=False))
        if len(found):
            self.refuse(indices[int(found[0])], values[int(found[0])].as_py(), invariant, remedy)

    def read_batch(self, table: pa.Table, indices: list[int]) -> pa.Table:
        """One batch in canonical form."""
        columns: dict[str, pa.Array] = {}
        for role in ("tokens", "text", "text_pair"):
            if role in self.roles:
                values = self.column(table, role, indices)
                columns[role] = (
                    self.read_tokens(values, indices) if role == "tokens" else self.read_text(values, indices)
                )
        if "label" in self.roles:
            columns["label"] = self.read_labels(self.column(table, "label", indices), columns.get("tokens"), indices)
        return pa.table({**columns, "row": pa.array(indices, pa.int64())})

    def column(self, table: pa.Table, role: str, indices: list[int]) -> pa.Array:
        """The column of a role as one array, its strings checked to be UTF-8: Arrow and its files take any bytes."""
        values = one_chunk(table, self.roles[role])
        try:
            values.validate(full=True)
        except pa.ArrowInvalid:
            remedy = "Write the source again with its texts as UTF-8."
            for place, index in enumerate(indices):
                try:
                    values.slice(place, 1).validate(full=True)
                except pa.ArrowInvalid as error:
                    self.refuse(index, Shown(f"bytes that are not ({error})"), f"{role} is UTF-8", remedy)
            raise
        return values

    def read_text(self, values: pa.Array, indices: list[int]) -> pa.Array:
        """Texts, none of them empty."""
        if not is_string(values.type):
            self.refuse(indices[0], values[0].as_py(), "texts are strings", "Write `columns: {text: COLUMN}`.")
        is_blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(values)), 0)
        self.refuse_first(is_blank, values, indices, "every text needs words", "Fill the text, or remove the row.")
        return values.cast(pa.string())

    def read_tokens(self, values: pa.Array, indices: list[int]) -> pa.Array:
        """Words, at least one a row."""
        if not (is_list(values.type) and is_string(values.type.value_type)):
            self.refuse(
                indices[0], values[0].as_py(), "words are a list of strings a row", "Write `columns: {tokens: COLUMN}`."
            )
        remedy = "Mend or remove the row."
        lengths = pc.list_value_length(values)
        self.refuse_first(pc.equal(lengths, 0), values, indices, "every row needs at least one word", remedy)
        self.refuse_nulls(values, indices, "every word is a string")
        return values.cast(pa.list_(pa.string()))

    def refuse_nulls(self, values: pa.Array, indices: list[int], invariant: str) -> None:
        """Refuse the first row whose list has a hole."""
        holes = np.flatnonzero(pc.is_null(pc.list_flatten(values)).to_numpy(zero_copy_only=False))
        if len(holes):
            row = pc.list_parent_indices(values)[int(holes[0])].as_py()
            self.refuse(indices[row], values[row].as_py(), invariant, "Mend or remove the row.")

    def read_labels(self, values: pa.Array, tokens: pa.Array | None, indices: list[int]) -> pa.Array:
        """Canonical labels; null where the source has none."""
        target = self.schema.target
        if target == SINGLE_LABEL:
            return self.read_classes(values, np.arange(len(values)), indices)
        if target in (REGRESSION, SENTENCE_SIMILARITY):
            return self.read_scores(values, indices)
        self.refuse_nulls(values, indices, "a list of labels has no holes")
        if target == FEATURE_EXTRACTION:
            return self.read_vectors(values, indices)
        if target == MULTI_LABEL:
            return self.read_class_sets(values, indices)
        return self.read_tags(values, tokens, indices)

    def read_tags(self, values: pa.Array, tokens: Any, indices: list[int]) -> pa.Array:
        """A tag a word."""
        differs = pc.fill_null(pc.not_equal(list_lengths(values), list_lengths(tokens)), False)
        for row in np.flatnonzero(differs.to_numpy(zero_copy_only=False))[:1].tolist():
            counts = Shown(f"{len(values[row])} tags for {len(tokens[row])} words ({tokens[row].as_py()})")
            self.refuse(indices[row], counts, "each word has one tag", "Mend or remove the row.")
        parents = pc.list_parent_indices(values).to_numpy()
        return rebuild_list(values, self.read_classes(pc.list_flatten(values), parents, indices))

    def read_classes(self, flat: pa.Array, parents: np.ndarray, indices: list[int]) -> pa.Array:
        """Class indices of the task, from names, ClassLabel integers or bare numbers.

        Args:
            flat (pa.Array): The source's labels, one an entry.
            parents (np.ndarray): The row of the batch that each entry stands in. Shape (entries,).
            indices (list): The row of the source split, for each row of the batch.
        """
        names = self.declared or self.labels
        is_number = pa.types.is_integer(flat.type)
        if is_number and (self.declared is not None or not all(label.isdecimal() for label in self.labels)):
            order = pa.array([self.labels.index(name) for name in names], pa.int64())
            is_known = pc.and_(pc.greater_equal(flat, 0), pc.less(flat, len(names)))
            classes = order.take(pc.if_else(is_known, flat.cast(pa.int64()), pa.scalar(None, pa.int64())))
        else:  # names; whole numbers too where the labels are called "1", "2", ...
            classes = pc.index_in(as_names(flat), value_set=pa.array(self.labels, pa.string())).cast(pa.int64())
        bad = np.flatnonzero(pc.and_(pc.is_null(classes), pc.is_valid(flat)).to_numpy(zero_copy_only=False))
        if len(bad):
            first = int(bad[0])
            self.refuse_class(flat[first].as_py(), indices[int(parents[first])], is_number)
        return classes

    def refuse_class(self, value: Any, row: int, is_number: bool) -> NoReturn:
        """Raise ValueError for a label that is none of the task's."""
        known = ", ".join(self.labels)
        if is_number and value == -1:
            remedy = (
                "-1 stands for a hidden label (test splits on the Hub have it): write `splits: {test: null}`, or read "
                "another split; in rows that have another task's label, write null in place of -1."
            )
        elif is_number:
            remedy = f"The classes are 0 to {len(self.labels) - 1} ({known}). Mend the row, or `labels:`."
        else:
            near = nearest_name(str(value), self.labels)
            remedy = f"The labels are {known}.{near} Mend the row, or write all names in `labels:`."
        self.refuse(row, value, "every label is one of the task's", remedy)

    def read_class_sets(self, values: pa.Array, indices: list[int]) -> pa.Array:
        """A list of 0.0 and 1.0 a row, one for each class."""
        parents, flat = pc.list_parent_indices(values).to_numpy(), pc.list_flatten(values)
        size = len(self.labels)
        if pa.types.is_floating(flat.type):
            numbers = self.read_vectors(values, indices)
            is_outside = ~np.isin(pc.list_flatten(numbers).to_numpy(), (0.0, 1.0))
            for row in parents[is_outside][:1]:
                self.refuse(indices[row], values[row].as_py(), "each class is 0 or 1", "Mend or remove the row.")
            return numbers
        classes = self.read_classes(flat, parents, indices).to_numpy(zero_copy_only=False)
        hits = np.zeros((len(values), size), np.float32)
        np.add.at(hits, (parents, classes.astype(np.int64)), 1.0)
        for row in np.flatnonzero((hits > 1).any(axis=1))[:1]:
            remedy = "Remove the second one; 0 and 1 for each class must be written as floats (0.0, 1.0)."
            self.refuse(indices[row], values[row].as_py(), "a class stands once in a row's labels", remedy)
        return vectors_to_lists(hits, values)

    def read_vectors(self, values: pa.Array, indices: list[int]) -> pa.Array:
        """Lists of finite numbers: one for each class, or as many as in the first row that has any."""
        lengths = list_lengths(values)
        self.vector_size = self.vector_size or pc.first(lengths).as_py() or 1
        differs = pc.fill_null(pc.not_equal(lengths, self.vector_size), False)
        invariant = f"each label has {self.vector_size} numbers"
        self.refuse_first(differs, values, indices, invariant, "Mend or remove the row.")
        flat = pc.list_flatten(values).cast(pa.float32(), safe=False)
        for row in pc.list_parent_indices(values).to_numpy()[~np.isfinite(flat.to_numpy())][:1]:
            self.refuse(indices[row], values[row].as_py(), "labels are finite numbers", "Mend or remove the row.")
        return rebuild_list(values, flat)

    def read_scores(self, values: pa.Array, indices: list[int]) -> pa.Array:
        """Numbers, rescaled from `score_range` to 0..1 where it is given; cosines must be able to reach them."""
        scores = values.cast(pa.float64())
        remedy = "Mend or remove the row."
        is_bad = pc.fill_null(pc.invert(pc.is_finite(scores)), False)
        self.refuse_first(is_bad, values, indices, "a score is a finite number", remedy)
        low, high = self.schema.score_range or (-1.0, 1.0)
        if self.schema.score_range is not None or self.schema.target == SENTENCE_SIMILARITY:
            is_outside = pc.or_(pc.less(scores, low), pc.greater(scores, high))
            if self.schema.score_range is None:
                invariant = "similarities are cosines, from -1 to 1"
                remedy = "Write `score_range: [lowest, highest]` of the source ([0, 5] for STS), and they are rescaled."
            else:
                invariant, remedy = f"scores lie in score_range [{low:g}, {high:g}]", "Mend the row or `score_range:`."
            self.refuse_first(pc.fill_null(is_outside, False), values, indices, invariant, remedy)
        if self.schema.score_range is not None:
            scores = pc.divide(pc.subtract(scores, low), high - low)
        return scores.cast(pa.float32(), safe=False)


# ---------------------------------------------------------------------------------------------------------------------
# Arrow


def one_chunk(table: pa.Table, column: str) -> pa.Array:
    """A column as one array."""
    values = table[column].combine_chunks()
    return values.chunk(0) if isinstance(values, pa.ChunkedArray) else values


def is_string(arrow_type: pa.DataType) -> bool:
    """Whether an Arrow type is a string."""
    return pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type)


def list_lengths(values: pa.Array) -> pa.Array:
    """Entries of each list, null for a null list. Shape (rows,), int64."""
    return pc.list_value_length(values).cast(pa.int64())


def rebuild_list(values: pa.Array, flat: pa.Array) -> pa.Array:
    """The lists of `values`, null ones included, with other entries."""
    lengths = pc.fill_null(list_lengths(values), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pc.is_null(values))


def vectors_to_lists(numbers: np.ndarray, values: pa.Array) -> pa.Array:
    """An array (rows, size) as lists of float32, null where `values` is."""
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * numbers.shape[1]
    flat = pa.array(numbers.reshape(-1), pa.float32())
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pc.is_null(values))
