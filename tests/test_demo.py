"""The web demo without a browser: each tab shows the model's own answers, bounds hold, errors are said in words."""

import asyncio
import base64
import configparser
import csv
import html
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from test_serving import busy_model, client_of, close, offline, until

from batch_prediction import BatchPrediction, Options
from configuration_multitask import MultiTaskConfig
from graph_export import export_graph
from handler import MAX_CHARACTERS
from modeling_multitask import MultiTaskModel
from serving.api import create_app
from serving.app import Demo, add_demo, build_demo, model_folder, parse_demo
from serving.batcher import QueueFull
from serving.demo_answers import (
    MAX_SENTENCES,
    cards,
    cosines,
    highlighted,
    is_for_pairs,
    nearest_pairs,
    principal_plane,
    read_facts,
    without_front_matter,
    without_pictures,
)
from serving.demo_batch import MAX_ROWS, likely_column, open_upload
from serving.demo_html import draw_cards, draw_heat_map, draw_key, draw_map, draw_table, draw_vectors, label_places
from serving.engine import Engine
from serving.gate import Gate
from serving.limits import Limits
from serving.service import Service
from table_files import open_table

REPOSITORY = Path(__file__).resolve().parent.parent
TEXT = "Anna won the game in Berlin, not John."
SECOND = "The old phone was bad."
SENTENCES = [TEXT, SECOND, "sun", "It was cold and it rained on the people of Paris.", "It was cold in Paris."]
LONG = "the new city is very fast " * 40
HOSTILE = "<img src=x onerror=alert(1)>"


@asynccontextmanager
async def demo_of(engine: Engine, **limits: Any) -> AsyncIterator[Demo]:
    """A demo whose queue is worked off."""
    service = Service(engine, Limits(**limits))
    async with service.running():
        yield Demo(service)


def with_demo(engine: Engine, steps: Callable[[Demo], Awaitable[Any]], **limits: Any) -> Any:
    """What some steps with a demo give."""

    async def run() -> Any:
        async with demo_of(engine, **limits) as demo:
            return await steps(demo)

    return asyncio.run(run())


def refusal(engine: Engine, steps: Callable[[Demo], Awaitable[Any]], **limits: Any) -> str:
    """What is said where some steps with a demo are refused."""
    with pytest.raises(gr.Error) as raised:
        with_demo(engine, steps, **limits)
    assert raised.value.print_exception is False  # its traceback would stand in the log
    return html.unescape(raised.value.message)


def shown_text(drawn: str) -> list[str]:
    """The words between the tags."""
    return [html.unescape(piece) for piece in re.findall(r">([^<>]+)<", drawn)]


@pytest.mark.parametrize("item", [TEXT, (TEXT, SECOND)], ids=["text", "pair"])
def test_a_card_holds_what_predict_says(engine: Engine, item: Any) -> None:
    (answer,) = offline(engine, [item])
    found = {card.task: card for card in cards(engine.tasks, answer)}
    assert found.keys() == {"joint", "rating", "similarity", "tags", "topic"}
    for name, card in found.items():
        assert card.needs_pair == (name not in answer) == (is_for_pairs(engine.tasks[name]) and isinstance(item, str))
        scores = answer.get(name, {}).get("scores", {})
        assert {bar.label: bar.score for bar in card.bars} == scores
        assert [bar.score for bar in card.bars] == sorted(scores.values(), reverse=True)
    assert found["topic"].headline == answer["topic"]["label"]
    assert found["rating"].headline == f"{answer['rating']['score']:.3f}"
    assert {bar.label for bar in found["tags"].bars if bar.chosen} == set(answer["tags"]["labels"])


def test_no_label_of_several_is_said_to_be_none() -> None:
    tasks = {"tags": {"kind": "text-classification", "problem_type": "multi_label_classification"}}
    (card,) = cards(tasks, {"tags": {"labels": [], "scores": {"new": 0.4}}})
    assert card.headline == "none of them" and not card.bars[0].chosen


