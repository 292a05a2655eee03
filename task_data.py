"""One task's dataset (Hub id, folder, CSV, JSONL, Parquet, CoNLL file) -> checked rows -> tokenised features.

`load_tasks` opens every source (`task_sources`), infers what its columns mean (`task_schema`), checks its rows
(`task_rows`), cuts a missing validation split and caps; `tokenize_rows` makes the features that `data_collator` pads.
It chooses no order (`task_sampler`), and no task is ever a Python list: all stays in the Arrow files of `datasets`.

    loaded = load_tasks({"topic": TaskArguments(dataset="builtin:topic")}, seed=42)
    features, counts = tokenize_rows({"topic": loaded["topic"].splits["train"]}, {"topic": loaded["topic"].spec},
                                     tokenizer, max_length=128)
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher

from arguments_multitask import SPLITS, TaskArguments, rows_by_split
from configuration_multitask import (
    LABEL_PADDING,
    SENTENCE_SIMILARITY,
    SINGLE_LABEL,
    TOKEN_CLASSIFICATION,
    has_entities,
    num_outputs,
)
from task_rows import LABEL_FEATURES, canonical_rows
from task_schema import TaskSchema, infer_schema, target_of
from task_sources import choose_splits, hub_or_local

CODE_DIGEST = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
"""Part of the cache keys: `datasets` knows a function by its name alone and would reuse what an older version made."""

PROBE_TEXTS = 8
"""Texts whose embeddings stand for a teacher in a cache key."""


@dataclass
class LoadedTask:
    """A task with its rows, ready to be tokenised.

    Attributes:
        name (str): The task.
        spec (dict): Its entry of `MultiTaskConfig.tasks`, checked and complete.
        splits (dict): Our split -> canonical rows: `text` (and `text_pair`) or `tokens`, `label`, `row` (index in the
            source split); see `task_rows.canonical_rows`.
        notes (list): What was inferred, cut and capped, one sentence each; each names the task.
        source (dict): Where the rows come from, for result files: `dataset`, `config`, `revision`, `commit` (on the
            Hub), `license`, `language` (a list), `location`, `splits` (our split -> source split), `rows` (our split ->
            rows used) and `source_rows` (source split -> rows there).
        source_key (Hashable): Equal for tasks that read the same rows and texts; they can be tokenised together.
    """

    name: str
    spec: dict[str, Any]
    splits: dict[str, Dataset]
    notes: list[str]
    source: dict[str, Any]
    source_key: Hashable


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def load_tasks(
    tasks: dict[str, TaskArguments],
    data_root: str | None = None,
    seed: int = 42,
    offline: bool = False,
    known_labels: dict[str, list[str]] | None = None,
    splits: Sequence[str] = SPLITS,
) -> dict[str, LoadedTask]:
    """Open, read and check the rows of all tasks.

    Args:
        tasks (dict): Task -> where its rows are and how they are read.
        data_root (str): Folder whose `DIR/<name>` is read in place of the Hub where it is there.
        seed (int): Of the validation cut and of the samples under `max_rows`. Same seed, same rows.
        offline (bool): Never ask the Hub.
        known_labels (dict): Task -> label names of a saved model; the data's labels are brought into their order by
            name. Tasks without an entry get their labels from recipe or data.
        splits (Sequence[str]): Which of train, validation and test to return. A split that a source does not have is
            missing in the answer, but train must be there if it is asked for, except where the recipe says `splits:
            {train: null}` of a task without a head (similarity, embeddings): it is scored, not trained.

    Returns:
        Task -> `LoadedTask`, in the order of `tasks`.

    Raises:
        ValueError: for a source that cannot be read, ambiguous columns, differing label names, or a row that nothing
            can be learnt from; the message names task, split, row and value, and the way out.
    """
    loaded = {
        name: load_task(name, task, data_root, offline, (known_labels or {}).get(name)) for name, task in tasks.items()
    }
    for group in groups_by(loaded, lambda task: task.source_key):
        refuse_unlabelled_rows(group)
    uncut = {name: task for name, task in loaded.items() if "train" in task.splits and "validation" not in task.splits}
    for group in groups_by(uncut, lambda task: train_key(task, tasks[task.name])):
        cut_validation(group, {name: tasks[name].validation_fraction for name in tasks}, seed)
    for name, task in loaded.items():
        cap_rows(task, rows_by_split(tasks[name].max_rows), seed)
        task.splits = {split: task.splits[split] for split in SPLITS if split in task.splits and split in splits}
        task.source["rows"] = {split: len(rows) for split, rows in task.splits.items()}
        if "train" in splits and "train" not in task.splits and is_scored_only(task, tasks[name]):
            task.notes.append(f"Task {name!r}: no training rows are read (train: null), so it is scored, not trained.")
        elif "train" in splits and "train" not in task.splits:
            raise ValueError(
                f"Task {name!r}: training needs a train split; the source has {', '.join(task.source['source_rows'])}. "
                "Write `splits: {train: ...}`."
            )
    if "train" in splits and not any("train" in task.splits for task in loaded.values()):
        names = ", ".join(map(repr, loaded))
        raise ValueError(
            f"Training needs a task with train rows; no task has any: {names}. Write `splits: {{train: ...}}`, or "
            "score a model without training it: evaluate_hf.py."
        )
    return loaded


def is_scored_only(loaded: LoadedTask, task: TaskArguments) -> bool:
    """Whether a task is scored without being trained: its recipe reads no train split, and it has no head to train."""
    return task.splits.get("train", "") is None and num_outputs(loaded.spec) == 0


def require_split(loaded: dict[str, LoadedTask], split: str) -> None:
    """Raise ValueError if no task has rows of a split that a run has to score."""
    if not any(split in task.splits for task in loaded.values()):
        counts = "; ".join(f"{name!r} has {task.source['rows']}" for name, task in loaded.items())
        raise ValueError(
            f"At least one task needs rows of the split {split!r} to be scored on: {counts}. Write `splits: "
            f"{{{split}: ...}}`{', or a `validation_fraction` above 0' if split == 'validation' else ''}, or add rows."
        )


def load_task(
    name: str,
    task: TaskArguments,
    data_root: str | None = None,
    offline: bool = False,
    known_labels: list[str] | None = None,
) -> LoadedTask:
    """Open one source and read all its rows, nothing cut or capped yet; see `load_tasks`."""
    source = hub_or_local(name, task, data_root, offline)
    chosen, notes = choose_splits(name, task.splits, list(source.splits))
    schema = infer_schema(name, task, {ours: source.splits[theirs] for ours, theirs in chosen.items()}, known_labels)
    rows = {ours: canonical_rows(schema, theirs, source.splits[theirs]) for ours, theirs in chosen.items()}
    origin = {
        "dataset": task.dataset,
        "config": task.config,
        "revision": task.revision,
        "commit": source.commit,
        "license": task.license or ", ".join(words(source.card.get("license"))) or None,
        "language": words(task.language) or language_of(source.card),
        "location": source.location,
        "splits": dict(chosen),
        "source_rows": {split: len(dataset) for split, dataset in source.splits.items()},
    }
    key = source_key(schema, task, origin, {ours: source.splits[theirs].features for ours, theirs in chosen.items()})
    return LoadedTask(name, schema.spec, rows, [*source.notes, *notes, *schema.notes], origin, key)


def words(value: Any) -> list[str]:
    """A field of a card that holds one word, a list of them, or nothing."""
    return [str(word) for word in (value if isinstance(value, list) else [value]) if word]


def language_of(card: dict[str, Any]) -> list[str]:
    """The language of a dataset by its card; of one in several it is not known which a configuration has."""
    languages = words(card.get("language"))
    return languages if len(languages) == 1 else []


def source_key(
    schema: TaskSchema, task: TaskArguments, origin: dict[str, Any], features: dict[str, Features]
) -> Hashable:
    """What is equal for tasks whose items can be one: the same rows, and the same texts read in the same way."""
    texts = {
        ours: {role: column for role, column in schema.roles(of_split).items() if role != "label"}
        for ours, of_split in features.items()
    }
    is_separate = schema.spec["kind"] == SENTENCE_SIMILARITY
    cuts = [rows_by_split(task.max_rows), task.validation_fraction]
    files = [task.name, task.format, task.column_names]
    origin = {field: origin[field] for field in ("dataset", "config", "revision", "location", "splits")}
    return json.dumps([origin, files, texts, is_separate, cuts], sort_keys=True)


def train_key(loaded: LoadedTask, task: TaskArguments) -> Hashable:
    """What is equal for tasks that read the same train split, whatever its columns."""
    origin = [loaded.source[field] for field in ("dataset", "config", "revision", "location")]
    return json.dumps([origin, task.name, loaded.source["splits"]["train"]], sort_keys=True)


def groups_by(loaded: dict[str, LoadedTask], key: Callable[[LoadedTask], Hashable]) -> list[list[LoadedTask]]:
    """Tasks with equal keys, together; tasks and groups by name."""
    groups: dict[Hashable, list[LoadedTask]] = {}
    for name in sorted(loaded):
        groups.setdefault(key(loaded[name]), []).append(loaded[name])
    return list(groups.values())


def unlabelled(rows: Dataset) -> np.ndarray:
    """Whether each row has no label. Shape (rows,), bool. Without a label column, a teacher will give labels to all."""
    if "label" not in rows.column_names:
        return np.zeros(len(rows), bool)
    batches = rows.select_columns(["label"]).with_format("arrow").iter(batch_size=10_000)
    masks = [pc.is_null(batch["label"]).to_numpy() for batch in batches]
    return np.concatenate(masks) if masks else np.zeros(0, bool)


def refuse_unlabelled_rows(group: list[LoadedTask]) -> None:
    """Raise ValueError if a row has no label of any of the tasks that read it."""
    for split in group[0].splits:
        bare = np.flatnonzero(np.logical_and.reduce([unlabelled(task.splits[split]) for task in group]))
        if len(bare):
            names = ", ".join(repr(task.name) for task in group)
            further = f", and {len(bare) - 1:,} more" if len(bare) > 1 else ""
            raise ValueError(
                f"Task {names}: each row needs a label (of one task at least, where several read the same rows); row "
                f"{int(bare[0])} of split {group[0].source['splits'][split]!r} has None{further}. "
                f"Remove them, or leave the split out: `splits: {{{split}: null}}`."
            )


def cut_validation(group: list[LoadedTask], fractions: dict[str, float], seed: int) -> None:
    """Cut validation rows from the train split of tasks that share it: the same rows for all of them.

    A text that one task trains on is never one that another is validated on.

    Raises:
        ValueError: if the tasks ask for different shares.
    """
    names = [task.name for task in group]
    share = fractions[names[0]]
    for name in names:
        if fractions[name] != share:
            raise ValueError(
                f"Tasks {names[0]!r} and {name!r} read the same train split, so the same rows must be cut off for "
                f"validation; got validation_fraction {share:g} and {fractions[name]:g}. Write the same for both."
            )
    total = len(group[0].splits["train"])
    classes = [np.asarray(task.splits["train"].with_format("numpy")["label"][:]) for task in group if has_classes(task)]
    chosen = choose_validation(total, share, classes, seed)
    if not len(chosen):
        return
    kept = np.delete(np.arange(total), chosen)
    for task in group:
        rows = task.splits["train"]
        task.splits |= {"train": rows.select(kept), "validation": rows.select(chosen)}
        task.source["splits"]["validation"] = f"{task.source['splits']['train']} ({share:g} of it, seed {seed})"
        how = ", stratified by class" if classes else ""
        task.notes.append(
            f"Task {task.name!r}: no validation split is read, so {len(chosen):,} of {total:,} train rows "
            f"({share:.0%}) are cut off for it{how}, seed {seed}."
        )


def has_classes(task: LoadedTask) -> bool:
    """Whether each row of a task has exactly one class to stratify by."""
    return target_of(task.spec) == SINGLE_LABEL and not unlabelled(task.splits["train"]).any()


def choose_validation(total: int, share: float, classes: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Rows to cut off, sorted. Shape (round(total * share),), int64; at least one is cut and one left.

    The rows are put into order by class, at random within a class, and every (1 / share)-th is taken: each class loses
    its share, to within one row; with several kinds of classes, the first to within one row and the others nearly so.

    Example: 4 rows of class 0 and 2 of class 1, share 0.5: two rows of class 0 and one of class 1 are chosen.
    """
    count = min(max(1, round(total * share)), total - 1) if share > 0 else 0
    order = np.lexsort([np.random.default_rng(seed).random(total), *reversed(classes)])
    places = np.floor((np.arange(count) + 0.5) * total / max(1, count)).astype(np.int64)
    return np.sort(order[places])


