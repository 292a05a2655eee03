"""The web demo: a model's answers in a browser.

    python -m serving.app outputs/news                   # http://127.0.0.1:7860/demo
    MULTITASK_MODEL=alice/news python app.py             # in a Space, whose app.py is a copy of this file
    python serve_hf.py outputs/news --demo               # the API and the demo in one process

Why Gradio: it mounts on the API's own app and runs in a Hub Space; Streamlit is a server apart, Flask is all by hand.

Tabs: all tasks, similarity, embedding, batch, model. They ask the API's own queue, behind its gate. This module says
which component shows what; `demo_answers` computes, `demo_html` draws, `demo_batch` answers tables. Nothing is sent to
another host, and no text is logged or kept: uploads lie in a folder of the process, which is deleted with it.
"""

import argparse
import asyncio
import atexit
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI, Request
from huggingface_hub import snapshot_download
from starlette.responses import RedirectResponse

from command_help import CommandParser
from input_errors import is_refusal, one_line_errors
from pipeline_multitask import Text
from serving.api import create_app
from serving.batcher import EMBEDDING, QueueFull
from serving.demo_answers import (
    ModelFacts,
    cards,
    checked_text,
    cosines,
    highlighted,
    is_for_pairs,
    is_tagger,
    kind_in_words,
    nearest_pairs,
    principal_plane,
    read_facts,
    sentences_of,
)
from serving.demo_batch import MAX_ROWS, ServedModel, answer_table, check_column, likely_column, open_upload
from serving.demo_html import (
    STYLE,
    draw_cards,
    draw_heat_map,
    draw_map,
    draw_pairs,
    draw_table,
    draw_vectors,
    note,
    quiet,
)
from serving.engine import Engine
from serving.limits import Limits
from serving.refusal import log_mistake
from serving.server import DrainingServer
from serving.service import Service

logger = logging.getLogger(__name__)

MODEL_VARIABLE = "MULTITASK_MODEL"
UPLOADS_VARIABLE = "GRADIO_TEMP_DIR"
"""Where Gradio keeps uploads and answers."""
DEMO_PATH = "/demo"
FORM_BYTES = 4096
"""Of a request's body that are not the uploaded file."""
KEPT_SECONDS = 3600
"""That files of the batch tab are kept."""

TEXTS = (
    "Maria Jensen joined Nordwind Systems in Oslo last Monday.",
    "Will it rain in Lisbon tomorrow?",
    "The new update is wonderful, the phone is twice as fast.",
)
SECOND_TEXT = "Is rain expected in Lisbon?"
SENTENCES = (
    "Will it rain in Lisbon tomorrow?\nIs rain expected in Lisbon?\nA storm reached the coast at noon.\n"
    "The new phone is twice as fast.\nThis update made my laptop quicker.\nMaria joined a company in Oslo.",
    "The cat sleeps on the sofa.\nA kitten naps on the couch.\nShares fell in Munich.\nThe stock market lost ground.",
)
"""Examples: plain English, for a model of any tasks."""


