"""Answers for a whole table: the rows of one text at a time, whatever is cut, killed or shared between processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import predict_hf
from batch_prediction import BatchPrediction, Options, fingerprint
from prediction_engine import open_engine
from table_files import open_table

REPOSITORY = Path(__file__).resolve().parent.parent
TEXTS = ["Anna won in Paris.", "the rain", "a very fast phone is good", "John and Anna", "sun", "bad city, old people!"]


def write_jsonl(path: Path, texts: list[Any]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)))
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def predict(model_folder: Path, table: Path, target: Path, *words: Any) -> None:
    predict_hf.main([str(model_folder), str(table), str(target), *map(str, words)])


@pytest.mark.usefixtures("float32_answers")
def test_every_row_has_the_answers_of_predict_in_its_order(model_folder: Path, tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "in.jsonl", TEXTS * 3)
    predict(model_folder, table, tmp_path / "out.jsonl", "--window", 4, "--batch_size", 3, "--embeddings")
    model, tokenizer = open_engine(str(model_folder))
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [(row["text"], row["id"]) for row in rows] == [(text, i) for i, text in enumerate(TEXTS * 3)]
    for row, answer in zip(rows, model.predict(TEXTS * 3, tokenizer), strict=True):
        assert row["prediction_error"] is None
        assert (row["topic"], row["tags"]) == (answer["topic"]["label"], answer["tags"]["labels"])
        assert row["topic_score"] == pytest.approx(answer["topic"]["score"], abs=1e-5)
        assert row["tags_score"] == pytest.approx([answer["tags"]["scores"][label] for label in row["tags"]], abs=1e-5)
        assert row["rating"] == pytest.approx(answer["rating"]["score"], abs=1e-5)
        assert [(span["word"], span["start"]) for span in row["ner"]] == [
            (span["word"], span["start"]) for span in answer["ner"]
        ]
        assert len(row["upos"]) == len(answer["upos"])
        np.testing.assert_allclose(row["sentence_embedding"], answer["sentence_embedding"], atol=1e-5)
    assert "similarity" not in rows[0] and "joint" not in rows[0]  # they answer pairs


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_formats_hold_the_same_answers(model_folder: Path, tmp_path: Path, kind: str) -> None:
    table = tmp_path / "in.csv"
    table.write_text("id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate([*TEXTS, ""])))
    predict(model_folder, table, tmp_path / f"out.{kind}", "--window", 3)
    predict(model_folder, table, tmp_path / "out.jsonl", "--window", 3)
    expected = read_jsonl(tmp_path / "out.jsonl")
    if kind == "parquet":
        found = pq.read_table(tmp_path / "out.parquet").to_pylist()
        assert [row["ner"] for row in found[:-1]] != [[]] * 6
    else:
        [window] = open_table(str(tmp_path / "out.csv")).read(100)
        found = [{**row, "ner": json.loads(row["ner"] or "null")} for row in window.rows]
    for row, other in zip(found, expected, strict=True):
        assert (row["id"], row["text"], row["topic"] or None) == (other["id"], other["text"], other["topic"])
        assert [span["word"] for span in row["ner"] or []] == [span["word"] for span in other["ner"] or []]


def test_bad_rows_are_kept_marked_and_counted(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    texts = ["Anna won.", None, 5, " ", "sun", "\ud800"]
    predict(model_folder, write_jsonl(tmp_path / "in.jsonl", texts), tmp_path / "out.jsonl", "--window", 2)
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == list(range(6))
    reasons = ["there is no text", "the text is no text, but 5", "there is no text", "the text is not UTF-8"]
    assert [row["prediction_error"] for row in rows] == [None, *reasons[:3], None, reasons[3]]
    assert [row["topic"] is None for row in rows] == [False, True, True, True, False, True]
    assert "6 rows written" in (out := capsys.readouterr().out) and "; 4 without answers" in out


def test_a_row_that_cannot_be_read_is_not_answered_and_says_why(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,the sun\n2,the sun,too many\n3,rain\n")
    (tmp_path / "in.jsonl").write_text('{"text": "the sun"}\n{broken\n{"text": "rain"}\n')
    for name in ("in.csv", "in.jsonl"):
        predict(model_folder, tmp_path / name, tmp_path / f"{name}.jsonl", "--window", 2)
        first, bad, last = read_jsonl(tmp_path / f"{name}.jsonl")
        assert first["topic"] and last["topic"] and bad["topic"] is None
        assert "too many" in bad["prediction_error"] or "not JSON" in bad["prediction_error"]


def test_pairs_are_read_from_two_columns(model_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "in.csv"
    table.write_text("one,two\nthe sun,a sun\nrain,\n")
    options = ("--text", "one", "--text_pair", "two", "--tasks", "similarity", "joint")
    predict(model_folder, table, tmp_path / "out.jsonl", *options)
    first, second = read_jsonl(tmp_path / "out.jsonl")
    assert -1 <= first["similarity"] <= 1 and first["joint"] in ("no", "yes")
    assert second["prediction_error"] == "there is no text"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", "txt"], "'txt' is none of text, id"),
        (["--tasks", "tpic"], "There is no task 'tpic' to answer; the model has"),
        (["--tasks", "similarity"], r"name the second text's column \(--text_pair\)"),
        (["--split", "test"], "is a file. Leave them away"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    model_folder: Path, tmp_path: Path, capsys: Any, words: list[str], message: str
) -> None:
    table = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    with pytest.raises(SystemExit) as left:
        predict(model_folder, table, tmp_path / "out.jsonl", *words)
    assert left.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out.jsonl").exists()


def test_nothing_of_the_table_is_overwritten(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    table = tmp_path / "in.jsonl"
    table.write_text('{"text": "sun", "topic": "mine"}\n')
    with pytest.raises(SystemExit):
        predict(model_folder, table, tmp_path / "out.jsonl")
    assert "has topic already" in capsys.readouterr().err
    predict(model_folder, table, tmp_path / "out.jsonl", "--prefix", "predicted_")
    [row] = read_jsonl(tmp_path / "out.jsonl")
    assert row["topic"] == "mine" and row["predicted_topic"]
    with pytest.raises(SystemExit):
        predict(model_folder, table, tmp_path / "out.jsonl", "--prefix", "predicted_")
    assert "is there already" in capsys.readouterr().err


def test_parts_of_other_options_are_not_gone_on_with(model_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = open_engine(str(model_folder))
    table, target = open_table(str(write_jsonl(tmp_path / "in.jsonl", TEXTS))), tmp_path / "out.jsonl"
    first = BatchPrediction(model, tokenizer, table, target, Options(window=2), fingerprint(model_folder))
    first.predict(rank=0, world_size=2, show=False)
    assert len(list(first.parts.glob("*.jsonl"))) == 2
    for changed in ({"options": Options(window=3)}, {"identity": {"model.safetensors": "another"}}):
        given = {"options": Options(window=2), "identity": fingerprint(model_folder)} | changed
        with pytest.raises(ValueError, match="another model, table or other options"):
            BatchPrediction(model, tokenizer, table, target, **given)
    again = BatchPrediction(model, tokenizer, table, target, Options(window=3), overwrite=True)
    assert not list(again.parts.glob("*.jsonl"))


def test_processes_that_take_turns_write_what_one_writes(model_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = open_engine(str(model_folder))
    table = open_table(str(write_jsonl(tmp_path / "in.jsonl", TEXTS * 4)))
    for name, world_size in (("one", 1), ("three", 3)):
        run = BatchPrediction(model, tokenizer, table, tmp_path / f"{name}.jsonl", Options(window=5))
        for rank in range(world_size):
            run.predict(rank, world_size, show=False)
        run.join()
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "three.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_killed_run_goes_on_and_ends_as_if_unbroken(model_folder: Path, tmp_path: Path, kind: str) -> None:
    table = tmp_path / "in.csv"
    table.write_text("id,text\n" + "".join(f'{i},"{TEXTS[i % 6]} {i}"\n' for i in range(600)))
    words = [model_folder, table, tmp_path / f"out.{kind}", "--window", "8"]
    command = [sys.executable, "predict_hf.py", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    parts, done = tmp_path / f"out.{kind}.parts", set[Path]()
    running = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
    while len(done) < 3 and running.poll() is None:
        time.sleep(0.005)
        done = set(parts.glob(f"*.{kind}"))
    running.send_signal(signal.SIGKILL)
    _, err = running.communicate()
    assert running.returncode == -signal.SIGKILL, err
    before = {path: path.stat().st_mtime_ns for path in parts.glob(f"*.{kind}")}
    assert 3 <= len(before) < 75 and not (tmp_path / f"out.{kind}").exists()
    again = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    predict(model_folder, table, tmp_path / f"unbroken.{kind}", "--window", 8)
    assert (tmp_path / f"out.{kind}").read_bytes() == (tmp_path / f"unbroken.{kind}").read_bytes()


@pytest.mark.slow
def test_two_launched_processes_write_the_file_of_one(model_folder: Path, tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "in.jsonl", TEXTS * 20)
    predict(model_folder, table, tmp_path / "one.jsonl", "--window", 16)
    launcher = Path(sys.executable).with_name("accelerate")
    config = "accelerate_configs/cpu_2_processes.yaml"
    words = [launcher, "launch", "--config_file", config, "predict_hf.py", model_folder, table, tmp_path / "two.jsonl"]
    command = [*map(str, words), "--window", "16"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert ended.stdout.count("120 rows written") == 1
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