def cap_rows(task: LoadedTask, caps: dict[str, int], seed: int) -> None:
    """Keep a random sample of a split, in order: the same rows in all tasks that read the same split and cap."""
    for split, cap in caps.items():
        total = len(task.splits.get(split, ()))
        if total > cap:
            rng = np.random.default_rng([seed, SPLITS.index(split)])
            kept = np.sort(rng.permutation(total)[:cap])
            task.splits[split] = task.splits[split].select(kept)
            task.notes.append(
                f"Task {task.name!r}: {cap:,} of {total:,} {split} rows are used, drawn with seed {seed}."
            )


def texts_of(batch: dict[str, list[Any]]) -> list[str]:
    """The first text of each row of a batch; words are joined by spaces."""
    return batch["text"] if "text" in batch else [join_words(words)[0] for words in batch["tokens"]]


def duplicate_texts(splits: dict[str, Dataset]) -> dict[str, int]:
    """How many rows of validation and test have a text (words joined, pair included) that also stands in train.

    Texts are compared by 8-byte hashes, so memory stays at 8 bytes a row.

    Example: train holds "a b" and "c"; validation "c", "c" and "d": {"validation": 2}.
    """
    hashes = {split: hash_texts(rows) for split, rows in splits.items()}
    if "train" not in hashes:
        return {}
    return {split: int(np.isin(own, hashes["train"]).sum()) for split, own in hashes.items() if split != "train"}