class Demo:
    """What the buttons do.

    Args:
        service (Service): The model that is served, its queue and its bounds.
    """

    def __init__(self, service: Service) -> None:
        self.service, self.engine = service, service.engine
        self.tasks = self.engine.tasks
        self.taggers = [name for name, spec in self.tasks.items() if is_tagger(spec)]

    async def ask(self, texts: list[Text], tasks: list[str], patient: bool = False) -> list[dict[str, Any]]:
        """The model's answers, by way of the queue that all requests share.

        Args:
            texts (list): Texts or pairs.
            tasks (list[str]): What is asked.
            patient (bool): Whether to wait for a place in a full queue.

        Raises:
            ValueError: if the queue is full, the deadline passes, or the server is shutting down.
        """
        if self.service.draining:
            raise ValueError("This server is shutting down, and answers nothing new. Load the page again in a minute.")
        self.service.in_flight += 1
        try:
            async with asyncio.timeout(self.service.limits.deadline):
                return await self.service.batcher.answer(texts, tasks)
        except TimeoutError:
            raise ValueError(
                f"There must be an answer within {self.service.limits.deadline:g} s; there is none. Try again later."
            ) from None
        except QueueFull:
            if not patient:
                raise ValueError("Too many texts are waiting for the model. Try again in a moment.") from None
        finally:
            self.service.in_flight -= 1
        await asyncio.sleep(1)
        return await self.ask(texts, tasks, patient)

    async def cut_note(self, texts: list[str]) -> str:
        """Says that a text is longer than the model reads; nothing if none is."""
        limit = self.engine.max_length
        lengths = [reading.length for reading in await self.engine.read(texts)]
        if max(lengths) <= limit:
            return ""
        rest = "for marking words alone" if self.taggers else "for nothing"
        whose = "The text has" if len(texts) == 1 else "The longest text has"
        return note(f"{whose} {max(lengths):,} tokens, and the model reads {limit}: the rest is read {rest}.")

    async def answer(self, text: str, second: str = "") -> list[Any]:
        """Tab *All tasks*: the cards, and the text with what each tagger marks."""
        with errors_in_words():
            text = checked_text(text)
            item: Text = (text, checked_text(second, "The second text")) if second.strip() else text
            (found,) = await self.ask([item], list(self.tasks))
            said = await self.cut_note([text, second] if second.strip() else [text])
            drawn = said + draw_cards(cards(self.tasks, found))
            return [drawn, *(highlighted(text, found[name]) for name in self.taggers)]

    async def compare(self, lines: str) -> list[str]:
        """Tab *Similarity*: the heat map, and the nearest pairs."""
        with errors_in_words():
            sentences = sentences_of(lines, at_least=2)
            matrix = cosines(await self.embed(sentences))
            said = await self.cut_note(sentences)
            return [said + draw_heat_map(sentences, matrix), draw_pairs(sentences, nearest_pairs(matrix))]

    async def embed(self, sentences: list[str]) -> np.ndarray:
        """Sentence embeddings. Shape (sentences, size)."""
        return np.stack([answer[EMBEDDING] for answer in await self.ask(list(sentences), [])])

    async def map(self, lines: str) -> list[str]:
        """Tab *Embedding*: the map, and what stands behind each of its points."""
        with errors_in_words():
            sentences = sentences_of(lines, at_least=2)
            vectors = await self.embed(sentences)
            readings = await self.engine.read(sentences)
            drawn = draw_map(sentences, *principal_plane(vectors))
            return [await self.cut_note(sentences) + drawn, draw_vectors(sentences, vectors, readings)]

    def columns(self, upload: str | None) -> list[Any]:
        """Tab *Batch*, after an upload: what may be chosen."""
        if upload is None:
            return [gr.update(choices=[], value=None), gr.update(choices=[], value=None)]
        with errors_in_words():
            columns = open_upload(Path(upload), Path(upload).name).columns
            return [gr.update(choices=columns, value=likely_column(columns)), gr.update(choices=columns, value=None)]

    async def answer_table(
        self,
        upload: str | None,
        column: str | None,
        pair_column: str | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio is told to show a bar
    ) -> list[Any]:
        """Tab *Batch*: the file with the answers, what became of its rows, and the first of them."""
        with errors_in_words():
            if upload is None:
                raise ValueError("A CSV or TSV file is needed; none is there. Drop one on the field, or choose one.")
            table = open_upload(Path(upload), Path(upload).name)
            column = check_column(column or likely_column(table.columns), table, "the texts")
            if pair_column:
                pair_column = check_column(pair_column, table, "the second texts")
            model = ServedModel(self.engine.model.config, self.ask_patiently, asyncio.get_running_loop())
            folder = Path(tempfile.mkdtemp(dir=Path(upload).parent))
            batch = self.service.limits.max_batch
            work = asyncio.to_thread(answer_table, model, table, column, pair_column, folder, batch)
            working = asyncio.create_task(work)
            try:
                while not working.done():
                    progress((model.answered, table.rows), unit="rows")
                    await asyncio.wait({working}, timeout=0.2)
            finally:
                model.stopped = True
            done = working.result()
            reasons = f" (column {done.reasons} says why)" if done.bad_rows else ""
            summary = quiet(f"{done.rows:,} rows, in their order; {done.bad_rows:,} without answers{reasons}.")
            return [gr.update(value=str(done.path), visible=True), summary + draw_table(done.columns, done.first_rows)]

    async def ask_patiently(self, texts: list[Text], tasks: list[str]) -> list[dict[str, Any]]:
        """`ask`, for a table: other people's texts go first where the queue is full."""
        return await self.ask(texts, tasks, patient=True)


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Show a refusal to who asked; of a mistake of ours only that there was one, and in the log where.

    Raises:
        gr.Error: in place of every other error.
    """
    try:
        yield
    except Exception as error:
        refused = is_refusal(error)
        if not refused:
            log_mistake(logger, error, "the demo")
        said = escape(str(error)) if refused else "The server made a mistake; its log says more."
        raise gr.Error(said, title="No answer", print_exception=False) from None


# ---------------------------------------------------------------------------------------------------------------------
# The page


def build_demo(service: Service, facts: ModelFacts) -> gr.Blocks:
    """The page with its tabs, for the tasks that the model has."""
    demo = Demo(service)
    name = service.engine.name
    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as blocks:
        tasks = ", ".join(demo.tasks) or "none: it only embeds"
        gr.Markdown(f"# {name}\nOne pass of one encoder: a sentence embedding, and every task's answer ({tasks}).")
        with gr.Tabs():
            if demo.tasks:
                with gr.Tab("All tasks"):
                    all_tasks_tab(demo)
            with gr.Tab("Similarity"):
                similarity_tab(demo)
            with gr.Tab("Embedding"):
                embedding_tab(demo)
            with gr.Tab("Batch"):
                batch_tab(demo)
            with gr.Tab("Model"):
                model_tab(demo, facts)
        gr.HTML(quiet("Texts go to this server's model and nowhere else. They are neither logged nor kept."))
    blocks.queue(max_size=service.limits.max_requests, default_concurrency_limit=service.limits.max_batch)
    return blocks


def all_tasks_tab(demo: Demo) -> None:
    """A text, perhaps a second one, and every task's answer."""
    pairs = [name for name, spec in demo.tasks.items() if is_for_pairs(spec)]
    with gr.Row():
        text = gr.Textbox(label="Text", lines=3, placeholder="Type a text", scale=3, min_width=300, elem_id="text")
        second = gr.Textbox(
            label=f"Second text, for {', '.join(pairs)}",
            lines=3,
            placeholder="May stay empty",
            scale=2,
            min_width=300,
            visible=bool(pairs),
            elem_id="second-text",
        )
    ask = gr.Button("Answer", variant="primary", elem_id="answer")
    shown = gr.HTML(elem_id="answers", render=False)
    tagged = [gr.HighlightedText(label=name, elem_id=f"tagged-{name}", render=False) for name in demo.taggers]
    asked, shows = [text, second], [shown, *tagged]
    ask.click(demo.answer, asked, shows, api_visibility="private")
    add_examples(
        demo.answer, [[one, SECOND_TEXT if pairs and "?" in one else ""] for one in TEXTS], asked, shows, list(TEXTS)
    )
    for component in shows:
        component.render()


