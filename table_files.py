"""Tables read and written in windows of rows: CSV, TSV, JSON lines, Parquet and data sets of the Hub.

What comes in goes out unchanged, in the same order, with columns added; a row that cannot be read is kept and says why.
Memory holds one window, however long the table is. Training data is read elsewhere (`task_sources`): there a bad row
ends the run.

    table = open_table("reviews.csv")
    for window in table.windows(4096):
        write_part(path, "csv", window, {"topic": [...]})
"""

import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset

from configuration_multitask import nearest_name

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
"""File ending -> format."""
DELIMITERS = {"csv": ",", "tsv": "\t"}
LINE = "line"
"""The one column of a line of JSON that is no object."""


@dataclass
class Window:
    """Some rows that stand behind one another in a table.

    Attributes:
        index (int): Which window of the table it is, from 0.
        rows (list[dict]): Column -> value; CSV has texts alone.
        problems (list[str | None]): Why a row could not be read as it should be; None where it could.
        arrow (Table): The same rows with their exact types, where the source has types.
    """

    index: int
    rows: list[dict[str, Any]]
    problems: list[str | None]
    arrow: pa.Table | None = None


@dataclass
class SourceTable:
    """A table that can be read from its start any number of times.

    Attributes:
        name (str): As the user gave it.
        format (str): One of `FORMATS`' values; `parquet` for a data set, which has its types.
        columns (list[str]): Its columns; of JSON lines, whose rows may differ, all that occur.
        read (Callable): Rows a window -> windows in order; an empty table is one empty window.
        rows (int): How many rows there are.
        identity (dict): What tells this table from another one, or from itself after a change.
        schema (Schema): The types, where it has them.
    """

    name: str
    format: str
    columns: list[str]
    read: Callable[[int], Iterator[Window]]
    rows: int
    identity: dict[str, Any]
    schema: pa.Schema | None = None

    def check_column(self, argument: str, column: str) -> None:
        """Raise ValueError, with the columns there are, if a column is not one of them."""
        if column not in self.columns:
            raise ValueError(
                f"{argument} must be a column of {self.name}; {column!r} is none of {', '.join(self.columns)}."
                f"{nearest_name(column, self.columns)}"
            )