def hash_texts(rows: Dataset) -> np.ndarray:
    """A hash of each row's text or texts. Shape (rows,), uint64."""
    columns = [column for column in ("text", "text_pair", "tokens") if column in rows.column_names]
    hashes = np.empty(len(rows), np.uint64)
    start = 0
    for batch in rows.select_columns(columns).iter(batch_size=1_000):
        texts = texts_of(batch)
        pairs = batch.get("text_pair") or [""] * len(texts)
        for place, both in enumerate(zip(texts, pairs, strict=True), start=start):
            digest = hashlib.blake2b("\0".join(both).encode("utf-8", "surrogatepass"), digest_size=8).digest()
            hashes[place] = int.from_bytes(digest, "little")
        start += len(texts)
    return hashes


def teacher_embeddings(rows: Dataset, embed: Callable[[list[str]], np.ndarray]) -> Dataset:
    """Canonical rows with a teacher's embeddings as `label` (list of float32), for feature-extraction without labels.

    Args:
        rows (Dataset): Canonical rows without `label`.
        embed (Callable): Texts -> embeddings. Shape (texts, dim).

    The result is cached under the embeddings of the first texts: another teacher has others.
    """
    probe = np.asarray(embed(texts_of(rows[:PROBE_TEXTS])), np.float32)

    def embed_batch(batch: dict[str, list[Any]]) -> dict[str, Any]:
        return {"label": np.asarray(embed(texts_of(batch)), np.float32)}

    texts = [column for column in rows.column_names if column != "row"]
    return rows.map(
        embed_batch,
        batched=True,
        features=Features({**rows.features, "label": List(Value("float32"))}),
        new_fingerprint=Hasher.hash((CODE_DIGEST, rows._fingerprint, probe.tobytes())),
        desc="Embedding with the teacher",
    ).select_columns([*texts, "label", "row"])


