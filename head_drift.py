"""What training did to the tasks it was not to train: their answers before and after it, on the same texts.

A head that keeps its bits answers otherwise all the same once the encoder below it moves. `HeadDrift` remembers what
such tasks of a model answer, and compares. It trains, freezes and saves nothing and draws no random number; each
process asks its own copy of the model, so that all come to the same result.

    drift = HeadDrift(model, collator, ["topic"], features.validation)      # before training
    trainer.train()
    report = drift.compare()
    print(report)

An answer is a text's class, its set of classes, all of its tags, or its number; a number is another one if it moved by
more than a tenth of the standard deviation that the numbers had over the texts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.nn.utils.rnn import pad_sequence

from configuration_multitask import LABEL_PADDING, MULTI_LABEL, REGRESSION, SENTENCE_SIMILARITY, TOKEN_CLASSIFICATION
from data_collator import MultiTaskDataCollator
from task_metrics import answer_form, primary_metric, score_task

TEXTS_A_TASK = 256
"""Rows of each validation set of the run, evenly drawn, that tasks without rows of their own are asked about."""
BATCH_SIZE = 64
MOVED = 0.1
"""Standard deviations by which a number has to move to be another answer."""
EMBEDDING = "sentence_embedding"


@dataclass
class TaskDrift:
    """What became of one task that was not trained.

    Attributes:
        rows (int): Texts it was asked about.
        is_own (bool): Whether they are its own labelled rows; else they are texts of the trained tasks.
        is_equal (bool): Whether its logits are the same, bit for bit.
        changed (float): Share (0-1) of texts with another answer.
        metric (str): Its primary metric; None without labelled rows.
        before (float): Its score before training.
        after (float): Its score after training.
    """

    rows: int
    is_own: bool
    is_equal: bool
    changed: float
    metric: str | None = None
    before: float = math.nan
    after: float = math.nan

    def __str__(self) -> str:
        """One line."""
        texts = f"{self.rows:,} {'of its own validation rows' if self.is_own else 'validation texts of this run'}"
        how = "unchanged, bit for bit" if self.is_equal else f"{self.changed:.2%} of answers changed"
        scores = f"; {self.metric} {self.before:.4f} -> {self.after:.4f}" if self.metric else ""
        return f"{how}, on {texts}{scores}"


@dataclass
class DriftReport:
    """What became of all tasks that were not trained, and of the sentence embedding.

    Attributes:
        tasks (dict): Task -> its drift, sorted by name.
        embedding_cosine (float): Mean cosine of the texts' embeddings to those before.
        embedding_is_equal (bool): Whether they are the same, bit for bit.
    """

    tasks: dict[str, TaskDrift]
    embedding_cosine: float
    embedding_is_equal: bool

    def __str__(self) -> str:
        """A line for each task and one for the embedding."""
        lines = [f"{name:<20} {drift}" for name, drift in self.tasks.items()]
        embedding = "unchanged, bit for bit" if self.embedding_is_equal else f"mean cosine {self.embedding_cosine:.4f}"
        return "\n".join(["Not trained: now and before", *lines, f"{EMBEDDING:<20} {embedding}"])

    def metrics(self) -> dict[str, Any]:
        """The same as flat numbers, for a result file."""
        metrics: dict[str, Any] = {"drift_embedding_cosine": self.embedding_cosine}
        for name, drift in self.tasks.items():
            metrics[f"drift_{name}_rows"] = drift.rows
            metrics[f"drift_{name}_changed"] = drift.changed
            metrics[f"drift_{name}_is_equal"] = drift.is_equal
            if drift.metric:
                metrics[f"drift_{name}_{drift.metric}_before"] = drift.before
                metrics[f"drift_{name}_{drift.metric}_after"] = drift.after
        return metrics

    def refuse_beyond(self, limit: float, output_dir: str) -> None:
        """Raise ValueError if a task answers otherwise on more than a share (0-1) of its texts."""
        name, worst = max(self.tasks.items(), key=lambda entry: entry[1].changed)
        if worst.changed > limit:
            raise ValueError(
                f"A task that is not trained may answer otherwise on at most {limit:g} of its texts (max_head_drift), "
                f"but {name!r} does on {worst.changed:.4f} of {worst.rows:,}. The model is not saved; the checkpoints "
                f"stay in {output_dir}. Freeze what the task stands on (--freeze encoder,projection), train more "
                "gently, or allow more."
            )


class HeadDrift:
    """Remembers what tasks of a model answer, to be compared after training.

    Args:
        model (MultiTaskModel): As it is before training; the same object is asked again.
        collator (MultiTaskDataCollator): Of the run.
        kept (Sequence[str]): Tasks that are not trained. Those without a head are asked about own rows alone.
        texts (Mapping): Trained task -> its validation features; kept tasks without own rows are asked about them.
        own (Mapping): Kept task -> its validation features.
    """

    def __init__(
        self,
        model: Any,
        collator: MultiTaskDataCollator,
        kept: Sequence[str],
        texts: Mapping[str, Dataset],
        own: Mapping[str, Dataset],
    ):
        self.model, self.collator, self.own = model, collator, own
        self.foreign = [name for name in kept if name in model.heads and name not in own]
        self.texts = [drawn(rows) for rows in texts.values()]
        self.before = self.ask()

    def ask(self) -> dict[str, list[Tensor]]:
        """What the model says now: task -> its logits for every text, and the embedding; see `logits_of`."""
        answers = {name: logits_of(self.model, self.collator, rows, [name])[name] for name, rows in self.own.items()}
        parts = [logits_of(self.model, self.collator, rows, self.foreign) for rows in self.texts]
        return answers | {name: [row for part in parts for row in part[name]] for name in (*self.foreign, EMBEDDING)}

    def compare(self) -> DriftReport:
        """Ask the model again, and say what became of its answers."""
        after = self.ask()
        old, new = torch.stack(self.before[EMBEDDING]), torch.stack(after[EMBEDDING])
        tasks = {name: self.task_drift(name, after[name]) for name in sorted([*self.own, *self.foreign])}
        return DriftReport(tasks, float(cosine_similarity(old, new, dim=-1).mean()), torch.equal(old, new))

    def task_drift(self, name: str, after: list[Tensor]) -> TaskDrift:
        """A task's logits before and after, compared, and scored where it has rows of its own."""
        spec, before = self.model.config.tasks[name], self.before[name]
        drift = TaskDrift(
            rows=len(before),
            is_own=name in self.own,
            is_equal=all(map(torch.equal, before, after)),
            changed=changed_share(spec, before, after),
        )
        if drift.is_own:
            labels = labels_of(self.collator, self.own[name], name)
            drift.metric = primary_metric(spec)
            drift.before, drift.after = (score(name, spec, logits, labels) for logits in (before, after))
        return drift


