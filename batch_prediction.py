"""Every task's answers for every row of a table, in its order, whatever happens in between.

The table is cut into windows of rows. Each is predicted by itself (in batches of like length) and written as a part of
its own, which is there only as a whole; several processes take turns with the windows; at the end the parts are joined.
A run that was killed goes on behind the parts that are there. Reading and writing files is `table_files`.

    run = BatchPrediction(model, tokenizer, open_table("reviews.csv"), Path("answers.csv"), Options(text="text"))
    run.predict(rank=0, world_size=1)
    run.join()
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub.utils import tqdm

from configuration_multitask import (
    FEATURE_EXTRACTION,
    MULTI_LABEL,
    REGRESSION,
    SENTENCE_SIMILARITY,
    TOKEN_CLASSIFICATION,
    has_entities,
)
from table_files import SourceTable, Window, format_of, join_parts, write_part

ERROR = "prediction_error"
"""Column that says why a row has no answers."""
EMBEDDING = "sentence_embedding"
PLAN_FILE = "plan.json"
WEIGHTS = (".safetensors", ".onnx", ".data", ".bin", ".xml")
"""Endings of the files that hold a model's or a graph's numbers."""


@dataclass(frozen=True)
class Options:
    """What is asked of every row.

    Attributes:
        text (str): Column with the text.
        text_pair (str): Column with the second text, for tasks that compare or read two.
        tasks (list[str]): Tasks to answer; None for all that can be.
        prefix (str): In front of the name of every column that is added.
        embeddings (bool): Whether `sentence_embedding` is one of them.
        batch_size (int): Texts a pass of the model.
        window (int): Rows a window, sorted by length inside; a killed run loses at most one a process.
        aggregation_strategy (str): How sub-words make entities; see `MultiTaskModel.predict`.
        bf16 (bool): Whether to multiply in bfloat16; None: where the hardware has it.
    """

    text: str = "text"
    text_pair: str | None = None
    tasks: list[str] | None = None
    prefix: str = ""
    embeddings: bool = False
    batch_size: int = 32
    window: int = 4096
    aggregation_strategy: str = "first"
    bf16: bool | None = None


def answer_columns(name: str, spec: dict[str, Any]) -> dict[str, pa.DataType]:
    """The columns of a task's answer and their types: `topic` and `topic_score`, or one with a list of entities."""
    if spec["kind"] == TOKEN_CLASSIFICATION:
        group = "entity_group" if has_entities(spec["labels"]) else "entity"
        fields = {
            group: pa.string(),
            "score": pa.float32(),
            "word": pa.string(),
            "start": pa.int64(),
            "end": pa.int64(),
        }
        return {name: pa.list_(pa.struct(fields.items()))}
    if spec["kind"] == SENTENCE_SIMILARITY or spec.get("problem_type") == REGRESSION:
        return {name: pa.float32()}
    if spec.get("problem_type") == MULTI_LABEL:
        return {name: pa.list_(pa.string()), f"{name}_score": pa.list_(pa.float32())}
    return {name: pa.string(), f"{name}_score": pa.float32()}


def answer_values(spec: dict[str, Any], answer: Any) -> list[Any]:
    """The values of the columns of `answer_columns`, from what `predict` answers."""
    if spec["kind"] == TOKEN_CLASSIFICATION:
        group = "entity_group" if has_entities(spec["labels"]) else "entity"
        return [[{key: span[key] for key in (group, "score", "word", "start", "end")} for span in answer]]
    if "labels" in answer:
        return [answer["labels"], [answer["scores"][label] for label in answer["labels"]]]
    return [answer["label"], answer["score"]] if "label" in answer else [answer["score"]]


def problem_of(text: Any) -> str | None:
    """Why a value is no text that can be answered; None if it is one."""
    if text is None or (isinstance(text, str) and not text.strip()):
        return "there is no text"
    if not isinstance(text, str):
        return f"the text is no text, but {json.dumps(text, default=str)[:40]}"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "the text is not UTF-8"
    return None