@pytest.mark.parametrize("task", ["ner", "upos"])
def test_a_highlighted_text_is_the_text_and_marks_the_answers(engine: Engine, task: str) -> None:
    for text in (TEXT, LONG, " sun "):
        (answer,) = offline(engine, [text], tasks=[task])
        pieces = highlighted(text, answer[task])
        assert "".join(piece for piece, _ in pieces) == text
        marked = [(piece, label) for piece, label in pieces if label is not None]
        assert marked == [(span["word"], span.get("entity_group", span.get("entity"))) for span in answer[task]]


@pytest.mark.parametrize("second", ["", SECOND], ids=["text", "pair"])
def test_all_tasks_shows_the_offline_answers(engine: Engine, second: str) -> None:
    (answer,) = offline(engine, [(TEXT, second) if second else TEXT])
    drawn, *tagged = with_demo(engine, lambda demo: demo.answer(TEXT, second))
    assert drawn == draw_cards(cards(engine.tasks, answer))
    assert tagged == [highlighted(TEXT, answer[name]) for name in ("ner", "upos")]
    waiting = {name for name in ("joint", "similarity") if name not in answer}
    assert drawn.count("Needs a second text") == len(waiting) == (0 if second else 2)


def test_similarity_shows_the_cosines_of_encode_and_the_nearest_pairs(engine: Engine) -> None:
    vectors = engine.model.encode(SENTENCES, engine.tokenizer, normalize=True)
    matrix = vectors @ vectors.T
    heat, pairs = with_demo(engine, lambda demo: demo.compare("\n\n".join(SENTENCES)))
    numbers = [float(word) for word in shown_text(heat) if re.fullmatch(r"-?\d\.\d\d", word)]
    assert np.abs(np.array(numbers).reshape(5, 5) - matrix).max() <= 0.0051
    rows, columns = np.triu_indices(5, 1)
    best = max(zip(rows, columns, strict=True), key=lambda place: matrix[place])
    assert shown_text(pairs)[1:4] == [f"{matrix[best]:.3f}", *(SENTENCES[place] for place in best)]


def test_nearest_pairs_fall_and_are_pairs_of_others(engine: Engine) -> None:
    matrix = cosines(engine.model.encode(SENTENCES, engine.tokenizer))
    pairs = nearest_pairs(matrix, count=100)
    assert len(pairs) == 10 and all(pair.first < pair.second for pair in pairs)
    assert [pair.cosine for pair in pairs] == sorted((pair.cosine for pair in pairs), reverse=True)


def test_the_map_keeps_distances_where_the_plane_can() -> None:
    generator = np.random.default_rng(0)
    flat = generator.normal(size=(7, 2)) @ np.linalg.qr(generator.normal(size=(30, 2)))[0].T
    points, shares = principal_plane(flat)
    distances = lambda rows: np.linalg.norm(rows[:, None] - rows[None], axis=-1)  # noqa: E731
    assert np.allclose(distances(points), distances(flat)) and np.isclose(sum(shares), 1)
    wide = generator.normal(size=(7, 30))
    points, shares = principal_plane(wide)
    assert np.all(distances(points) <= distances(wide) + 1e-9) and 0 < shares[1] <= shares[0] and sum(shares) < 1
    turned, _ = principal_plane(wide @ np.linalg.qr(generator.normal(size=(30, 30)))[0])
    assert np.allclose(distances(turned), distances(points))


def test_the_map_takes_two_texts_and_equal_ones() -> None:
    points, shares = principal_plane(np.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]))
    assert np.allclose(points[:, 1], 0) and np.isclose(shares[0], 1)
    points, shares = principal_plane(np.ones((3, 4)))
    assert not points.any() and shares == [0, 0]
    assert "NaN" not in draw_map(["a", "b", "c"], points, shares) and "nan" not in draw_map("abc", points, shares)