# ---------------------------------------------------------------------------------------------------------------------
# Tokenising


def join_words(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The words joined by spaces, and the characters [start, end) of each.

    Example: ["New", "York", "!"] -> ("New York !", [(0, 3), (4, 8), (9, 10)])
    """
    spans, start = [], 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), spans


def words_of_tokens(
    text: str, spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]
) -> list[int | None]:
    """The word that each token belongs to: the one that holds the token's first character that is no space.

    Args:
        text (str): The joined words.
        spans (Sequence): Characters [start, end) of each word.
        offsets (Sequence): Characters [start, end) of each token; those of byte-level BPE and SentencePiece may begin
            with the space before the word. Empty for special tokens.

    Returns:
        A word index a token; None for special tokens and tokens of nothing but space.

    Example: "ab c", words [(0, 2), (3, 4)], tokens [(0, 0), (0, 1), (1, 2), (2, 4), (0, 0)] -> [None, 0, 0, 1, None]
    """
    words = np.full(len(text) + 1, -1)
    for index, (start, end) in enumerate(spans):
        words[start:end] = index
    found: list[int | None] = []
    for start, end in offsets:
        while start < end and text[start].isspace():
            start += 1
        found.append(int(words[start]) if start < end and words[start] >= 0 else None)
    return found


def tag_tokens(words: Sequence[int | None], tags: Sequence[int], continuation: Sequence[int]) -> list[int]:
    """A tag for each token: the word's on its first token, `continuation[tag]` on the following ones, else -100.

    Example: words [None, 0, 0, 1, None] with tags [1, 0] and continuation [0, 2, 2] (O, B-PER -> I-PER, I-PER):
    [-100, 1, 2, 0, -100]
    """
    labels, before = [], None
    for word in words:
        if word is None:
            labels.append(LABEL_PADDING)
            continue
        labels.append(continuation[tags[word]] if word == before else tags[word])
        before = word
    return labels


def continuation_tags(labels: Sequence[str], label_all_subwords: bool) -> list[int]:
    """For each tag, the tag of a word's second and later tokens: B-X becomes I-X, others stay; -100 for none at all.

    Example: ["O", "B-PER", "I-PER"] -> [0, 2, 2]
    """
    if not label_all_subwords:
        return [LABEL_PADDING] * len(labels)
    inside = {f"B-{label[2:]}": index for index, label in enumerate(labels) if label.startswith("I-")}
    is_entities = has_entities(list(labels))
    return [inside.get(label, index) if is_entities else index for index, label in enumerate(labels)]


def tokenize_rows(
    rows: dict[str, Dataset],
    specs: dict[str, dict[str, Any]],
    tokenizer: Any,
    max_length: int,
    label_all_subwords: bool = True,
) -> tuple[Dataset, dict[str, int]]:
    """Features of one task, or of several that read the same rows: then an item carries the label of each.

    Args:
        rows (dict): Task -> canonical rows; of several tasks with the same `source_key`.
        specs (dict): Task -> its entry of `MultiTaskConfig.tasks`.
        tokenizer: A tokenizer of transformers; a fast one for tags.
        max_length (int): Tokens a text (a jointly read pair together) is cut to, special ones included.
        label_all_subwords (bool): Whether a word's later tokens carry its tag too (B- becoming I-), as training needs
            it; False leaves them -100, as evaluation needs it: a word is scored by its first token.

    Returns:
        Dataset with `input_ids`, `token_type_ids` (jointly read pairs, where the tokenizer makes them),
        `pair_input_ids` (similarity), `labels` {task: label} (tags are per token, -100 on special tokens), `length`
        (tokens of the longer text), `row`.

        Counts: `truncated` (rows cut), `truncated_words` (tagged words cut off), `empty_words` (tagged words that the
        tokenizer makes no token of), `unlabelled` (rows left out: none of these tasks has a label there).

    Raises:
        ValueError: if the tasks do not read the same rows, a label is missing altogether, or tags are to be mapped by a
            tokenizer without character offsets.

    Example, with [CLS] = 2, [SEP] = 3, "Anna" = 7, "Berlin" = 8 + 9 and labels O, B-PER, I-PER, B-LOC, I-LOC:

        {"tokens": ["Anna", "Berlin"], "label": [1, 3], "row": 5}
        -> {"input_ids": [2, 7, 8, 9, 3], "labels": {"ner": [-100, 1, 3, 4, -100]}, "length": 5, "row": 5}
    """
    merged = merge_aligned(rows)
    labelled = ~np.logical_and.reduce([unlabelled(dataset) for dataset in rows.values()])
    merged = merged if labelled.all() else merged.select(np.flatnonzero(labelled))
    row_tokenizer = RowTokenizer(specs, tokenizer, max_length, label_all_subwords, merged.column_names)
    features = merged.map(
        row_tokenizer.tokenize_batch,
        batched=True,
        features=row_tokenizer.features,
        remove_columns=merged.column_names,
        new_fingerprint=Hasher.hash((CODE_DIGEST, merged._fingerprint, row_tokenizer.cache_key)),
        desc=f"Tokenising {' + '.join(rows)}",
    )
    counted = ("truncated", "truncated_words", "empty_words")
    counts = {name: sum_column(features, name) for name in counted}
    return features.remove_columns(list(counted)), counts | {"unlabelled": int((~labelled).sum())}


def sum_column(dataset: Dataset, column: str) -> int:
    """The sum over a column of whole numbers."""
    batches = dataset.select_columns([column]).with_format("arrow").iter(batch_size=10_000)
    return sum(pc.sum(batch[column]).as_py() or 0 for batch in batches)


def merge_aligned(rows: dict[str, Dataset]) -> Dataset:
    """The texts of the first task with the labels of all, in columns `label <task>`.

    Raises:
        ValueError: if the tasks do not have the same rows, or one has no labels.
    """
    first_name, first = next(iter(rows.items()))
    parts: list[Dataset] = []
    for name, dataset in rows.items():
        if "label" not in dataset.column_names:
            raise ValueError(
                f"Task {name!r}: its rows have no label column (they have {', '.join(dataset.column_names)}). Add a "
                "teacher's embeddings with teacher_embeddings(...)."
            )
        if name != first_name and not np.array_equal(row_numbers(dataset), row_numbers(first)):
            raise ValueError(
                f"Tasks tokenised together must read the same rows; {first_name!r} and {name!r} have {len(first)} and "
                f"{len(dataset)} rows, or other ones. Tokenise them one by one."
            )
        labelled = dataset.rename_column("label", f"label {name}")
        parts.append(labelled.select_columns([f"label {name}"]) if parts else labelled)
    return concatenate_datasets(parts, axis=1) if len(parts) > 1 else parts[0]


def row_numbers(dataset: Dataset) -> np.ndarray:
    """The column `row`. Shape (rows,), int64."""
    batches = dataset.select_columns(["row"]).with_format("arrow").iter(batch_size=10_000)
    return np.concatenate([batch["row"].to_numpy() for batch in batches])


def tokenizer_key(tokenizer: Any) -> Any:
    """What a tokenizer's output depends on, without the truncation and padding that earlier calls left in it."""
    if not tokenizer.is_fast:
        return Hasher.hash(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    sides = (tokenizer.truncation_side, tokenizer.model_input_names)
    return hashlib.sha256(json.dumps([state, sides]).encode()).hexdigest()


class RowTokenizer:
    """Tokenises batches of merged rows; see `tokenize_rows`."""

    def __init__(
        self,
        specs: dict[str, dict[str, Any]],
        tokenizer: Any,
        max_length: int,
        label_all_subwords: bool,
        columns: Sequence[str],
    ):
        self.specs = specs
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.label_all_subwords = label_all_subwords
        self.is_tags = "tokens" in columns
        self.is_separate = any(spec["kind"] == SENTENCE_SIMILARITY for spec in specs.values())
        self.is_joint = "text_pair" in columns and not self.is_separate
        self.with_types = self.is_joint and "token_type_ids" in tokenizer.model_input_names
        self.continuation = {
            name: continuation_tags(spec["labels"], label_all_subwords)
            for name, spec in specs.items()
            if spec["kind"] == TOKEN_CLASSIFICATION
        }
        self.check()

    def check(self) -> None:
        """Refuse lengths without room for words, and tags where the tokenizer tells no character offsets."""
        special_tokens = self.tokenizer.num_special_tokens_to_add(pair=self.is_joint)
        if self.max_length <= special_tokens:
            raise ValueError(
                f"max_length must leave room for words beside {special_tokens} special tokens; got {self.max_length}."
            )
        if self.continuation and not self.tokenizer.is_fast:
            raise ValueError(
                f"Tasks {', '.join(map(repr, self.continuation))}: tags are brought to tokens by character offsets, "
                f"which only fast tokenizers tell; {type(self.tokenizer).__name__} is none. Choose an encoder with a "
                "tokenizer.json."
            )

    @property
    def cache_key(self) -> tuple[Any, ...]:
        """All that the features depend on besides the rows."""
        meaning = [(name, target_of(spec), spec.get("labels")) for name, spec in self.specs.items()]
        return (meaning, tokenizer_key(self.tokenizer), self.max_length, self.label_all_subwords)

    @property
    def features(self) -> Features:
        """Types of the features; the counts are removed once they are summed."""
        ids = List(Value("int32"))
        columns: dict[str, Any] = {"input_ids": ids}
        columns |= {"token_type_ids": List(Value("int8"))} if self.with_types else {}
        columns |= {"pair_input_ids": ids} if self.is_separate else {}
        labels = {name: LABEL_FEATURES[target_of(spec)] for name, spec in self.specs.items()}
        columns |= {"labels": labels, "length": Value("int32"), "row": Value("int64")}
        return Features(columns | dict.fromkeys(("truncated", "truncated_words", "empty_words"), Value("int32")))

    def encode(self, texts: list[str], pairs: list[str] | None = None) -> tuple[dict[str, list[Any]], list[int], Any]:
        """Encoded texts cut to `max_length`, the places of those that were cut, and all offsets before the cut."""
        options = {"return_attention_mask": False, "return_token_type_ids": self.with_types, "verbose": False}
        options |= {"return_offsets_mapping": True} if self.continuation else {}
        encoded = dict(self.tokenizer(texts, pairs, **options))
        offsets = list(encoded.get("offset_mapping", ()))
        long = [place for place, ids in enumerate(encoded["input_ids"]) if len(ids) > self.max_length]
        if long:
            again = self.tokenizer(
                [texts[place] for place in long],
                [pairs[place] for place in long] if pairs else None,
                truncation=True,
                max_length=self.max_length,
                **options,
            )
            for column, values in again.items():
                for place, value in zip(long, values, strict=True):
                    encoded[column][place] = value
        return encoded, long, offsets

    def tokenize_batch(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The features of one batch, and what was lost in each row."""
        texts = texts_of(batch)
        encoded, long, offsets = self.encode(texts, batch["text_pair"] if self.is_joint else None)
        cut = set(long)
        out: dict[str, list[Any]] = {"input_ids": encoded["input_ids"], "row": batch["row"]}
        lengths = [len(ids) for ids in encoded["input_ids"]]
        if self.with_types:
            out["token_type_ids"] = encoded["token_type_ids"]
        if self.is_separate:
            pairs, long_pairs, _ = self.encode(batch["text_pair"])
            cut |= set(long_pairs)
            out["pair_input_ids"] = pairs["input_ids"]
            lengths = [max(length, len(ids)) for length, ids in zip(lengths, pairs["input_ids"], strict=True)]
        labels = {name: batch[f"label {name}"] for name in self.specs}
        out["truncated_words"], out["empty_words"] = [0] * len(texts), [0] * len(texts)
        if self.continuation:
            words = self.map_words(batch["tokens"], encoded["offset_mapping"], offsets, cut, out)
            for name, continuation in self.continuation.items():
                labels[name] = [
                    None if tags is None else tag_tokens(of_row, tags, continuation)
                    for of_row, tags in zip(words, labels[name], strict=True)
                ]
        out["labels"] = [dict(zip(labels, values, strict=True)) for values in zip(*labels.values(), strict=True)]
        out["length"] = lengths
        out["truncated"] = [int(place in cut) for place in range(len(texts))]
        return out

    def map_words(
        self,
        tokens: list[list[str]],
        kept_offsets: list[Any],
        all_offsets: list[Any],
        cut: set[int],
        out: dict[str, list[Any]],
    ) -> list[list[int | None]]:
        """The word of each token that is left; counts words without one in `out`."""
        kept_words = []
        for place, row in enumerate(tokens):
            text, spans = join_words(row)
            kept = words_of_tokens(text, spans, kept_offsets[place])
            present = set(words_of_tokens(text, spans, all_offsets[place]) if place in cut else kept) - {None}
            out["empty_words"][place] = len(row) - len(present)
            out["truncated_words"][place] = len(present - set(kept))
            kept_words.append(kept)
        return kept_words