def format_of(path: Path) -> str:
    """The format of a file by its ending.

    Raises:
        ValueError: for another ending, with those that are known.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"A table's format is known by its ending ({', '.join(FORMATS)}); {path} has none of them.")
    return FORMATS[path.suffix.lower()]


def open_table(name: str, config: str | None = None, split: str | None = None, offline: bool = False) -> SourceTable:
    """The table in a local file, or else the data set of that name on the Hub.

    Args:
        name (str): File (by its ending) or Hub id.
        config (str): Of a Hub data set.
        split (str): Of a Hub data set.
        offline (bool): Never ask the Hub.

    Raises:
        ValueError: if there is no such file, its format is unknown, it has no header, or a data set's split is missing.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        if path.suffix.lower() in FORMATS or offline:
            raise ValueError(f"There is no file {name!r}. Give a CSV, TSV, JSONL or Parquet file, or a Hub id.")
        return hub_table(name, config, split)
    if config or split:
        raise ValueError(f"--config and --split are of a data set on the Hub; {name} is a file. Leave them away.")
    facts = path.stat()
    identity = {"file": path.name, "bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}
    kind = format_of(path)
    if kind == "parquet":
        file = pq.ParquetFile(path)
        return SourceTable(
            name,
            kind,
            file.schema_arrow.names,
            lambda rows: arrow_windows(pq.ParquetFile(path).iter_batches(), file.schema_arrow, rows),
            file.metadata.num_rows,
            identity,
            file.schema_arrow,
        )
    if kind == "jsonl":
        keys: dict[str, None] = {}
        count = sum(1 for row, _ in json_rows(path) if keys.update(dict.fromkeys(row)) is None)
        return SourceTable(name, kind, list(keys), row_windows(lambda: json_rows(path)), count, identity)
    columns = read_header(path, kind)
    count = sum(1 for _ in csv_rows(path, kind, columns))
    return SourceTable(name, kind, columns, row_windows(lambda: csv_rows(path, kind, columns)), count, identity)


def hub_table(name: str, config: str | None, split: str | None) -> SourceTable:
    """A data set of the Hub; its rows lie in memory-mapped files of the cache."""
    if split is None:
        raise ValueError(f"{name!r} is no file, and a data set on the Hub needs --split (train, test, ...).")
    dataset = load_dataset(name, config, split=split)
    assert isinstance(dataset, Dataset)
    arrow = dataset.with_format("arrow")
    schema = dataset.features.arrow_schema
    batches = lambda rows: (arrow[start : start + rows] for start in range(0, len(dataset), rows))  # noqa: E731
    return SourceTable(
        f"{name} ({split})",
        "parquet",
        dataset.column_names,
        lambda rows: arrow_windows(batches(rows), schema, rows),
        len(dataset),
        {"dataset": name, "config": config, "split": split, "fingerprint": dataset._fingerprint},
        schema,
    )


Row = tuple[dict[str, Any], str | None]
"""A row and why it could not be read as it should be."""


def row_windows(rows: Callable[[], Iterator[Row]]) -> Callable[[int], Iterator[Window]]:
    """`SourceTable.read` of a table that is read row by row."""

    def read(size: int) -> Iterator[Window]:
        source = rows()
        window = list(itertools.islice(source, size))
        for index in itertools.count():
            yield Window(index, [row for row, _ in window], [problem for _, problem in window])
            window = list(itertools.islice(source, size))
            if not window:
                return

    return read


def arrow_windows(batches: Iterable[Any], schema: pa.Schema, size: int) -> Iterator[Window]:
    """Windows of exactly `size` rows (the last one may be shorter, the only one empty) from batches of any size."""
    rest, index = schema.empty_table(), 0
    for batch in batches:
        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        rest = pa.concat_tables([rest, table.cast(schema)])
        while len(rest) >= size:
            yield arrow_window(index, rest.slice(0, size))
            rest, index = rest.slice(size), index + 1
    if len(rest) or not index:
        yield arrow_window(index, rest)


def arrow_window(index: int, table: pa.Table) -> Window:
    """A window of rows that have types; none of them is unreadable."""
    return Window(index, table.to_pylist(), [None] * len(table), table)


@contextmanager
def open_text(path: Path, mode: str = "r") -> Iterator[IO[str]]:
    """A file of text in UTF-8; bytes that are none pass through as they are (as lone surrogates)."""
    with path.open(
        mode, encoding="utf-8-sig" if mode == "r" else "utf-8", errors="surrogateescape", newline=""
    ) as file:
        yield file


def read_header(path: Path, kind: str) -> list[str]:
    """The columns of a CSV or TSV file.

    Raises:
        ValueError: if it is empty, or a column stands twice.
    """
    with open_text(path) as file:
        header = next(csv.reader(file, delimiter=DELIMITERS[kind]), [])
    if not header or len(set(header)) < len(header):
        found = f"stands twice in {', '.join(header)}" if header else "is missing"
        raise ValueError(f"The first line of {path} must name its columns, each once; a name {found}.")
    return header


def csv_rows(path: Path, kind: str, columns: list[str]) -> Iterator[Row]:
    """Rows of a CSV or TSV file below its header; one with other fields than the header is kept, and says so."""
    csv.field_size_limit(sys.maxsize)
    with open_text(path) as file:
        for fields in itertools.islice(csv.reader(file, delimiter=DELIMITERS[kind]), 1, None):
            row = dict(itertools.zip_longest(columns, fields[: len(columns)], fillvalue=""))
            problem = None
            if len(fields) != len(columns):
                further = f"; beyond them: {json.dumps(fields[len(columns) :])}" if len(fields) > len(columns) else ""
                problem = f"the row has {len(fields)} fields, the header {len(columns)}{further}"
            yield row, problem


def json_rows(path: Path) -> Iterator[Row]:
    """Objects of a JSON-lines file; a line that is none is kept as text. Empty lines are no rows."""
    with open_text(path) as file:
        for line in file:
            line = line.rstrip("\r\n")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                yield {LINE: line}, f"the line is not JSON: {error}"
                continue
            yield (row, None) if isinstance(row, dict) else ({LINE: line}, "the line is JSON, but no object")


# ---------------------------------------------------------------------------------------------------------------------
# Writing: a part a window, the parts joined in their order


def write_part(
    path: Path, kind: str, columns: list[str], window: Window, added: dict[str, list[Any]], schema: pa.Schema
) -> None:
    """Write the rows of a window with the added columns, without a header.

    Args:
        path (Path): The file.
        kind (str): Its format.
        columns (list[str]): The columns of the rows.
        window (Window): The rows.
        added (dict): Column -> a value a row.
        schema (Schema): Types of the added columns.
    """
    if kind == "parquet":
        table = window.arrow
        if table is None:
            table = pa.Table.from_pylist(clean_texts(window.rows), pa.schema([(name, pa.string()) for name in columns]))
        for name, values in added.items():
            table = table.append_column(schema.field(name), pa.array(values, schema.field(name).type))
        pq.write_table(table, path)
        return
    whole_rows = ({**row, **{name: values[i] for name, values in added.items()}} for i, row in enumerate(window.rows))
    with open_text(path, "w") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(row, default=str) + "\n" for row in whole_rows)
        else:
            writer = csv.writer(file, delimiter=DELIMITERS[kind], lineterminator="\n")
            writer.writerows([as_field(value) for value in row.values()] for row in whole_rows)


def clean_texts(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows of text as Parquet can hold them: bytes that are not UTF-8 become the replacement character."""
    return [{name: as_utf8(text) for name, text in row.items()} for row in rows]


def as_utf8(text: str) -> str:
    """A text without lone surrogates."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def as_field(value: Any) -> str:
    """A value as a field of CSV: texts as they are, nothing for None, all else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def join_parts(parts: list[Path], target: Path, kind: str, columns: list[str]) -> None:
    """Join parts, in their order, to a file that is complete as soon as it is there.

    Args:
        parts (list[Path]): From `write_part`, all of one format.
        target (Path): The file; replaced if it is there.
        kind (str): Its format.
        columns (list[str]): All columns, the header of CSV and TSV.
    """
    unfinished = target.with_name(f".{target.name}.unfinished")
    if kind == "parquet":
        with pq.ParquetWriter(unfinished, pq.read_schema(parts[0])) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part))
    else:
        with open_text(unfinished, "w") as file:
            if kind in DELIMITERS:
                csv.writer(file, delimiter=DELIMITERS[kind], lineterminator="\n").writerow(columns)
            for part in parts:
                with open_text(part) as source:
                    while block := source.read(1 << 20):
                        file.write(block)
    unfinished.replace(target)