class BatchPrediction:
    """One table's predictions, on their way to one file.

    Args:
        model: Anything with `predict` as `MultiTaskModel` has it, and its `config`.
        tokenizer: The tokenizer beside it.
        table (SourceTable): The rows.
        target (Path): File to write, CSV, TSV, JSONL or Parquet by its ending.
        options (Options): What is asked.
        identity (dict): What tells the model from another one; stands in the plan.
        overwrite (bool): Whether `target` may be replaced, and the parts of another plan deleted.

    Raises:
        ValueError: for a column or task that is not there, columns that would stand twice, a target that is there, or
            parts of another plan.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        table: SourceTable,
        target: Path,
        options: Options,
        identity: dict[str, Any] | None = None,
        overwrite: bool = False,
    ):
        self.model, self.tokenizer, self.table, self.target, self.options = model, tokenizer, table, target, options
        self.kind = format_of(target)
        self.parts = target.with_name(f"{target.name}.parts")
        self.names = self.answerable()
        self.schema = self.added_columns()
        self.check(overwrite)
        plan = {"table": table.identity, "options": asdict(options), "tasks": self.names, "model": identity or {}}
        self.plan = json.dumps(plan, indent=2, sort_keys=True)
        self.take_up(overwrite)

    def answerable(self) -> list[str]:
        """The tasks that are asked: those named, else all that rows of this kind can be asked.

        Raises:
            ValueError: for an unknown task, or one that needs a second text where there is none.
        """
        tasks = self.model.config.tasks
        answered = {name: spec for name, spec in tasks.items() if spec["kind"] != FEATURE_EXTRACTION}
        for_pairs = [n for n, s in answered.items() if s["kind"] == SENTENCE_SIMILARITY or s.get("text_pair")]
        names = self.options.tasks
        if names is None:
            return [name for name in answered if self.options.text_pair or name not in for_pairs]
        for name in names:
            if name not in answered:
                raise ValueError(f"There is no task {name!r} to answer; the model has {', '.join(answered) or 'none'}.")
            if name in for_pairs and not self.options.text_pair:
                raise ValueError(f"Task {name!r} answers pairs of texts: name the second text's column (--text_pair).")
        return list(names)

    def added_columns(self) -> pa.Schema:
        """The columns that stand behind the table's own, with their types."""
        columns: dict[str, pa.DataType] = {}
        for name in self.names:
            columns |= answer_columns(name, self.model.config.tasks[name])
        if self.options.embeddings:
            columns[EMBEDDING] = pa.list_(pa.float32())
        columns[ERROR] = pa.string()
        return pa.schema([(self.options.prefix + name, kind) for name, kind in columns.items()])

    def check(self, overwrite: bool) -> None:
        """Refuse what would fail later, or lose something."""
        self.table.check_column("--text", self.options.text)
        if self.options.text_pair:
            self.table.check_column("--text_pair", self.options.text_pair)
        doubled = sorted(set(self.table.columns) & set(self.schema.names))
        if doubled:
            raise ValueError(
                f"Answers stand in columns of their own, but {self.table.name} has {', '.join(doubled)} already. Put "
                "something in front of ours: --prefix predicted_"
            )
        if self.table.format == "jsonl" and self.kind != "jsonl":
            raise ValueError(
                f"Rows of JSON lines may each have other keys, so they are written as JSON lines; {self.target} is "
                f"{self.kind}. Name a .jsonl file."
            )
        if self.target.exists() and not overwrite:
            raise ValueError(f"{self.target} is there already. Name another file, or replace it: --overwrite_output.")

    def take_up(self, overwrite: bool) -> None:
        """Make the folder of parts, or go on with the one that is there if its plan is this one."""
        self.parts.mkdir(parents=True, exist_ok=True)
        plan = self.parts / PLAN_FILE
        there = plan.read_text(encoding="utf-8") if plan.exists() else None
        if there is not None and there != self.plan:
            if not overwrite:
                raise ValueError(
                    f"{self.parts} holds answers of another model, table or other options, so that they cannot be gone "
                    "on with. Ask as before, or begin anew: --overwrite_output."
                )
            shutil.rmtree(self.parts)
            self.parts.mkdir()
        unfinished = plan.with_name(f"{plan.name}.unfinished")
        unfinished.write_text(self.plan, encoding="utf-8")
        unfinished.replace(plan)

    def part(self, index: int) -> Path:
        """The file with the answers of a window."""
        return self.parts / f"{index:08d}.{self.kind}"

    def predict(self, rank: int = 0, world_size: int = 1, show: bool = True) -> None:
        """Answer the windows of one of several processes; those whose part is there are passed over.

        Args:
            rank (int): Which process this is.
            world_size (int): How many there are.
            show (bool): Whether to show a bar with the rows done, of all processes, and their rate.
        """
        with tqdm(total=self.table.rows, unit=" rows", smoothing=0.1, disable=not show) as bar:
            for window in self.table.read(self.options.window):
                if window.index % world_size == rank and not self.part(window.index).exists():
                    self.write(window)
                bar.update(len(window.rows))

    def write(self, window: Window) -> None:
        """Answer a window and write its part, whose name is there only when all of it is."""
        part, answers = self.part(window.index), self.answers(window)
        bad_rows = sum(problem is not None for problem in answers[self.schema.names[-1]])
        part.with_suffix(".bad_rows").write_text(str(bad_rows), encoding="utf-8")
        unfinished = part.with_name(f"{part.name}.unfinished")
        write_part(unfinished, self.kind, self.table.columns, window, answers, self.schema)
        unfinished.replace(part)

    def answers(self, window: Window) -> dict[str, list[Any]]:
        """The added columns of a window."""
        options = self.options
        problems, items = list(window.problems), []
        for index, row in enumerate(window.rows):
            texts = [row.get(options.text), *([row.get(options.text_pair)] if options.text_pair else [])]
            problems[index] = problems[index] or next(filter(None, map(problem_of, texts)), None)
            if problems[index] is None:
                items.append(tuple(texts) if options.text_pair else texts[0])
        found = iter(self.ask(items))
        columns: dict[str, list[Any]] = {name: [] for name in self.schema.names}
        for problem in problems:
            values = [None] * (len(columns) - 1) if problem else list(self.values(next(found)))
            for name, value in zip(columns, [*values, problem], strict=True):
                columns[name].append(value)
        return columns

    def ask(self, items: list[Any]) -> list[dict[str, Any]]:
        """What the model answers."""
        options = {"batch_size": self.options.batch_size, "aggregation_strategy": self.options.aggregation_strategy}
        if self.options.bf16 is not None:
            options["bf16"] = self.options.bf16
        return self.model.predict(items, self.tokenizer, tasks=self.names, **options)

    def values(self, answer: dict[str, Any]) -> Iterator[Any]:
        """The values of one row's added columns, without that of its problem."""
        for name in self.names:
            yield from answer_values(self.model.config.tasks[name], answer[name])
        if self.options.embeddings:
            yield answer[EMBEDDING].tolist()

    def join(self) -> int:
        """Join the parts to the file and delete them, once all processes have answered.

        Returns:
            How many rows have no answers.
        """
        windows = max(1, -(-self.table.rows // self.options.window))
        parts = [self.part(index) for index in range(windows)]
        bad_rows = sum(int(part.with_suffix(".bad_rows").read_text(encoding="utf-8")) for part in parts)
        join_parts(parts, self.target, self.kind, [*self.table.columns, *self.schema.names])
        shutil.rmtree(self.parts)
        return bad_rows


def fingerprint(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of a model folder's weights, graph and configuration, so that another model is told apart."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in WEIGHTS or path.name in ("config.json", "tokenizer.json"):
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
