"""The web demo in a real browser: type, click, read the answers, up- and download a table, on a phone, offline.

A headless Chromium of the system (Debian: `apt-get install chromium`) is driven by Playwright, which brings none of its
own here. The pictures of the guide come from here too:

    MULTITASK_SCREENSHOTS=outputs/quickstart python -m pytest tests/test_demo_browser.py -m slow -k pictures
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright
from test_demo import MAX_CHARACTERS, SECOND, SENTENCES, TEXT, basic, demo_app
from test_serve_hf import address_of, served
from test_serving import busy_model, listening, offline

from prediction_engine import open_engine
from serving.app import TEXTS
from serving.demo_answers import highlighted
from serving.engine import Engine

pytestmark = [
    pytest.mark.slow,
    # Gradio sums up its queue's times with an option of pandas that is to go
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
]

REPOSITORY = Path(__file__).resolve().parent.parent
PICTURES = REPOSITORY / "docs" / "images"
DESKTOP, PHONE = {"width": 1100, "height": 800}, {"width": 390, "height": 844}
TABS = ("All tasks", "Similarity", "Embedding", "Batch", "Model")
HOSTILE = "<img src=x onerror=alert(1)> ${1+1} {{value}} </script> Anna"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The system's Chromium, headless; without its sandbox where it runs as root, which it refuses with it."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no chromium on the PATH (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    """Where a server with the demo listens."""
    with listening(demo_app(engine, max_body=200_000)) as address:
        yield address


class Visit:
    """A page of the demo, and what happened beside it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.hosts: set[str | None] = set()
        self.complaints: list[str] = []
        page.on("request", self.note_request)
        page.on("console", self.note_message)
        page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def note_request(self, request: Request) -> None:
        """Keep the host of a request; data and blobs have none."""
        if request.url.startswith(("http", "ws")):
            self.hosts.add(urlsplit(request.url).hostname)

    def note_message(self, message: ConsoleMessage) -> None:
        """Keep what the browser complains of."""
        if message.type == "error":
            self.complaints.append(message.text)

    def open(self, tab: str) -> None:
        """Show a tab."""
        self.page.get_by_role("tab", name=tab).click()

    def sentences(self, box: str, button: str, sentences: list[str]) -> None:
        """Type sentences and send them."""
        self.page.fill(f"#{box} textarea", "\n".join(sentences))
        self.page.click(f"#{button}")

    def cards(self) -> dict[str, dict[str, str]]:
        """Task -> label -> percent, as the cards show them."""
        found = {}
        for card in self.page.locator("#answers .card").all():
            bars = card.locator(".bar .names").all_inner_texts()
            found[str(card.get_attribute("data-task"))] = dict(bar.split("\n") for bar in bars)
        return found


@pytest.fixture
def visit(chromium: Browser, address: str) -> Iterator[Visit]:
    """The demo, freshly opened; at the end, nothing was asked of another host and the browser had no complaint."""
    page = chromium.new_page(viewport=DESKTOP)
    visit = Visit(page)
    page.goto(address)
    expect(page.locator("#answer")).to_be_visible()
    yield visit
    page.close()
    assert visit.hosts == {"127.0.0.1"} and visit.complaints == []