def add_examples(
    answer: Any, examples: list[list[str]], asked: list[gr.Textbox], shows: list[Any], names: list[str]
) -> None:
    """Examples that fill in what is asked, and answer it at once."""
    gr.Examples(
        examples,
        asked,
        shows,
        answer,
        run_on_click=True,
        cache_examples=False,
        example_labels=names,
        api_visibility="private",
        label="Try one of these",
    )


def sentences_box(elem_id: str) -> gr.Textbox:
    """A text box for several sentences."""
    return gr.Textbox(SENTENCES[0], label="Sentences, one a line", lines=6, max_lines=12, elem_id=elem_id)


def similarity_tab(demo: Demo) -> None:
    """Sentences, the cosine of every two, and the nearest."""
    lines = sentences_box("similar-sentences")
    ask = gr.Button("Compare", variant="primary", elem_id="compare")
    heat, pairs = gr.HTML(elem_id="heat-map", render=False), gr.HTML(elem_id="nearest", render=False)
    add_examples(demo.compare, [[one] for one in SENTENCES], [lines], [heat, pairs], first_lines(SENTENCES))
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            heat.render()
        with gr.Column(scale=2, min_width=320):
            pairs.render()
    ask.click(demo.compare, [lines], [heat, pairs], api_visibility="private")


def first_lines(texts: tuple[str, ...]) -> list[str]:
    """How examples of several sentences are named."""
    return [f"{text.splitlines()[0]} (and {len(text.splitlines()) - 1} more)" for text in texts]


def embedding_tab(demo: Demo) -> None:
    """Sentences on a map, and their vectors."""
    lines = sentences_box("mapped-sentences")
    ask = gr.Button("Embed", variant="primary", elem_id="embed")
    drawn, vectors = gr.HTML(elem_id="map", render=False), gr.HTML(elem_id="vectors", render=False)
    add_examples(demo.map, [[one] for one in SENTENCES], [lines], [drawn, vectors], first_lines(SENTENCES))
    drawn.render()
    vectors.render()
    ask.click(demo.map, [lines], [drawn, vectors], api_visibility="private")


def batch_tab(demo: Demo) -> None:
    """A table in, the same rows with answers out."""
    for_pairs = any(map(is_for_pairs, demo.tasks.values()))
    size = (demo.service.limits.max_body - FORM_BYTES) / 2**20
    gr.Markdown(
        f"A CSV or TSV file in UTF-8 with a header, up to {MAX_ROWS:,} rows and {size:.1f} MiB. The same rows come "
        "back in the same order, with a column for every task; rows that cannot be answered are marked and counted."
    )
    with gr.Row():
        upload = gr.File(label="Table", file_types=[".csv", ".tsv"], height=150, elem_id="table")
        with gr.Column():
            column = gr.Dropdown([], label="Column with the texts", elem_id="text-column")
            pair_column = gr.Dropdown(
                [], label="Column with the second texts (may stay empty)", visible=for_pairs, elem_id="pair-column"
            )
    with gr.Row():
        ask = gr.Button("Answer the table", variant="primary", elem_id="answer-table")
        stop = gr.Button("Stop", elem_id="stop")
    file = gr.File(label="The table with answers", interactive=False, visible=False, elem_id="answered-table")
    shown = gr.HTML(elem_id="table-rows", min_height=90)
    upload.change(demo.columns, [upload], [column, pair_column], api_visibility="private")
    work = ask.click(
        demo.answer_table, [upload, column, pair_column], [file, shown], concurrency_limit=2, api_visibility="private"
    )
    stop.click(None, cancels=[work], api_visibility="private")


