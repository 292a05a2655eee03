"""Tables that are read in windows and written again: nothing lost, nothing changed, bad rows kept."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from table_files import SourceTable, join_parts, open_table, write_part

NOTHING = pa.schema([])
ROWS = [
    {"id": "007", "text": 'He said "no",\nthen left.', "note": ""},
    {"id": "8", "text": "Übung 漢字 \t tab", "note": "NA"},
    {"id": "1e3", "text": "", "note": "null"},
    {"id": "", "text": "last", "note": " spaces "},
    {"id": "5", "text": "five", "note": "x"},
]


def write_csv(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_all(table: SourceTable, size: int) -> list[dict[str, Any]]:
    return [row for window in table.read(size) for row in window.rows]


def copy(table: SourceTable, target: Path, size: int, kind: str) -> None:
    """The table in windows to parts, and those to a file."""
    parts = []
    for window in table.read(size):
        parts.append(target.with_name(f"part{window.index}"))
        write_part(parts[-1], kind, table.columns, window, {}, NOTHING)
    join_parts(parts, target, kind, table.columns)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(("ending", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_every_field_of_a_csv_file_comes_out_as_it_went_in(
    tmp_path: Path, ending: str, delimiter: str, size: int
) -> None:
    table = open_table(str(write_csv(tmp_path / f"in.{ending}", ROWS, delimiter)))
    assert (table.columns, table.rows) == (["id", "text", "note"], 5)
    copy(table, tmp_path / f"out.{ending}", size, ending)
    assert read_all(open_table(str(tmp_path / f"out.{ending}")), 3) == ROWS


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_window_of_parquet_keeps_types_that_python_would_round(tmp_path: Path, size: int) -> None:
    types = pa.schema([("when", pa.timestamp("ns")), ("small", pa.int8()), ("text", pa.large_string())])
    rows = pa.table({"when": [1, 2, None, 4], "small": [1, -1, 0, None], "text": ["a", None, "c", "d"]}, schema=types)
    pq.write_table(rows, tmp_path / "in.parquet", row_group_size=3)
    copy(open_table(str(tmp_path / "in.parquet")), tmp_path / "out.parquet", size, "parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(rows)


def test_a_csv_file_becomes_texts_in_parquet(tmp_path: Path) -> None:
    copy(open_table(str(write_csv(tmp_path / "in.csv", ROWS))), tmp_path / "out.parquet", 2, "parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == ROWS


def test_rows_of_json_lines_keep_keys_of_their_own(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": 1}, {"text": "b", "deep": {"x": [1, None]}}, {}, {"n": 1e-3}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    table = open_table(str(tmp_path / "in.jsonl"))
    assert (table.columns, table.rows) == (["text", "n", "deep"], 4)
    copy(table, tmp_path / "out.jsonl", 3, "jsonl")
    assert read_all(open_table(str(tmp_path / "out.jsonl")), 3) == rows


def test_a_dataset_is_read_like_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "reviews"
    folder.mkdir()
    Dataset.from_list(ROWS).to_parquet(folder / "train.parquet")
    table = open_table(str(folder), split="train")
    assert (table.columns, table.rows, table.format) == (["id", "text", "note"], 5, "parquet")
    assert read_all(table, 2) == ROWS


def test_bad_lines_are_kept_and_say_why(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b"id,text\n1,ok\n2\n3,a,b,c\n4,\xff\n")
    windows = list(open_table(str(tmp_path / "in.csv")).read(10))
    assert [row["id"] for row in windows[0].rows] == ["1", "2", "3", "4"]
    assert windows[0].problems == [
        None,
        "the row has 1 fields, the header 2",
        'the row has 4 fields, the header 2; beyond them: ["b", "c"]',
        None,
    ]
    assert windows[0].rows[3]["text"].encode("utf-8", "surrogateescape") == b"\xff"
    (tmp_path / "in.jsonl").write_text('{"text": "ok"}\n{broken\n[1]\n')
    [window] = open_table(str(tmp_path / "in.jsonl")).read(10)
    assert window.rows == [{"text": "ok"}, {"line": "{broken"}, {"line": "[1]"}]
    assert [bool(problem) for problem in window.problems] == [False, True, True]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_an_empty_table_is_one_empty_window(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"in.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    else:
        path.write_text("text\n" if ending == "csv" else "")
    table = open_table(str(path))
    assert [window.rows for window in table.read(4)] == [[]]
    copy(table, tmp_path / f"out.{ending}", 4, ending)
    assert open_table(str(tmp_path / f"out.{ending}")).columns == table.columns


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.csv", None, "There is no file"),
        ("table.xlsx", "x", r"known by its ending \(.csv, .tsv, .jsonl, .parquet\)"),
        ("empty.csv", "", "The first line of .* must name its columns, each once; a name is missing"),
        ("doubled.csv", "a,b,a\n", "stands twice in a, b, a"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        open_table(str(tmp_path / name))


def test_a_name_that_is_no_file_needs_a_split() -> None:
    with pytest.raises(ValueError, match="needs --split"):
        open_table("owner/name")
    with pytest.raises(ValueError, match="There is no file"):
        open_table("owner/name", split="test", offline=True)


def test_an_unknown_column_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    table = open_table(str(write_csv(tmp_path / "in.csv", ROWS)))
    with pytest.raises(ValueError, match=r"'txt' is none of id, text, note\. Did you mean 'text'\?"):
        table.check_column("--text", "txt")