def percents(answer: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Task -> label -> percent, of the tasks with labels."""
    scored = {name: value["scores"] for name, value in answer.items() if "scores" in value}
    return {name: {label: f"{100 * score:.1f} %" for label, score in of.items()} for name, of in scored.items()}


def labelled(cards: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The cards that have bars."""
    return {name: bars for name, bars in cards.items() if bars}


def test_a_typed_text_gets_the_answers_of_predict(visit: Visit, engine: Engine) -> None:
    (answer,) = offline(engine, [TEXT])
    visit.page.fill("#text textarea", TEXT)
    visit.page.click("#answer")
    expect(visit.page.locator('#answers [data-task="topic"] .headline')).to_have_text(answer["topic"]["label"])
    assert labelled(visit.cards()) == percents(answer)
    expect(visit.page.locator('#answers [data-task="rating"] .headline')).to_have_text(
        f"{answer['rating']['score']:.3f}"
    )
    for name in ("ner", "upos"):
        shown = visit.page.locator(f"#tagged-{name} .textfield").inner_text()
        pieces = "".join(piece + (label or "") for piece, label in highlighted(TEXT, answer[name]))
        assert "".join(shown.split()) == "".join(pieces.split())


def test_a_second_text_answers_the_tasks_for_pairs(visit: Visit, engine: Engine) -> None:
    (answer,) = offline(engine, [(TEXT, SECOND)])
    visit.page.fill("#text textarea", TEXT)
    visit.page.fill("#second-text textarea", SECOND)
    visit.page.click("#answer")
    score = visit.page.locator('#answers [data-task="similarity"] .headline')
    expect(score).to_have_text(f"{answer['similarity']['score']:.3f}")
    assert labelled(visit.cards()) == percents(answer) and "joint" in visit.cards()


def test_an_example_is_answered_by_one_click(visit: Visit, engine: Engine) -> None:
    visit.page.get_by_role("button", name=TEXTS[0]).click()
    expect(visit.page.locator("#answers .card")).to_have_count(5)
    (answer,) = offline(engine, [TEXTS[0]])
    assert labelled(visit.cards()) == percents(answer)
    assert visit.page.input_value("#text textarea") == TEXTS[0]


def test_a_heat_map_shows_the_cosines(visit: Visit, engine: Engine) -> None:
    visit.open("Similarity")
    visit.sentences("similar-sentences", "compare", SENTENCES)
    expect(visit.page.locator("#heat-map .key li")).to_have_count(5)
    vectors = engine.model.encode(SENTENCES, engine.tokenizer, normalize=True)
    cells = visit.page.locator("#heat-map .heat > div:not(.place)").all_inner_texts()
    assert np.abs(np.array(cells, dtype=float).reshape(5, 5) - vectors @ vectors.T).max() <= 0.0051
    cosines = [float(text) for text in visit.page.locator("#nearest .card b").all_inner_texts()]
    assert len(cosines) == 5 and cosines == sorted(cosines, reverse=True)


def test_a_map_has_a_point_a_sentence_and_unfolds_its_vector(visit: Visit, engine: Engine) -> None:
    visit.open("Embedding")
    visit.sentences("mapped-sentences", "embed", SENTENCES)
    expect(visit.page.locator("#map svg circle.halo")).to_have_count(5)
    third = visit.page.locator("#vectors details").nth(2)
    third.locator("summary").click()
    expect(third.locator(".numbers")).to_be_visible()
    numbers = third.locator(".numbers").inner_text().split()
    vector = engine.model.encode(SENTENCES, engine.tokenizer)[2]
    assert np.abs(np.array(numbers, dtype=float) - vector).max() <= 0.00051
    assert third.locator(".tokens span.padding").count() > 0


def write_table(path: Path) -> list[list[str]]:
    """A table with good rows and bad ones; its rows."""
    rows = [[str(number), SENTENCES[number % 5] if number % 7 else ""] for number in range(40)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "body"], *rows])
    return rows


def test_a_table_is_uploaded_answered_and_downloaded(visit: Visit, engine: Engine, tmp_path: Path) -> None:
    rows = write_table(tmp_path / "in.csv")
    visit.open("Batch")
    visit.page.set_input_files("#table input[type=file]", tmp_path / "in.csv")
    expect(visit.page.locator("#table")).to_contain_text("in.csv")
    visit.page.click("#answer-table")
    expect(visit.page.get_by_text("A column with the texts is needed")).to_be_visible()
    visit.page.click("#text-column input")
    visit.page.get_by_role("option", name="body").click()
    visit.page.click("#answer-table")
    expect(visit.page.locator("#table-rows")).to_contain_text("40 rows, in their order; 6 without answers")
    with visit.page.expect_download() as download:
        visit.page.locator("#answered-table a").first.click()
    assert download.value.suggested_filename == "in_answers.csv"
    with Path(download.value.path()).open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [[row["id"], row["body"]] for row in found] == rows
    answers = iter(offline(engine, [text for _, text in rows if text]))
    for row in found:
        assert bool(row["prediction_error"]) == (row["body"] == "")
        if row["body"]:
            answer = next(answers)
            assert row["topic"] == answer["topic"]["label"]
            assert [span["word"] for span in json.loads(row["ner"])] == [span["word"] for span in answer["ner"]]