def model_tab(demo: Demo, facts: ModelFacts) -> None:
    """What the model is, how it scored, and its card."""
    about = demo.engine.description()
    embedding = about["embedding"]
    length = ", of length 1" if embedding["normalized"] else ""
    gr.Markdown(
        f"Runs on {about['engine']}. The sentence embedding is a vector of {embedding['size']} numbers{length}; "
        f"{embedding['max_tokens']} tokens of a text are read."
    )
    gr.Markdown("### Tasks")
    rows = [(name, kind_in_words(spec), ", ".join(spec.get("labels") or [])) for name, spec in demo.tasks.items()]
    gr.HTML(draw_table(["task", "what it does", "labels"], rows) if rows else quiet("None."), elem_id="tasks")
    gr.Markdown("### Results")
    scored = [[row[field] for field in ("name", "rows", "metric", "score", "others")] for row in facts.results]
    if facts.mean_score is not None:
        scored.append(["mean score", "", "", f"{facts.mean_score:.4f}", ""])
    columns = ["task", "rows", "metric", f"score ({facts.split})", "other metrics"]
    missing = quiet("No results lie beside this model.")
    gr.HTML(draw_table(columns, scored) if scored else missing, elem_id="results")
    with gr.Accordion("Model card", open=False):
        gr.Markdown(facts.card or "There is no card beside this model.", elem_id="card")


# ---------------------------------------------------------------------------------------------------------------------
# Serving it


def model_folder(name: str, offline: bool) -> Path:
    """The folder of a model: the one that is named, or of a Hub id, that of its card and result files in the cache."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    return Path(snapshot_download(name, allow_patterns=["README.md", "*.json"], local_files_only=offline))


@functools.cache
def keep_uploads_apart() -> None:
    """Have Gradio keep files in a folder that only this user can read, and that is deleted with the process."""
    folder = tempfile.mkdtemp(prefix="multitask-demo-")
    os.environ[UPLOADS_VARIABLE] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def add_demo(app: FastAPI, folder: Path | None) -> None:
    """Put the demo at /demo of an app, and lead there from / (and from where browsers look for an icon).

    Args:
        app (FastAPI): From `create_app`; its service answers.
        folder (Path): With the model's card and results.
    """
    service: Service = app.state.service
    service.demo_path = DEMO_PATH
    keep_uploads_apart()
    for path, target in {"/": f"{DEMO_PATH}/", "/favicon.ico": f"{DEMO_PATH}/favicon.ico"}.items():
        app.add_route(path, functools.partial(lead_to, target))  # as such in no schema
    gr.mount_gradio_app(
        app,
        build_demo(service, read_facts(folder)),
        DEMO_PATH,
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=STYLE,
        footer_links=[],
        run_history=False,  # it would keep texts in the browser
        show_error=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        max_file_size=service.limits.max_body - FORM_BYTES,
    )


async def lead_to(target: str, request: Request) -> RedirectResponse:
    """Send a browser to another path."""
    return RedirectResponse(target)


def parse_demo(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the demo alone."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument(
        "model",
        nargs="?",
        default=os.environ.get(MODEL_VARIABLE),
        help=f"Folder of a saved model or an exported graph, or a Hub id (default: the variable {MODEL_VARIABLE}).",
    )
    parser.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        help="Address to listen at (default: the variable GRADIO_SERVER_NAME, which a Space sets, or 127.0.0.1).",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        help="Port; 0 for a free one (default: the variable GRADIO_SERVER_PORT, or 7860).",
    )
    parser.add_argument("--offline", action="store_true", help="Never ask the Hub.")
    given = parser.parse_args(argv)
    if not given.model:
        parser.error(f"name a model, or set the variable {MODEL_VARIABLE} to one.")
    return given


def main(argv: list[str] | None = None) -> None:
    """Parse, open, serve."""
    given = parse_demo(argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    with one_line_errors("app.py"):
        engine = Engine(given.model, offline=given.offline)
        app = create_app(engine, Limits())
        add_demo(app, model_folder(given.model, given.offline))
    DrainingServer(app, given.host, given.port).run()
    engine.close()


if __name__ == "__main__":
    main()