def test_numbers_of_points_that_lie_together_do_not() -> None:
    places = np.array(label_places(np.array([[100.0, 100.0], [104.0, 98.0], [98.0, 104.0]])))
    apart = np.abs(places[:, None] - places[None]).max(-1) + 100 * np.eye(3)
    assert apart.min() > 14


def test_embedding_shows_vectors_tokens_and_mask(engine: Engine) -> None:
    texts = ["sun", TEXT]
    drawn, vectors = with_demo(engine, lambda demo: demo.map("\n".join(texts)))
    assert drawn.count("<circle") == 2 * len(texts) and "PCA axis 1" in drawn
    batch = engine.tokenizer(texts, padding=True)
    for index, part in enumerate(vectors.split("<details")[1:]):
        shown = re.findall(r"<span[^>]*>([^<]*)<sub>(\d)</sub>", part)
        assert [html.unescape(token) for token, _ in shown] == batch[index].tokens
        assert [int(mask) for _, mask in shown] == batch["attention_mask"][index]
        numbers = re.search(r'class="numbers">([^<]*)<', part)
        assert numbers and close(
            [float(word) for word in numbers.group(1).split()], expected_vector(engine, index, texts)
        )


def expected_vector(engine: Engine, index: int, texts: list[str]) -> list[float]:
    """A vector of `encode`, rounded as it is shown."""
    return engine.model.encode(texts, engine.tokenizer)[index].round(3).tolist()


def test_what_is_beyond_the_limit_is_said(engine: Engine) -> None:
    drawn, *_ = with_demo(engine, lambda demo: demo.answer(LONG))
    tokens = len(engine.tokenizer(LONG)["input_ids"])
    assert f"The text has {tokens:,} tokens, and the model reads 128" in drawn
    assert "marking words" in drawn and "tokens" not in with_demo(engine, lambda demo: demo.answer(TEXT))[0]
    heat, _ = with_demo(engine, lambda demo: demo.compare(f"sun\n{LONG}"))
    assert f"The longest text has {tokens:,} tokens" in heat


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (lambda demo: demo.answer(""), "The text must hold at least a word; it is empty"),
        (lambda demo: demo.answer(" \n"), "The text must hold at least a word; it is empty"),
        (lambda demo: demo.answer("x" * (MAX_CHARACTERS + 1)), "may have 100,000 characters; it has 100,001"),
        (lambda demo: demo.answer("sun", "x" * (MAX_CHARACTERS + 1)), "The second text may have 100,000 characters"),
        (lambda demo: demo.answer("half a pair: \ud83d"), "must be Unicode"),
        (lambda demo: demo.compare("only one"), f"Give 2 to {MAX_SENTENCES} sentences, one a line; there are 1"),
        (lambda demo: demo.map("sun\n" * (MAX_SENTENCES + 1)), f"there are {MAX_SENTENCES + 1}"),
        (lambda demo: demo.compare("sun\n" + "x" * (MAX_CHARACTERS + 1)), "Sentence 2 may have 100,000 characters"),
        (lambda demo: demo.answer_table(None, None, None), "A CSV or TSV file is needed; none is there"),
    ],
)
def test_what_cannot_be_answered_is_said_in_words(engine: Engine, steps: Any, said: str) -> None:
    assert said in refusal(engine, steps)


def test_a_full_queue_a_late_answer_and_a_server_that_leaves_are_said_in_words(engine: Engine) -> None:
    async def beside_others(demo: Demo) -> None:
        others = asyncio.create_task(demo.service.batcher.answer(["sun"] * 9))
        try:
            with busy_model(engine):
                await until(lambda: demo.service.batcher.queued == 8)
                await demo.compare("sun\nrain")
        finally:
            await others

    async def late(demo: Demo) -> None:
        with busy_model(engine):
            await demo.answer("sun")

    async def leaving(demo: Demo) -> None:
        demo.service.draining = True
        await demo.answer("sun")

    assert "Too many texts are waiting" in refusal(engine, beside_others, max_queue=9, max_batch=1)
    assert "within 0.1 s" in refusal(engine, late, deadline=0.1)
    assert "shutting down" in refusal(engine, leaving)