def drawn(rows: Dataset) -> Dataset:
    """At most `TEXTS_A_TASK` rows, evenly spread: validation features are sorted by length."""
    return rows.select(range(0, len(rows), math.ceil(len(rows) / TEXTS_A_TASK)))


def batches_of(collator: MultiTaskDataCollator, rows: Dataset) -> Iterator[dict[str, Any]]:
    """The rows in batches, in order, without a data loader, which would draw a random number."""
    for start in range(0, len(rows), BATCH_SIZE):
        yield collator(rows.select(range(start, min(start + BATCH_SIZE, len(rows)))).to_list())


@torch.no_grad()
def logits_of(
    model: Any, collator: MultiTaskDataCollator, rows: Dataset, tasks: Sequence[str]
) -> dict[str, list[Tensor]]:
    """Task -> float32 logits for each row, on the CPU: (classes,), (tokens, classes) without padding, or a cosine ().

    Beside the tasks stands `sentence_embedding` -> (embedding_size,). It does not go through `forward`, which a Trainer
    has prepared for mixed precision: a reader of the saved folder has none.
    """
    model.eval()
    found: dict[str, list[Tensor]] = {name: [] for name in (*tasks, EMBEDDING)}
    for batch in batches_of(collator, rows):
        batch.pop("labels", None)
        output = model.run_tasks(**{name: value.to(model.device) for name, value in batch.items()}, tasks=tasks)
        found[EMBEDDING] += output.sentence_embedding.float().cpu()
        for name in tasks:
            found[name] += unpadded(model.config.tasks[name], output.logits[name].float().cpu(), batch)
    return found


def unpadded(spec: dict[str, Any], values: Tensor, batch: dict[str, Tensor]) -> list[Tensor]:
    """A batch's logits or labels row by row; those of tags without the tokens that fill up the batch."""
    if spec["kind"] != TOKEN_CLASSIFICATION:
        return list(values)
    return [row[mask.bool()] for row, mask in zip(values, batch["attention_mask"], strict=True)]


def labels_of(collator: MultiTaskDataCollator, rows: Dataset, name: str) -> list[Tensor]:
    """A task's label for each row; those of tags without padding."""
    spec = collator.tasks[name]
    return [row for batch in batches_of(collator, rows) for row in unpadded(spec, batch["labels"][name], batch)]


def changed_share(spec: dict[str, Any], before: list[Tensor], after: list[Tensor]) -> float:
    """Share (0-1) of texts with another answer; logits as `logits_of` gives them."""
    form = answer_form(spec)
    if form in (REGRESSION, SENTENCE_SIMILARITY):
        old, new = torch.stack(before).flatten(), torch.stack(after).flatten()
        return float(((new - old).abs() > MOVED * old.std(correction=0)).double().mean())
    pairs = zip(before, after, strict=True)
    if form == MULTI_LABEL:
        return sum(not torch.equal(old > 0, new > 0) for old, new in pairs) / len(before)
    return sum(not torch.equal(old.argmax(-1), new.argmax(-1)) for old, new in pairs) / len(before)


def score(name: str, spec: dict[str, Any], logits: list[Tensor], labels: list[Tensor]) -> float:
    """The primary metric of a task on its own rows."""
    if spec["kind"] == TOKEN_CLASSIFICATION:
        predicted, true = (
            pad_sequence(rows, batch_first=True, padding_value=LABEL_PADDING)
            for rows in ([row.argmax(-1) for row in logits], labels)
        )
    else:
        predicted, true = torch.stack(logits), torch.stack(labels)
    return score_task(name, spec, predicted.numpy(), true.numpy())[primary_metric(spec)]
