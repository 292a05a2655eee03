"""The demo's batch tab: an uploaded CSV or TSV file, answered by the server's own batcher, row by row in its order.

Rows, columns, bad rows and files are `batch_prediction`'s and `table_files`', as in `predict_hf.py`. What is added here
is what a server needs: bounds on rows and texts, the shared queue in place of a model of one's own, and a way to stop.

    table = open_upload(Path("upload.csv"), "reviews.csv")
    answered = answer_table(model, table, "text", None, folder)     # in a thread; model: a ServedModel
"""

import asyncio
import csv
import json
import shutil
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from batch_prediction import ERROR, BatchPrediction, Options, answer_columns
from handler import MAX_CHARACTERS
from pipeline_multitask import Text
from table_files import SourceTable, Window, open_table

MAX_ROWS = 10_000
SHOWN_ROWS = 5
SHOWN_CHARACTERS = 120
PREFIX = "predicted_"
"""In front of our columns, where a table has columns of their names."""

Ask = Callable[[list[Text], list[str]], Coroutine[Any, Any, list[dict[str, Any]]]]
"""Texts or pairs, and tasks -> an answer each."""


class Stopped(Exception):
    """Nobody waits for the answers any more."""


class ServedModel:
    """What `BatchPrediction` takes for a model: its texts go to a server's queue, a few at a time.

    Args:
        config (MultiTaskConfig): Of the model that is served.
        ask (Ask): Runs in the server's event loop.
        loop (AbstractEventLoop): That loop.
    """

    def __init__(self, config: Any, ask: Ask, loop: asyncio.AbstractEventLoop) -> None:
        self.config, self.ask, self.loop = config, ask, loop
        self.answered = 0
        """Texts so far."""
        self.stopped = False

    def predict(
        self, items: list[Text], tokenizer: Any, tasks: list[str], batch_size: int, aggregation_strategy: str
    ) -> list[dict[str, Any]]:
        """Answers in the order of the texts, which are asked in order of their length; see `MultiTaskModel.predict`.

        Raises:
            Stopped: if `stopped` was set meanwhile.
        """
        order = sorted(range(len(items)), key=lambda place: -characters(items[place]))
        answers: dict[int, dict[str, Any]] = {}
        for start in range(0, len(order), batch_size):
            if self.stopped:
                raise Stopped
            places = order[start : start + batch_size]
            asked = self.ask([items[place] for place in places], tasks)
            found = asyncio.run_coroutine_threadsafe(asked, self.loop).result()
            answers |= zip(places, found, strict=True)
            self.answered += len(places)
        return [answers[place] for place in range(len(items))]


def characters(text: Text) -> int:
    """Of a text, or of both of a pair."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


class Answered(NamedTuple):
    """A table with its answers.

    Attributes:
        path (Path): Of the same format.
        rows (int): As many as came.
        bad_rows (int): Those without answers.
        reasons (str): Column that says why a row has none.
        columns (list[str]): To be shown: the table's own, why there are no answers, the answers.
        first_rows (list[list[str]]): The first rows of these, in short.
    """

    path: Path
    rows: int
    bad_rows: int
    reasons: str
    columns: list[str]
    first_rows: list[list[str]]


def open_upload(path: Path, name: str) -> SourceTable:
    """An uploaded table, under the name that its user knows.

    Raises:
        ValueError: for what is no CSV or TSV file with a header, and for too many rows.
    """
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise ValueError(f"A CSV or TSV file is needed (.csv, .tsv); {name} is none. predict_hf.py reads more formats.")
    try:
        table = replace(open_table(str(path)), name=name)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{str(error).replace(str(path), name)} Save the table as CSV in UTF-8.") from None
    if len(table.columns) == 1 and ";" in table.columns[0]:
        raise ValueError(f"Columns must be separated by commas; {name} has semicolons. Save it with commas, or as TSV.")
    if not 0 < table.rows <= MAX_ROWS:
        raise ValueError(
            f"A table may have 1 to {MAX_ROWS:,} rows here; {name} has {table.rows:,}. "
            "predict_hf.py answers tables of any length."
        )
    return table


def likely_column(columns: list[str]) -> str | None:
    """The column that texts will stand in: `text`, or the only one; None if that cannot be said."""
    return "text" if "text" in columns else columns[0] if len(columns) == 1 else None


def check_column(column: str | None, table: SourceTable, role: str) -> str:
    """A column of the table.

    Raises:
        ValueError: if none is named, or one that is not there.
    """
    if column is None or column not in table.columns:
        found = f"{column!r} is none of" if column else "none is chosen, and there are"
        raise ValueError(f"A column with {role} is needed; {found} {', '.join(table.columns)}. Choose one.")
    return column


def bounded(windows: Iterator[Window], columns: list[str]) -> Iterator[Window]:
    """The windows of a table, with what is too long for a request marked as a bad row."""
    for window in windows:
        problems = [
            problem or too_long(row, columns) for row, problem in zip(window.rows, window.problems, strict=True)
        ]
        yield replace(window, problems=problems)


def too_long(row: dict[str, Any], columns: list[str]) -> str | None:
    """Why a row's texts are too long; None if they are not."""
    length = max(len(row[column]) for column in columns)
    return f"a text may have {MAX_CHARACTERS:,} characters; it has {length:,}" if length > MAX_CHARACTERS else None


def answer_table(
    model: ServedModel, table: SourceTable, column: str, pair_column: str | None, folder: Path, batch_size: int
) -> Answered:
    """Answer every row of a table and write it, with columns added, to `NAME_answers` in a folder.

    Args:
        model (ServedModel): What is asked.
        table (SourceTable): From `open_upload`.
        column (str): With the texts.
        pair_column (str): With the second texts; None for none.
        folder (Path): Empty; deleted if the answers do not come to an end.
        batch_size (int): Texts that go into the queue together.

    Raises:
        ValueError: if columns of ours are there under both names.
        Stopped: see `ServedModel`.
    """
    name = Path(table.name)
    target = folder / f"{name.stem}_answers{name.suffix.lower()}"
    ours = {ERROR, *(added for task, spec in model.config.tasks.items() for added in answer_columns(task, spec))}
    options = Options(column, pair_column, prefix=PREFIX if ours & set(table.columns) else "", batch_size=batch_size)
    columns = [column, *([pair_column] if pair_column else [])]
    source = replace(table, read=lambda rows: bounded(table.read(rows), columns))
    try:
        run = BatchPrediction(model, None, source, target, options)
        run.predict(show=False)
        bad_rows = run.join()
    except BaseException:
        shutil.rmtree(folder)
        raise
    reasons = run.schema.names[-1]
    *answers, _ = run.schema.names
    shown = [*table.columns, *([reasons] if bad_rows else []), *answers]
    rows = next(open_table(str(target)).read(SHOWN_ROWS)).rows
    first_rows = [[(answer_in_short if name in answers else shorten)(row[name]) for name in shown] for row in rows]
    return Answered(target, table.rows, bad_rows, reasons, shown, first_rows)


def shorten(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def answer_in_short(field: str) -> str:
    """A field of an answer, which may be a number or a list in JSON: three decimals, words with their labels."""
    try:
        value = json.loads(field)
    except json.JSONDecodeError:
        return shorten(field)
    values = value if isinstance(value, list) else [value]
    return shorten(", ".join(map(value_in_short, values)))


def value_in_short(value: Any) -> str:
    """A number, a label, or a word with its label."""
    if isinstance(value, dict):
        return f"{value['word']} {value.get('entity_group') or value['entity']}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
