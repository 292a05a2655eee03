"""How the rows of a task are read: which column plays which role, the kind of task, and its label names.

What the recipe leaves open is inferred from the features of the source, where that is unambiguous. It looks at rows
only for the names of labels and for the one that spoils a column (`task_rows` checks them), and opens no source
(`task_sources`).

    schema = infer_schema("topic", TaskArguments(dataset="news.csv"), splits)
    schema.spec  # {"kind": "text-classification", "problem_type": ..., "labels": [...], ...}
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Json, LargeList, List

from arguments_multitask import TaskArguments
from configuration_multitask import (
    FEATURE_EXTRACTION,
    MULTI_LABEL,
    REGRESSION,
    SENTENCE_SIMILARITY,
    SINGLE_LABEL,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    check_task,
    has_entities,
    nearest_name,
)

TEXT_COLUMNS = ("text", "sentence", "content", "question")
PAIR_COLUMNS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
)
TOKEN_COLUMNS = ("tokens", "words")
LABEL_COLUMNS = (
    "label",
    "labels",
    "score",
    "similarity_score",
    "ner_tags",
    "pos_tags",
    "chunk_tags",
    "tags",
    "upos",
)
"""Well-known column names of each role; where two of them are there, the recipe has to say which."""

# What a label column holds: one name or class, a number, or a list of them.
NAME, WHOLE_NUMBER, NUMBER = "a class name", "a whole number", "a number"
NAMES, WHOLE_NUMBERS, NUMBERS = "a list of class names", "a list of whole numbers", "a list of numbers"
FITTING_CONTENTS = {
    SINGLE_LABEL: (NAME, WHOLE_NUMBER),
    MULTI_LABEL: (NAMES, WHOLE_NUMBERS, NUMBERS),
    REGRESSION: (NUMBER, WHOLE_NUMBER),
    TOKEN_CLASSIFICATION: (NAMES, WHOLE_NUMBERS),
    SENTENCE_SIMILARITY: (NUMBER, WHOLE_NUMBER),
    FEATURE_EXTRACTION: (NUMBERS,),
}
"""Problem type, or kind where it has none -> contents of a label column it can learn from."""


@dataclass(frozen=True)
class TaskSchema:
    """How the rows of a task are read.

    Attributes:
        task_name: For messages.
        spec: The checked entry of `MultiTaskConfig.tasks`.
        columns: Role -> column, or alternatives of which the first present one is read; as the recipe says.
        contents: What the label column holds (`NAME`, ...); None where there is no label column.
        score_range: (lowest, highest) score of the source, rescaled to 0..1; None leaves scores as they are.
        notes: What was inferred, one sentence each.
    """

    task_name: str
    spec: dict[str, Any]
    columns: dict[str, str | list[str]]
    contents: str | None
    score_range: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def target(self) -> str:
        """The problem type, or the kind where it has none: key of `FITTING_CONTENTS` and `LABEL_FEATURES`."""
        return target_of(self.spec)

    def roles(self, features: Features) -> dict[str, str]:
        """Role -> column of a split: `tokens`, or `text` (and `text_pair`); then `label` where there is one.

        Embeddings are of the joined words where the recipe names `tokens`.
        """
        kind = self.spec["kind"]
        found: dict[str, str] = {}
        if kind == TOKEN_CLASSIFICATION or (kind == FEATURE_EXTRACTION and "tokens" in self.columns):
            found["tokens"] = find_column(
                self.task_name, "tokens", self.columns, features, TOKEN_COLUMNS, required=True
            )
        else:
            found |= find_texts(self.task_name, self.columns, features)
        if kind == SENTENCE_SIMILARITY and "text_pair" not in found:
            refuse_columns(self.task_name, "text_pair", features, "a similarity is between two texts")
        if kind == FEATURE_EXTRACTION and "text_pair" in found:
            refuse_columns(self.task_name, "text", features, "an embedding is of one text")
        if self.contents is not None:
            found["label"] = find_label(self.task_name, self.columns, features)
        return found


def target_of(spec: dict[str, Any]) -> str:
    """The problem type of a task, or its kind where it has none."""
    return spec.get("problem_type") or spec["kind"]


# ---------------------------------------------------------------------------------------------------------------------
# Columns


def refuse_columns(task_name: str, role: str, features: Features, reason: str) -> NoReturn:
    """Raise ValueError that lists the columns and says how to name one."""
    raise ValueError(
        f"Task {task_name!r}: {reason}, so the column of the role {role!r} must be known. The columns are "
        f"{', '.join(features)}. Write `columns: {{{role}: COLUMN}}` (a file without header line: `column_names:`)."
    )


def find_column(
    task_name: str,
    role: str,
    columns: dict[str, str | list[str]],
    features: Features,
    known: Sequence[str],
    required: bool = False,
) -> str:
    """The column of a role: the recipe's (the first present alternative), else the only well-known one; "" for none.

    Raises:
        ValueError: if the recipe's column is not there, several well-known ones are, or none is and it is `required`.
    """
    given = columns.get(role)
    if given:
        alternatives = [given] if isinstance(given, str) else given
        for column in alternatives:
            if column in features:
                return column
        raise ValueError(
            f"Task {task_name!r}: the column of the role {role!r} must be there; "
            f"{' or '.join(map(repr, alternatives))} is not among {', '.join(features)}."
            f"{nearest_name(alternatives[0], features)}"
        )
    found = [column for column in known if column in features]
    if len(found) > 1:
        refuse_columns(task_name, role, features, f"several columns could be meant ({', '.join(found)})")
    if not found and required:
        refuse_columns(task_name, role, features, f"no column has a well-known name ({', '.join(known)})")
    return found[0] if found else ""


def find_texts(task_name: str, columns: dict[str, str | list[str]], features: Features) -> dict[str, str]:
    """The column of `text`, and of `text_pair` where the recipe or the names say that there are two texts."""
    if "text" in columns or "text_pair" in columns:
        found = {"text": find_column(task_name, "text", columns, features, TEXT_COLUMNS, required=True)}
        if "text_pair" in columns:
            found["text_pair"] = find_column(task_name, "text_pair", columns, features, ())
        return found
    pairs = [pair for pair in PAIR_COLUMNS if set(pair) <= set(features)]
    paired = {column for pair in pairs for column in pair}
    singles = [column for column in TEXT_COLUMNS if column in features and column not in paired]
    if len(pairs) + len(singles) > 1:
        names = ", ".join([*singles, *(" + ".join(pair) for pair in pairs)])
        refuse_columns(task_name, "text", features, f"several columns could be meant ({names})")
    if not pairs and not singles:
        refuse_columns(task_name, "text", features, f"no column has a well-known name ({', '.join(TEXT_COLUMNS)})")
    return dict(zip(("text", "text_pair"), pairs[0] if pairs else singles, strict=False))


def find_label(task_name: str, columns: dict[str, str | list[str]], features: Features) -> str:
    """The column of the labels."""
    return find_column(task_name, "label", columns, features, LABEL_COLUMNS, required=True)


def item_feature(feature: Any) -> Any:
    """What a list feature holds; None for a feature that is no list."""
    return feature.feature if isinstance(feature, List | LargeList) else None


def contents_of(feature: Any) -> str | None:
    """What a label column holds, one of `NAME` ... `NUMBERS`; None for what no task can learn from."""
    inner = item_feature(feature)
    dtype = getattr(feature if inner is None else inner, "dtype", "")
    dtype = "string" if isinstance(feature if inner is None else inner, ClassLabel) else str(dtype)
    for start, single, several in (
        (("string", "large_string", "bool"), NAME, NAMES),
        (("int", "uint"), WHOLE_NUMBER, WHOLE_NUMBERS),
        (("float", "double"), NUMBER, NUMBERS),
    ):
        if dtype.startswith(start):
            return single if inner is None else several
    return None


def declared_names(feature: Any) -> list[str] | None:
    """The names of a ClassLabel feature or a list of them; None where the features name no classes."""
    inner = item_feature(feature) or feature
    return list(inner.names) if isinstance(inner, ClassLabel) else None


# ---------------------------------------------------------------------------------------------------------------------
# Kind and labels


def infer_schema(
    task_name: str, task: TaskArguments, splits: dict[str, Dataset], known_labels: list[str] | None = None
) -> TaskSchema:
    """How the rows of a task are read, from its fields and the features of its train split (else its first one).

    Args:
        task_name (str): For messages.
        task (TaskArguments): What is set there is taken; the rest is inferred.
        splits (dict): Our split -> source rows.
        known_labels (list): Label names of a saved model, whose order the labels get; None for a new model.

    Raises:
        ValueError: where a column, the kind or the labels are ambiguous, or the label names differ.
    """
    split = "train" if "train" in splits else next(iter(splits))
    rows = splits[split]
    column, contents = None, None
    if task.kind != FEATURE_EXTRACTION or "label" in task.columns:
        column = find_label(task_name, task.columns, rows.features)
        contents = contents_of(rows.features[column])
        refuse_mixed_types(task_name, split, rows, column)
        if contents == NAME and declared_names(rows.features[column]) is None and not (task.labels or known_labels):
            refuse_words_among_numbers(task_name, task, split, rows, column)
        if contents is None:
            raise ValueError(
                f"Task {task_name!r}: labels are class names, numbers or lists of them, but column {column!r} holds "
                f"{rows.features[column]}. Write `columns: {{label: COLUMN}}` to name another."
            )
    labels_known = bool(task.labels or known_labels)
    kind, problem_type = infer_kind(task_name, task, rows.features, column, contents, labels_known)
    labels, notes = find_labels(task_name, task, rows, column, contents, problem_type or kind, known_labels)
    is_pair = kind == TEXT_CLASSIFICATION and "text_pair" in find_texts(task_name, task.columns, rows.features)
    fields = ("pooling", "head", "head_activation", "dropout", "loss")
    spec = {"kind": kind, "problem_type": problem_type, "labels": labels or None, "text_pair": is_pair or None}
    spec |= {name: getattr(task, name) for name in fields}
    spec = check_task(task_name, {name: value for name, value in spec.items() if value is not None})
    score_range = (task.score_range[0], task.score_range[1]) if task.score_range else None
    schema = TaskSchema(task_name, spec, task.columns, contents, score_range)
    return replace(schema, notes=[describe_schema(schema, task, rows.features), *notes])


def refuse_mixed_types(task_name: str, split: str, rows: Dataset, column: str) -> None:
    """Raise ValueError naming the first row of another type than those before it, as a column of a JSON file can be."""
    if not isinstance(rows.features[column], Json):
        return
    first: tuple[int, Any] | None = None
    for row, value in enumerate(rows[column]):
        if first is not None and value is not None and type(value) is not type(first[1]):
            raise ValueError(
                f"Task {task_name!r}: the values of a column are of one type; row {row} of split {split!r} has "
                f"{str(value)[:100]!r} ({type(value).__name__}) in column {column!r}, row {first[0]} has "
                f"{str(first[1])[:100]!r} ({type(first[1]).__name__}). Mend the row."
            )
        first = first or (None if value is None else (row, value))


def refuse_words_among_numbers(task_name: str, task: TaskArguments, split: str, rows: Dataset, column: str) -> None:
    """Raise ValueError naming the first word in a column of scores: in a CSV file one `NaN` makes text of them all.

    Scores are expected where the recipe says so, or where most of the first 1,000 labels are decimal fractions.
    """
    expected = task.kind == SENTENCE_SIMILARITY or task.problem_type == REGRESSION or task.score_range is not None
    if not expected and task.kind is None and task.problem_type is None:
        head = as_names(rows.select_columns([column]).with_format("arrow")[:1_000][column])
        is_fraction = pc.match_substring_regex(head, r"^[-+]?\d*\.\d+$")
        expected = 2 * (pc.sum(is_fraction).as_py() or 0) > len(head) - head.null_count
    start = 0
    for batch in rows.select_columns([column]).with_format("arrow").iter(batch_size=10_000) if expected else []:
        values = as_names(batch[column].combine_chunks())
        is_number = pc.match_substring_regex(values, r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$")
        found = pc.index(pc.fill_null(is_number, True), False).as_py()
        if found >= 0:
            raise ValueError(
                f"Task {task_name!r}: scores are finite numbers; row {start + found} of split {split!r} has "
                f"{values[found].as_py()[:100]!r} in column {column!r}. Mend or remove the row, or, if these are "
                "names, write them in `labels:`."
            )
        start += len(values)


def infer_kind(
    task_name: str,
    task: TaskArguments,
    features: Features,
    column: str | None,
    contents: str | None,
    labels_known: bool,
) -> tuple[str, str | None]:
    """The kind of a task and, for text-classification, its problem type.

    Raises:
        ValueError: if the labels fit several kinds and the recipe does not choose, or do not fit the chosen one.
    """
    kind = task.kind or guess_kind(task_name, task, features, contents, labels_known)
    problem_type = None
    if kind == TEXT_CLASSIFICATION:
        by_contents = {NAME: SINGLE_LABEL, WHOLE_NUMBER: SINGLE_LABEL, NUMBER: REGRESSION}
        problem_type = task.problem_type or by_contents.get(str(contents), MULTI_LABEL)
    needs_names = (problem_type or kind) in (SINGLE_LABEL, MULTI_LABEL, TOKEN_CLASSIFICATION)
    if kind is None or (needs_names and contents in (WHOLE_NUMBER, WHOLE_NUMBERS, NUMBERS) and not labels_known):
        raise ValueError(
            f"Task {task_name!r}: column {column!r} holds {contents} without names, so what it says is ambiguous. "
            "Write `labels: [first, second, ...]` if they are classes (position = number), `problem_type: regression` "
            "or `kind: sentence-similarity` (with `score_range:`) if they are scores, `kind: feature-extraction` if "
            "they are embeddings."
        )
    fitting = FITTING_CONTENTS[problem_type or kind]
    if contents is not None and contents not in fitting:
        raise ValueError(
            f"Task {task_name!r} ({problem_type or kind}): each of its labels must be {' or '.join(fitting)}, but "
            f"column {column!r} holds {contents} ({features[str(column)]}). Write `columns: {{label: COLUMN}}`, or "
            "another `kind` or `problem_type`."
        )
    return kind, problem_type


def guess_kind(
    task_name: str, task: TaskArguments, features: Features, contents: str | None, labels_known: bool
) -> str | None:
    """The only kind that fits the columns, or None where several do."""
    if task.problem_type or contents == NAME:
        return TEXT_CLASSIFICATION
    if contents in (NAMES, WHOLE_NUMBERS):
        has_tokens = "tokens" in task.columns or any(name in features for name in TOKEN_COLUMNS)
        return TOKEN_CLASSIFICATION if has_tokens else TEXT_CLASSIFICATION
    if contents == NUMBERS:
        return None
    if labels_known:
        return TEXT_CLASSIFICATION
    has_pair = "text_pair" in find_texts(task_name, task.columns, features)
    if contents == NUMBER:
        return SENTENCE_SIMILARITY if has_pair else TEXT_CLASSIFICATION
    return SENTENCE_SIMILARITY if has_pair and task.score_range else None


def find_labels(
    task_name: str,
    task: TaskArguments,
    rows: Dataset,
    column: str | None,
    contents: str | None,
    target: str,
    known_labels: list[str] | None,
) -> tuple[list[str], list[str]]:
    """The label names in the order of the classes, and notes; no names for similarity and embeddings.

    They are the saved model's, else the recipe's, else those of the features, else the sorted names in `rows`.

    Raises:
        ValueError: if the names of model, recipe and features differ; the message shows both differences.
    """
    if target in (SENTENCE_SIMILARITY, FEATURE_EXTRACTION):
        return [], []
    given = list(known_labels or task.labels or [])
    if task.labels and known_labels:
        refuse_differing_labels(task_name, "the recipe", task.labels, "the model", known_labels)
    if target == REGRESSION:
        return given, []
    declared = declared_names(rows.features[column])
    if declared is not None:
        if given:
            refuse_differing_labels(task_name, f"column {column!r}", declared, "the task", given)
        return given or declared, []
    if given:
        return given, []
    names = sorted(name for name in distinct_names(rows, str(column)) if name.strip())
    if target == TOKEN_CLASSIFICATION and has_entities(names):
        # The second sub-word of a word tagged B-X is inside the entity, also where no entity has two words.
        missing = sorted({f"I-{name[2:]}" for name in names if name != "O"} - set(names))
        if missing:
            notes = [f"Task {task_name!r}: {', '.join(missing)} added, for words of several sub-words."]
            return sorted([*names, *missing]), notes
    return names, []


def distinct_names(rows: Dataset, column: str) -> list[str]:
    """The distinct names in a column of strings, booleans or lists of them, a column chunk at a time."""
    found: set[str] = set()
    for batch in rows.select_columns([column]).with_format("arrow").iter(batch_size=10_000):
        values = batch[column].combine_chunks()
        values = pc.list_flatten(values) if is_list(values.type) else values
        found.update(pc.unique(pc.drop_null(as_names(values))).to_pylist())
    return list(found)


def refuse_differing_labels(task_name: str, where: str, names: list[str], there: str, others: list[str]) -> None:
    """Raise ValueError showing both differences unless the two hold the same label names, in any order."""
    more, fewer = sorted(set(names) - set(others)), sorted(set(others) - set(names))
    if more or fewer:
        raise ValueError(
            f"Task {task_name!r}: labels are matched by name, so the names must be the same. Only in {where}: "
            f"{', '.join(more) or 'none'}. Only in {there}: {', '.join(fewer) or 'none'}. Rename them in the data, "
            "or mend `labels:`."
        )


def describe_schema(schema: TaskSchema, task: TaskArguments, features: Features) -> str:
    """One sentence: kind, columns and labels, and which of them were inferred."""
    kind = schema.spec["kind"] + (f", {schema.spec['problem_type']}" if "problem_type" in schema.spec else "")
    inferred = [] if task.kind else ["kind"]
    inferred += [role for role in schema.roles(features) if role not in task.columns]
    labels = schema.spec.get("labels") or []
    if labels and not task.labels:
        inferred.append("label names")
    roles = ", ".join(f"{role} from {column!r}" for role, column in schema.roles(features).items())
    shown = ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
    named = (
        f"; {len(labels)} label{'s' if len(labels) > 1 else ''}: {shown}"
        if labels and schema.target != REGRESSION
        else ""
    )
    how = f" (inferred: {', '.join(inferred)})" if inferred else ""
    return f"Task {schema.task_name!r}: {kind}; {roles}{named}{how}."


def is_list(arrow_type: pa.DataType) -> bool:
    """Whether an Arrow type is a list of any make."""
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(arrow_type) for check in checks)


def as_names(values: pa.Array) -> pa.Array:
    """Strings as they are; booleans as `true` and `false`, whole numbers in digits."""
    return values.cast(pa.string())
