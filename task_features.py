"""Loaded tasks -> what the Trainer reads: aligned groups of features for training, one dataset a task for evaluation.

Tasks that read the same rows are one dataset here ("aligned"): each row is one item with all their labels, so the
encoder reads it once. It opens no source and checks no row (`task_sources`, `task_rows` do), and chooses no order
(`task_sampler`).

    features = build_features(loaded, tokenizer, max_length=256)
    TaskSamplingDataset(features.train), Trainer(eval_dataset=features.validation)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from configuration_multitask import FEATURE_EXTRACTION
from task_data import LoadedTask, duplicate_texts, teacher_embeddings, tokenize_rows


class EmbeddingTeacher(NamedTuple):
    """What a feature-extraction task learns where its data has no embeddings.

    Attributes:
        name (str): What the plan calls it.
        embed (Callable): Texts -> embeddings (texts, dim).
        digest (str): A hash of its weights; empty for the encoder itself, whose start a run knows anyway.
    """

    name: str
    embed: Callable[[list[str]], np.ndarray]
    digest: str = ""


@dataclass
class TaskFeatures:
    """Tokenised data of a run.

    Attributes:
        train (dict): Group -> features. A group is a task, or aligned tasks, named `a+b`.
        validation (dict): Task -> features with this task's labels only, sorted by length.
        test (dict): Likewise.
        notes (list): What loading inferred and what tokenising cut, one sentence each.
    """

    train: dict[str, Dataset] = field(default_factory=dict)
    validation: dict[str, Dataset] = field(default_factory=dict)
    test: dict[str, Dataset] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def build_features(
    loaded: dict[str, LoadedTask],
    tokenizer: Any,
    max_length: int,
    splits: Sequence[str] = ("train", "validation", "test"),
    teachers: Mapping[str, EmbeddingTeacher] | None = None,
) -> TaskFeatures:
    """Tokenise the splits of all tasks.

    In training every sub-word of a word carries its tag; in evaluation the first one alone, by which a word is scored.

    Args:
        loaded (dict): From `load_tasks`.
        tokenizer: A fast tokenizer.
        max_length (int): Tokens a text is cut to; what is cut is counted in `notes`.
        splits (Sequence[str]): Which of train, validation and test.
        teachers (Mapping): Of feature-extraction tasks whose data has no embeddings.
    """
    features = TaskFeatures(notes=[note for task in loaded.values() for note in task.notes])
    loaded = {name: with_teacher(task, (teachers or {}).get(name), features.notes) for name, task in loaded.items()}
    for names in aligned_groups(loaded) if "train" in splits else []:
        tasks = [loaded[name] for name in names]
        if "train" in tasks[0].splits:
            features.train["+".join(names)] = tokenize(tasks, "train", tokenizer, max_length, features.notes)
        if len(names) > 1:
            features.notes.append(
                f"Tasks {', '.join(map(repr, names))} read the same rows: one item carries their labels."
            )
    for split in ("validation", "test"):
        for name, task in loaded.items() if split in splits else []:
            if split in task.splits:
                rows = tokenize([task], split, tokenizer, max_length, features.notes)
                getattr(features, split)[name] = longest_first(rows)
    for task in loaded.values() if "train" in splits else []:
        for split, rows in duplicate_texts(task.splits).items():
            if rows:
                features.notes.append(f"Task {task.name!r}: {rows} texts of {split} also stand in train.")
    return features


def with_teacher(task: LoadedTask, teacher: EmbeddingTeacher | None, notes: list[str]) -> LoadedTask:
    """The task with its teacher's embeddings as labels, if it is to learn embeddings and has none.

    Raises:
        ValueError: if it needs a teacher and there is none.
    """
    rows = next(iter(task.splits.values()))
    if task.spec["kind"] != FEATURE_EXTRACTION or "label" in rows.column_names:
        return task
    if teacher is None:
        raise ValueError(
            f"Task {task.name!r} (feature-extraction) has no column of embeddings, and there is no teacher to compute "
            "them. Give the data a `label` column of number lists."
        )
    notes.append(f"Task {task.name!r}: its teacher is {teacher.name}.")
    task.splits = {split: teacher_embeddings(rows, teacher.embed) for split, rows in task.splits.items()}
    return task


def aligned_groups(loaded: dict[str, LoadedTask]) -> list[list[str]]:
    """The names of tasks that read the same rows, together; names and groups in order."""
    groups: dict[Any, list[str]] = {}
    for name in sorted(loaded):
        groups.setdefault(loaded[name].source_key, []).append(name)
    return list(groups.values())


def tokenize(tasks: list[LoadedTask], split: str, tokenizer: Any, max_length: int, notes: list[str]) -> Dataset:
    """One split of aligned tasks as features; what did not fit is said in `notes`."""
    rows = {task.name: task.splits[split] for task in tasks}
    specs = {task.name: task.spec for task in tasks}
    features, counts = tokenize_rows(rows, specs, tokenizer, max_length, label_all_subwords=split == "train")
    which = f"{'Task' if len(specs) == 1 else 'Tasks'} {', '.join(map(repr, specs))}"
    if counts["truncated"]:
        words = f", {counts['truncated_words']} tagged words with them" if counts["truncated_words"] else ""
        notes.append(
            f"{which}: {counts['truncated']} of {len(features)} {split} texts are longer than {max_length} tokens and "
            f"are cut there{words}."
        )
    if counts["empty_words"]:
        notes.append(
            f"{which}: the tokenizer makes nothing of {counts['empty_words']} tagged words of {split}: not scored."
        )
    if counts["unlabelled"]:
        notes.append(f"{which}: {counts['unlabelled']} rows of {split} have no label here and are left out.")
    return features


def longest_first(rows: Dataset) -> Dataset:
    """The rows sorted by length, so that evaluation batches hold little padding; equal lengths keep their order."""
    return rows.select(np.argsort(-rows.with_format("numpy")["length"][:], kind="stable"))