def test_a_table_has_a_progress_bar_and_can_be_stopped(visit: Visit, engine: Engine, tmp_path: Path) -> None:
    write_table(tmp_path / "in.csv")
    visit.open("Batch")
    visit.page.set_input_files("#table input[type=file]", tmp_path / "in.csv")
    visit.page.click("#text-column input")
    visit.page.get_by_role("option", name="body").click()
    with busy_model(engine):
        visit.page.click("#answer-table")
        bar = visit.page.locator("#table-rows").get_by_role("progressbar")
        expect(bar).to_have_attribute("aria-valuetext", "0 / 40 rows")
        visit.page.click("#stop")
        expect(bar).to_have_count(0)
    expect(visit.page.locator("#table-rows table")).to_have_count(0)


def test_a_table_that_is_too_large_is_refused(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "large.csv").write_text("text\n" + "sun and rain\n" * 20_000)
    visit.open("Batch")
    visit.page.set_input_files("#table input[type=file]", tmp_path / "large.csv")
    expect(visit.page.get_by_text("exceed the maximum allowed size")).to_be_visible()
    visit.page.wait_for_load_state("networkidle")
    visit.complaints.clear()  # it asks how far the upload is, that it did not begin


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "The text must hold at least a word; it is empty."),
        ("x" * (MAX_CHARACTERS + 1), "it has 100,001. Split it"),
    ],
    ids=["empty", "too long"],
)
def test_what_cannot_be_answered_is_said_on_the_page(visit: Visit, text: str, said: str) -> None:
    visit.page.fill("#text textarea", text)
    visit.page.click("#answer")
    expect(visit.page.locator(".toast-wrap, [data-testid=toast-body]").first).to_contain_text(said)


def test_what_is_typed_is_shown_and_not_run(visit: Visit) -> None:
    visit.open("Similarity")
    visit.sentences("similar-sentences", "compare", [HOSTILE, "sun"])
    expect(visit.page.locator("#heat-map .key li span").first).to_have_text(HOSTILE)
    visit.open("All tasks")
    visit.page.fill("#text textarea", HOSTILE)
    visit.page.click("#answer")
    expect(visit.page.locator("#tagged-ner")).to_contain_text("onerror")
    assert visit.page.locator("img[src=x]").count() == 0


def fill_every_tab(visit: Visit, table: Path, column: str | None) -> Iterator[str]:
    """Show each tab with an answer in it; its name."""
    page = visit.page
    page.get_by_role("button", name=TEXTS[1]).click()
    expect(page.locator("#answers .card").first).to_be_visible()
    yield TABS[0]
    for tab, button, shown in ((TABS[1], "compare", "#nearest .card"), (TABS[2], "embed", "#vectors details")):
        visit.open(tab)
        page.click(f"#{button}")
        expect(page.locator(shown).first).to_be_visible()
        yield tab
    visit.open(TABS[3])
    page.set_input_files("#table input[type=file]", table)
    expect(page.locator("#table")).to_contain_text(table.name)
    if column is not None:
        page.click("#text-column input")
        page.get_by_role("option", name=column).click()
    page.click("#answer-table")
    expect(page.locator("#table-rows table")).to_be_visible()
    yield TABS[3]
    visit.open(TABS[4])
    expect(page.locator("#tasks table")).to_be_visible()
    yield TABS[4]


ALL_REACHED = """[...document.querySelectorAll(".wide")].every(box => {
    box.scrollLeft = 10000;
    return box.scrollWidth <= box.clientWidth || box.scrollLeft > 0;
})"""
"""Whether all that is wider than its place can be scrolled to."""


def test_no_tab_is_wider_than_a_phone(visit: Visit, tmp_path: Path) -> None:
    visit.page.set_viewport_size(PHONE)
    visit.page.reload()
    write_table(tmp_path / "in.csv")
    for tab in fill_every_tab(visit, tmp_path / "in.csv", "body"):
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], tab
        assert visit.page.evaluate(ALL_REACHED), tab


def test_a_browser_shows_the_demo_to_who_has_the_token(chromium: Browser, engine: Engine) -> None:
    with listening(demo_app(engine, "right")) as address:
        for password, status in (("wrong", 401), ("right", 200)):
            context = chromium.new_context(http_credentials={"username": "anyone", "password": password})
            page = context.new_page()
            answer = page.goto(f"{address}/demo/")
            assert answer and answer.status == status
            if status == 200:
                page.get_by_role("button", name=TEXTS[0]).click()
                expect(page.locator("#answers .card")).to_have_count(5)
            context.close()