def test_a_mistake_of_ours_shows_neither_text_nor_path(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    async def steps(demo: Demo) -> None:
        async def fail(texts: list[Any], tasks: list[str], strategy: str) -> list[dict[str, Any]]:
            raise RuntimeError(f"cannot read {texts}")

        demo.service.batcher.predict = fail
        await demo.answer("a secret")

    assert refusal(engine, steps) == "The server made a mistake; its log says more."
    assert "RuntimeError" in caplog.text and "secret" not in caplog.text


def test_what_comes_from_outside_is_shown_and_not_run(engine: Engine) -> None:
    tasks = {HOSTILE: {"kind": "text-classification", "labels": [HOSTILE]}}
    scores = {HOSTILE: {"label": HOSTILE, "scores": {HOSTILE: 1.0}}}
    readings = engine.read_now([HOSTILE, "sun"])
    texts, vectors = [HOSTILE, "sun"], np.eye(2)
    for drawn in (
        draw_cards(cards(tasks, scores)),
        draw_heat_map(texts, np.eye(2)),
        draw_map(texts, vectors, [1.0, 0.0]),
        draw_vectors(texts, vectors, readings),
        draw_key(texts),
        draw_table([HOSTILE], [[HOSTILE]]),
    ):
        assert "<img" not in drawn and html.escape(HOSTILE) in drawn


# ---------------------------------------------------------------------------------------------------------------------
# Batch


def write_csv(path: Path, columns: list[str], rows: list[list[str]]) -> Path:
    """A CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as a user reads it."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def answer_upload(engine: Engine, upload: Path, *columns: Any, **limits: Any) -> tuple[Path, str]:
    """The file and the page that the batch tab gives."""
    file, shown = with_demo(engine, lambda demo: demo.answer_table(str(upload), *columns), **limits)
    return Path(file["value"]), shown


@pytest.mark.parametrize("pair_column", [None, "other"])
def test_a_table_gets_the_answers_of_predict_hf(engine: Engine, tmp_path: Path, pair_column: str | None) -> None:
    rows = [[str(number), SENTENCES[number % 5], SENTENCES[number % 3]] for number in range(70)]
    upload = write_csv(tmp_path / "in.csv", ["id", "text", "other"], rows)
    found, shown = answer_upload(engine, upload, "text", pair_column, max_batch=8)
    options = Options("text", pair_column, bf16=False)
    offline_run = BatchPrediction(engine.model, engine.tokenizer, open_table(str(upload)), tmp_path / "o.csv", options)
    offline_run.predict(show=False)
    offline_run.join()
    assert found.name == "in_answers.csv" and "70 rows, in their order; 0 without answers" in shown
    expected = rows_of(tmp_path / "o.csv")
    assert expected[0].keys() == rows_of(found)[0].keys() and len(rows_of(found)) == 70
    for row, other in zip(rows_of(found), expected, strict=True):
        for column, value in row.items():
            assert close(*map(as_value, (value, other[column]))), column


def as_value(field: str) -> Any:
    """A field of CSV as what it stands for."""
    try:
        return json.loads(field)
    except json.JSONDecodeError:
        return field


def test_bad_rows_are_kept_marked_and_counted(engine: Engine, tmp_path: Path) -> None:
    upload = tmp_path / "in.csv"
    too_long = "x" * (MAX_CHARACTERS + 1)
    upload.write_text(f"id,text\n1,sun\n2,\n3\n4,sun,more\n5,{too_long}\n6,rain\n")
    found, shown = answer_upload(engine, upload, "text", None)
    rows = rows_of(found)
    assert [row["id"] for row in rows] == list("123456")
    assert [bool(row["prediction_error"]) for row in rows] == [False, True, True, True, True, False]
    assert [bool(row["topic"]) for row in rows] == [True, False, False, False, False, True]
    assert "may have 100,000 characters; it has 100,001" in rows[4]["prediction_error"]
    assert "6 rows, in their order; 4 without answers (column prediction_error says why)" in shown


def test_columns_of_the_same_name_are_kept_apart(engine: Engine, tmp_path: Path) -> None:
    upload = write_csv(tmp_path / "in.csv", ["text", "topic"], [["sun", "mine"]])
    (row,) = rows_of(answer_upload(engine, upload, "text", None)[0])
    assert row["topic"] == "mine" and row["predicted_topic"] in engine.tasks["topic"]["labels"]


def test_a_table_waits_for_a_place_in_a_full_queue(engine: Engine, tmp_path: Path) -> None:
    upload = write_csv(tmp_path / "in.csv", ["text"], [["sun"]] * 8)

    async def steps(demo: Demo) -> str:
        batcher, refused = demo.service.batcher, []
        answer = batcher.answer

        async def noting(texts: list[Any], tasks: list[str]) -> Any:
            try:
                return await answer(texts, tasks)
            except QueueFull:
                refused.append(len(texts))
                raise

        batcher.answer = noting
        with busy_model(engine):
            first = asyncio.create_task(answer(["sun"] * 8))
            await until(lambda: not first.done() and batcher.jobs == [] and batches(demo) == 1)
            second = asyncio.create_task(answer(["sun"] * 8))
            await until(lambda: batcher.queued == 8)
            table = asyncio.create_task(demo.answer_table(str(upload), "text", None))
            await until(lambda: refused == [8])
        await asyncio.gather(first, second)
        return (await table)[1]

    assert "8 rows, in their order; 0 without answers" in with_demo(engine, steps, max_queue=9, max_batch=8)


def batches(demo: Demo) -> int:
    """Calls of the model so far."""
    lines = demo.service.metrics.text().decode().splitlines()
    return int(float(next(line for line in lines if line.startswith("multitask_batch_texts_count")).split()[1]))


def test_a_table_that_nobody_waits_for_is_given_up(engine: Engine, tmp_path: Path) -> None:
    upload = write_csv(tmp_path / "in.csv", ["text"], [["sun"]] * 64)

    async def steps(demo: Demo) -> int:
        with busy_model(engine):
            table = asyncio.create_task(demo.answer_table(str(upload), "text", None))
            await until(lambda: demo.service.in_flight == 1)
            table.cancel()
            with pytest.raises(asyncio.CancelledError):
                await table
        await until(lambda: demo.service.in_flight == 0)
        await demo.answer("sun")
        await until(lambda: list(tmp_path.iterdir()) == [upload])  # nothing of it is kept
        return batches(demo)

    assert with_demo(engine, steps, max_batch=8) == 2  # the one that was under way, and the text after it


BAD_TABLES = {
    "no header": ("in.csv", "", "must name its columns"),
    "no rows": ("in.csv", "text\n", f"1 to {MAX_ROWS:,} rows here; in.csv has 0"),
    "too many rows": ("in.csv", "text\n" + "sun\n" * (MAX_ROWS + 1), f"in.csv has {MAX_ROWS + 1:,}"),
    "semicolons": ("in.csv", "id;text\n1;sun\n", "in.csv has semicolons"),
    "another format": ("in.txt", "text\nsun\n", "in.txt is none"),
    "a column that is not there": ("in.csv", "id,body\n1,sun\n", "'text' is none of id, body"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_table_that_cannot_be_answered_is_refused_in_words(engine: Engine, tmp_path: Path, case: str) -> None:
    name, content, said = BAD_TABLES[case]
    (tmp_path / name).write_text(content)
    message = refusal(engine, lambda demo: demo.answer_table(str(tmp_path / name), "text", None))
    assert said in message and str(tmp_path) not in message


def test_the_likely_column_is_chosen_and_a_missing_one_asked_for(engine: Engine, tmp_path: Path) -> None:
    assert likely_column(["id", "text"]) == "text" and likely_column(["body"]) == "body"
    assert likely_column(["id", "body"]) is None
    upload = write_csv(tmp_path / "in.csv", ["id", "body"], [["1", "sun"]])
    message = refusal(engine, lambda demo: demo.answer_table(str(upload), None, None))
    assert "none is chosen, and there are id, body" in message

    async def columns(demo: Demo) -> Any:
        return demo.columns(str(upload))

    assert with_demo(engine, columns)[0]["choices"] == ["id", "body"]


def test_answers_are_previewed_in_short(engine: Engine, tmp_path: Path) -> None:
    upload = write_csv(tmp_path / "in.csv", ["id", "text"], [["0.123456", TEXT]])
    (answer,) = offline(engine, [TEXT])
    shown = shown_text(answer_upload(engine, upload, "text", None)[1])
    assert {"0.123456", TEXT, f"{answer['topic']['score']:.3f}", ", ".join(answer["tags"]["labels"])} <= {*shown, ""}
    assert ", ".join(f"{span['word']} {span['entity_group']}" for span in answer["ner"])[:100] in "\n".join(shown)


def test_tab_separated_tables_come_back_so(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text("id\ttext\n1\tsun; rain, snow\n")
    found, _ = answer_upload(engine, tmp_path / "in.tsv", "text", None)
    assert found.name == "in_answers.tsv" and found.read_text().splitlines()[1].startswith("1\tsun; rain, snow\t")
    assert open_upload(found, "x.tsv").rows == 1


# ---------------------------------------------------------------------------------------------------------------------
# The model, and models of other tasks


def test_the_facts_of_a_folder_are_its_files(tmp_path: Path) -> None:
    assert read_facts(None).card == "" and read_facts(tmp_path).results == []
    task = {"kind": "text-classification", "labels": ["a", "b"], "problem_type": "single_label_classification"}
    (tmp_path / "config.json").write_text(json.dumps({"tasks": {"topic": task}}))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# News\n")
    protocol = {"topic": {"rows_scored": 1200, "splits": {"test": "test"}, "scorer": "accuracy"}}
    scores = {"test_protocol": protocol, "test_topic_accuracy": 0.912345, "test_mean_score": 0.9}
    (tmp_path / "test_results.json").write_text(json.dumps(scores))
    facts = read_facts(tmp_path)
    assert (facts.card, facts.split, facts.mean_score) == ("# News\n", "test", 0.9)
    assert [(row["name"], row["metric"], row["score"]) for row in facts.results] == [("topic", "accuracy", "0.9123")]


def test_a_card_is_shown_without_front_matter_and_pictures() -> None:
    assert without_front_matter("# a\n---\nb") == "# a\n---\nb" and without_front_matter("---\nopen") == "---\nopen"
    shown = without_pictures("a ![curves](curves.png) b <img src='https://example.org/x.png' alt='x'> c")
    assert shown == "a (picture: curves) b  c"


TASK_SETS: dict[str, dict[str, Any]] = {
    "none": {},
    "one label": {"topic": {"kind": "text-classification", "labels": ["a", "b"]}},
    "tags alone": {"ner": {"kind": "token-classification", "labels": ["O", "B-PER", "I-PER"]}},
    "a pair task alone": {"similarity": {"kind": "sentence-similarity"}},
    "an embedding alone": {"anchor": {"kind": "feature-extraction"}},
    "a hundred labels": {"intent": {"kind": "text-classification", "labels": [f"<{i}>" for i in range(100)]}},
}


@pytest.mark.parametrize("name", TASK_SETS)
def test_the_page_fits_any_set_of_tasks(encoder: Any, tokenizer: Any, tmp_path: Path, name: str) -> None:
    """Tabs are those that the model can fill, and what can be asked is answered."""
    config = MultiTaskConfig(encoder_config=encoder.config, tasks=TASK_SETS[name])
    MultiTaskModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = Engine(str(tmp_path))

    async def steps(demo: Demo) -> list[Any]:
        blocks = build_demo(demo.service, read_facts(tmp_path))
        tabs = [block.label for block in blocks.blocks.values() if isinstance(block, gr.Tab)]
        assert tabs == [*(["All tasks"] if TASK_SETS[name] else []), "Similarity", "Embedding", "Batch", "Model"]
        heat, _ = await demo.compare("sun\nrain")
        assert ">1.00<" in heat
        return await demo.answer(TEXT)

    drawn, *tagged = with_demo(engine, steps)
    engine.close()
    assert len(tagged) == (name == "tags alone")
    assert ("and 92 less likely" in drawn) == (name == "a hundred labels")


@pytest.mark.slow
@pytest.mark.parametrize("graph_format", ["onnx", "openvino"])
def test_an_exported_graph_is_shown_as_its_model_is(engine: Engine, tmp_path: Path, graph_format: str) -> None:
    export_graph(engine.model, engine.tokenizer, tmp_path, graph_format, "fp32")
    graph = Engine(str(tmp_path))
    for steps in (lambda demo: demo.answer(TEXT, SECOND), lambda demo: demo.compare("\n".join(SENTENCES))):
        assert with_demo(graph, steps) == with_demo(engine, steps)

    async def page(demo: Demo) -> list[str]:
        blocks = build_demo(demo.service, read_facts(tmp_path)).blocks
        return [str(getattr(block, "value", "")) for block in blocks.values()]

    assert any(f"Runs on {graph_format}" in value for value in with_demo(graph, page))
    graph.close()


def test_the_folder_of_a_model_is_the_one_that_is_named(tmp_path: Path) -> None:
    assert model_folder(str(tmp_path), offline=True) == tmp_path


# ---------------------------------------------------------------------------------------------------------------------
# One app with the API


def demo_app(engine: Engine, token: str | None = None, folder: Path | None = None, **limits: Any) -> FastAPI:
    """The API with the demo; put together in a running event loop, since Gradio would open two and leave them so.

    In a thread, since Playwright's loop runs in this one.
    """

    async def put_together() -> FastAPI:
        app = create_app(engine, Limits(**limits), token)
        add_demo(app, folder)
        return app

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(put_together())).result()


def run(app: Any, steps: Callable[[httpx2.AsyncClient], Awaitable[None]]) -> None:
    """Run steps with a client of an app."""

    async def run_steps() -> None:
        async with client_of(app) as client:
            await steps(client)

    asyncio.run(run_steps())


def basic(password: str) -> dict[str, str]:
    """What a browser sends after it asked its user."""
    return {"Authorization": f"Basic {base64.b64encode(f'anyone:{password}'.encode()).decode()}"}


def test_the_api_is_the_same_with_the_demo(engine: Engine) -> None:
    plain, both = create_app(engine, Limits()), demo_app(engine)
    assert plain.openapi() == both.openapi()

    async def steps(client: httpx2.AsyncClient) -> None:
        answer = await client.post("/predict", json={"texts": [TEXT]})
        assert close(answer.json()["answers"], offline(engine, [TEXT]))
        assert (await client.get("/nowhere")).json()["error"]["code"] == "not_found"
        page = await client.get("/demo/")
        assert page.status_code == 200 and "gradio_config" in page.text
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
        assert "Content-Security-Policy" not in answer.headers
        assert (await client.get("/")).headers["Location"] == "/demo/"
        assert 'endpoint="demo"' in (await client.get("/metrics")).text

    run(both, steps)


def test_the_demo_is_no_way_around_the_token(engine: Engine) -> None:
    paths = ["/", "/demo", "/demo/", "/demo/config", "/demo/gradio_api/info", "/demo/gradio_api/heartbeat/x"]

    async def steps(client: httpx2.AsyncClient) -> None:
        for headers in ({}, basic("wrong"), {"Authorization": "Basic ???"}, basic("")):
            for path in paths:
                refused = await client.get(path, headers=headers)
                assert refused.status_code == 401 and refused.headers["WWW-Authenticate"].startswith("Basic ")
            joined = await client.post("/demo/gradio_api/queue/join", json={}, headers=headers)
            assert joined.status_code == 401
        for headers in (basic("right"), {"Authorization": "Bearer right"}):
            assert (await client.get("/demo/config", headers=headers)).status_code == 200
        # a browser sends a password by itself, to a form of another site too: the API takes none
        answer = await client.post("/embed", json={"texts": ["sun"]}, headers=basic("right"))
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"

    run(demo_app(engine, "right"), steps)


def test_without_a_demo_nothing_is_where_it_would_be(engine: Engine) -> None:
    async def steps(client: httpx2.AsyncClient) -> None:
        for path in ("/", "/demo/"):
            assert (await client.get(path)).status_code == 404

    run(create_app(engine, Limits()), steps)


def test_an_open_page_has_no_deadline_and_ends_with_the_server(engine: Engine) -> None:
    """It is not waited for, but counted; what is asked of the API keeps its deadline."""
    service = Service(engine, Limits(deadline=0.05, max_requests=2, drain=0))
    service.demo_path = "/demo"
    left = asyncio.Event()

    async def open_forever(scope: Any, receive: Any, send: Any) -> None:
        await left.wait()

    gate = Gate(open_forever, service)

    async def ask(path: str) -> int:
        status = []
        messages = [{"type": "http.request"}]
        forever = asyncio.Event()

        async def receive() -> Any:
            if not messages:
                await forever.wait()
            return messages.pop()

        async def send(message: Any) -> None:
            status.append(message.get("status"))

        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        await gate(scope, receive, send)
        return status[0] if status else 0

    async def steps() -> None:
        page = asyncio.create_task(ask("/demo/gradio_api/heartbeat/x"))
        assert await ask("/info") == 503  # the deadline
        assert not page.done() and (service.in_flight, service.open_pages) == (0, 1)
        second = asyncio.create_task(ask("/demo/gradio_api/queue/data"))
        await until(lambda: service.open_pages == 2)
        assert await ask("/demo/") == await ask("/info") == 429
        await service.finish()
        assert await page == await second == 0
        assert service.open_pages == 0

    asyncio.run(asyncio.wait_for(steps(), 60))


# ---------------------------------------------------------------------------------------------------------------------
# A Space


def test_the_help_says_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_demo(["--help"])
    assert ended.value.code == 0 and "serving.app outputs/news" in capsys.readouterr().out


def test_the_demo_takes_its_model_from_the_argument_or_the_spaces_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTITASK_MODEL", raising=False)
    assert (parse_demo(["here"]).model, parse_demo(["here"]).host) == ("here", "127.0.0.1")
    with pytest.raises(SystemExit):
        parse_demo([])
    monkeypatch.setenv("MULTITASK_MODEL", "alice/news")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    assert (parse_demo([]).model, parse_demo([]).host) == ("alice/news", "0.0.0.0")


def test_a_space_installs_what_the_demo_needs() -> None:
    """The base install and the extras `serve` and `demo`; Gradio as it was tested."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    extras = setup["options.extras_require"]
    needed = "\n".join([setup["options"]["install_requires"], extras["serve"], extras["demo"]]).split("\n")
    space = REPOSITORY / "serving" / "space"
    assert (space / "requirements.txt").read_text().splitlines() == sorted(filter(None, needed))
    pinned = re.search(r"^gradio==(.*)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and f"\nsdk_version: {pinned.group(1)}\n" in (space / "README.md").read_text()