def test_no_file_of_the_server_can_be_asked_for(address: str, tmp_path: Path) -> None:
    """Neither in place of an upload, nor by the address of one."""
    secret = tmp_path / "secret.csv"
    secret.write_text("text\na secret\n")
    with httpx2.Client(base_url=f"{address}/demo", timeout=60) as client:
        functions = client.get("/config").json()["dependencies"]
        upload = {"path": str(secret), "orig_name": "in.csv", "meta": {"_type": "gradio.FileData"}}
        taking_files = [one["id"] for one in functions if len(one["inputs"]) == 3]
        assert taking_files
        for function in taking_files:
            body = {"data": [upload, "text", None], "fn_index": function, "session_hash": "x"}
            client.post("/gradio_api/queue/join", json=body).raise_for_status()
            with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "x"}) as stream:
                told = [line for line in stream.iter_lines() if "process_completed" in line]
            assert '"success":false' in told[0].replace(" ", "") and "secret" not in told[0]
        assert client.get(f"/gradio_api/file={secret}").status_code == 403


def test_a_process_serves_both_and_ends_while_a_page_is_open(model_folder: Path) -> None:
    """SIGTERM does not wait for pages, which stay open for as long as somebody looks at them."""
    with served(str(model_folder), "--demo", "--drain", "0.2", MULTITASK_API_TOKEN="right") as (process, address):
        with httpx2.Client(base_url=address, timeout=60, headers=basic("right")) as client:
            with client.stream("GET", "/demo/gradio_api/heartbeat/x") as page:
                lines = page.iter_lines()
                assert next(lines) == "data: ALIVE"
                answer = client.post("/embed", json={"texts": [TEXT]}, headers={"Authorization": "Bearer right"})
                assert answer.status_code == 200
                process.send_signal(signal.SIGTERM)
                for _ in lines:
                    pass
        assert process.wait(60) == 0


def test_a_space_runs_by_itself(model_folder: Path, tmp_path: Path) -> None:
    """What `make space` puts together holds all it needs of ours, and takes its model and its port from the Space."""
    subprocess.run(["make", "--silent", "space", f"OUT={tmp_path}"], cwd=REPOSITORY, check=True)
    assert (tmp_path / "README.md").read_text().startswith("---\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"MULTITASK_MODEL": str(model_folder), "GRADIO_SERVER_PORT": "0", "PYTHONSAFEPATH": ""}
    command = [sys.executable, "-u", "app.py", "--offline"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        page = httpx2.get(address_of(process), follow_redirects=True, timeout=60)
        assert page.status_code == 200 and model_folder.name in page.text
    finally:
        process.kill()
        process.communicate()


@pytest.mark.timeout(600)
def test_the_pictures_of_the_guide(chromium: Browser, tmp_path: Path) -> None:
    """Written for a model that the environment names: every tab, and the first on a phone."""
    folder = os.environ.get("MULTITASK_SCREENSHOTS")
    if not folder:
        pytest.skip("MULTITASK_SCREENSHOTS does not name the folder of a model")
    engine = Engine(folder, bf16=False, offline=True)
    table = tmp_path / "reviews.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "text"], *([number, text] for number, text in enumerate([*TEXTS, ""]))])
    PICTURES.mkdir(parents=True, exist_ok=True)
    with listening(demo_app(engine, folder=Path(folder))) as address:
        for name, size in (("demo", DESKTOP), ("demo_phone", PHONE)):
            page = chromium.new_page(viewport=size)
            page.goto(address)
            visit = Visit(page)
            for tab in fill_every_tab(visit, table, None):
                if size == DESKTOP or tab == TABS[0]:
                    page.mouse.move(0, 0)
                    page.wait_for_timeout(500)  # what fades has faded
                    page.screenshot(path=PICTURES / f"{name}_{tab.lower().replace(' ', '_')}.png", full_page=True)
            page.close()
    model, tokenizer = open_engine(folder, offline=True)
    engine.close()
    assert model.predict(list(TEXTS), tokenizer)
