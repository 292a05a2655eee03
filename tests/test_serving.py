"""The HTTP API: answers are the offline ones, requests are joined and kept apart, bounds hold, errors look alike."""

import asyncio
import base64
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from fastapi import FastAPI

import serving.engine
from graph_export import export_graph
from handler import MAX_CHARACTERS, MAX_TEXTS
from serving.api import create_app
from serving.batcher import Batcher, QueueFull
from serving.engine import Engine
from serving.limits import Limits
from serving.server import DrainingServer

TEXTS = [
    "Anna won the game in Berlin.",
    "The old phone was bad.",
    "",
    "It was cold and it rained on the people of Paris, not on John and not on the team.",
    "sun",
    "the new city is very fast " * 40,  # longer than the model reads
]
PAIRS = [[TEXTS[0], TEXTS[1]], [TEXTS[3], TEXTS[4]]]
ERROR_FIELDS = {"message", "type", "param", "code"}


@asynccontextmanager
async def client_of(app: FastAPI, **options: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that calls an app whose batcher runs."""
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.state.service.running(),
        httpx2.AsyncClient(transport=transport, base_url="http://api", **options) as c,
    ):
        yield c


def ask(app: FastAPI, *requests: tuple[str, dict[str, Any]], **options: Any) -> list[httpx2.Response]:
    """The answers to requests that are sent at the same time: `(path, body)`."""

    async def send() -> list[httpx2.Response]:
        async with client_of(app, **options) as client:
            return await asyncio.gather(*(client.post(path, json=body) for path, body in requests))

    return asyncio.run(send())


def run(app: FastAPI, steps: Callable[[httpx2.AsyncClient], Awaitable[None]]) -> None:
    """Run steps with a client of an app."""

    async def run_steps() -> None:
        async with client_of(app) as client:
            await steps(client)

    asyncio.run(run_steps())


@contextmanager
def busy_model(engine: Engine) -> Iterator[None]:
    """While inside, the model's thread does something else."""
    free = threading.Event()
    waiting: Future[bool] = engine.worker.submit(free.wait, 60)
    try:
        yield
    finally:
        free.set()
        assert waiting.result(60)


def metric(app: FastAPI, name: str) -> float:
    """A number of `/metrics`."""
    lines = app.state.service.metrics.text().decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


async def until(condition: Callable[[], bool]) -> None:
    """Return when a condition holds; the test's own limit ends it if it never does."""
    while not condition():
        await asyncio.sleep(0.001)


def close(found: Any, expected: Any) -> bool:
    """Whether two answers are the same, numbers to 1e-4 (sums of other order in batches of other width)."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[name], expected[name]) for name in expected)
    if isinstance(expected, list | np.ndarray):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == expected if isinstance(expected, str) else abs(found - float(expected)) < 1e-4


def offline(engine: Engine, texts: list[Any], embeddings: bool = False, **options: Any) -> list[dict[str, Any]]:
    """What `MultiTaskModel.predict` says, one text at a time."""
    texts = [text if isinstance(text, str) else tuple(text) for text in texts]
    answers = [engine.model.predict([text], engine.tokenizer, bf16=False, **options)[0] for text in texts]
    return [
        {name: value for name, value in answer.items() if embeddings or name != "sentence_embedding"}
        for answer in answers
    ]


def test_every_client_gets_the_offline_answer_to_its_own_texts(engine: Engine) -> None:
    app = create_app(engine, Limits(max_batch=8))
    items = [*TEXTS, *PAIRS]
    requests = [items[i % 8 :][: 1 + i % 3] for i in range(40)]
    answers = ask(app, *(("/predict", {"texts": texts, "embeddings": True}) for texts in requests))
    expected = dict(zip(map(str, items), offline(engine, items, embeddings=True), strict=True))
    for texts, answer in zip(requests, answers, strict=True):
        assert close(answer.json()["answers"], [expected[str(text)] for text in texts])


def test_requests_at_one_time_share_one_call_of_the_model(engine: Engine) -> None:
    app = create_app(engine, Limits(max_batch=11, max_wait=60))
    requests = [("/predict", {"texts": [text], "tasks": ["topic"]}) for text in TEXTS[:5]]

    async def steps(client: httpx2.AsyncClient) -> None:
        first = asyncio.create_task(client.post("/embed", json={"texts": TEXTS[:2]}))
        await asyncio.sleep(0.05)  # it waits for others, though the model is free
        others = [*requests, ("/similarity", {"pairs": PAIRS})]
        answers = await asyncio.gather(first, *(client.post(path, json=body) for path, body in others))
        assert [answer.status_code for answer in answers] == [200] * 7

    run(app, steps)
    assert metric(app, "multitask_batch_texts_count") == 1
    assert metric(app, "multitask_batch_texts_sum") == 5 + 2 + 4


def test_a_request_larger_than_a_batch_is_answered_in_several_calls(engine: Engine) -> None:
    app = create_app(engine, Limits(max_batch=4))
    (answer,) = ask(app, ("/embed", {"texts": [*TEXTS, *TEXTS, "sun"]}))
    assert close(answer.json()["embeddings"], engine.model.encode([*TEXTS, *TEXTS, "sun"], engine.tokenizer))
    assert metric(app, "multitask_batch_texts_count") == 4


def test_options_stay_with_their_request(engine: Engine) -> None:
    app = create_app(engine, Limits(max_wait=0.05))
    options: list[dict[str, Any]] = [
        {"tasks": ["topic"], "top_k": 1},
        {"tasks": ["topic", "tags"], "top_k": 2},
        {"tasks": []},
        {"tasks": ["ner"], "aggregation_strategy": "none"},
        {"tasks": ["ner", "upos"], "aggregation_strategy": "average"},
        {"tasks": ["rating"], "aggregation_strategy": "max"},
        {},
    ]
    answers = ask(app, *(("/predict", {"texts": TEXTS[:4], **of_request}) for of_request in options))
    for of_request, answer in zip(options, answers, strict=True):
        assert close(answer.json()["answers"], offline(engine, TEXTS[:4], **of_request)), of_request
    assert metric(app, "multitask_batch_texts_count") == 3  # a call for each strategy that makes a difference


def test_embeddings_are_those_of_encode(engine: Engine) -> None:
    as_is, unit = ask(
        create_app(engine, Limits()),
        ("/embed", {"texts": TEXTS}),
        ("/embed", {"texts": TEXTS, "normalize": True}),
    )
    assert close(as_is.json()["embeddings"], engine.model.encode(TEXTS, engine.tokenizer))
    assert close(unit.json()["embeddings"], engine.model.encode(TEXTS, engine.tokenizer, normalize=True))


def test_similarities_are_cosines_of_encode(engine: Engine) -> None:
    vectors = engine.model.encode(TEXTS, engine.tokenizer, normalize=True)
    pairs, square, wide = ask(
        create_app(engine, Limits()),
        ("/similarity", {"pairs": [TEXTS[:2], TEXTS[2:4]]}),
        ("/similarity", {"texts": TEXTS}),
        ("/similarity", {"texts": TEXTS[:2], "others": TEXTS[2:]}),
    )
    cosines = vectors @ vectors.T
    assert close(pairs.json()["scores"], [cosines[0, 1], cosines[2, 3]])
    assert close(square.json()["scores"], cosines)
    assert close(wide.json()["scores"], cosines[:2, 2:])


def test_the_openai_endpoint_gives_both_encodings_and_counts_what_the_model_reads(engine: Engine) -> None:
    body = {"model": "any", "input": TEXTS}
    app = create_app(engine, Limits())
    floats, packed = ask(app, ("/v1/embeddings", body), ("/v1/embeddings", {**body, "encoding_format": "base64"}))
    expected = engine.model.encode(TEXTS, engine.tokenizer, normalize=True)
    assert close([item["embedding"] for item in floats.json()["data"]], expected)
    vectors = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in packed.json()["data"]]
    assert close(np.stack(vectors), expected)
    read = engine.tokenizer(TEXTS, truncation=True, max_length=engine.max_length)["input_ids"]
    assert floats.json()["usage"]["prompt_tokens"] == sum(map(len, read))


def test_a_request_past_its_deadline_is_refused_and_costs_the_model_nothing(engine: Engine) -> None:
    app = create_app(engine, Limits(max_batch=1, max_wait=0, deadline=0.3))

    async def steps(client: httpx2.AsyncClient) -> None:
        with busy_model(engine):
            late = await asyncio.gather(*(client.post("/embed", json={"texts": [text]}) for text in TEXTS[:3]))
            assert [answer.status_code for answer in late] == [503] * 3
            assert {answer.json()["error"]["code"] for answer in late} == {"deadline"}
            assert app.state.service.batcher.queued == 0
        assert (await client.post("/embed", json={"texts": ["sun"]})).status_code == 200

    run(app, steps)
    assert metric(app, "multitask_batch_texts_sum") == 2  # the one that was with the model already, and the last


def test_a_client_that_leaves_takes_its_texts_out_of_the_queue(engine: Engine) -> None:
    app = create_app(engine, Limits(max_batch=1, max_wait=0))
    batcher = app.state.service.batcher
    body = json.dumps({"texts": TEXTS[:3]}).encode()
    scope = {"type": "http", "method": "POST", "path": "/embed", "query_string": b"", "root_path": "", "scheme": "http"}
    scope |= {"headers": [(b"content-type", b"application/json")], "server": ("api", 80), "http_version": "1.1"}
    sent = []

    async def steps(client: httpx2.AsyncClient) -> None:
        left = asyncio.Event()
        parts = [{"type": "http.request", "body": body}]

        async def receive() -> dict[str, Any]:
            if not parts:
                await left.wait()
            return parts.pop() if parts else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        with busy_model(engine):
            first = asyncio.create_task(client.post("/embed", json={"texts": ["sun"]}))
            await until(lambda: batcher.jobs == [] and metric(app, "multitask_batch_texts_count") == 1)
            leaving = asyncio.create_task(app(scope, receive, send))
            await until(lambda: batcher.queued == 3)
            left.set()
            await leaving
            assert batcher.queued == 0
        assert (await first).status_code == 200

    run(app, steps)
    assert sent == [] and metric(app, "multitask_batch_texts_sum") == 1
    assert metric(app, "multitask_requests_in_flight") == 0


def test_a_full_queue_refuses_at_once_and_answers_those_it_holds(engine: Engine) -> None:
    app = create_app(engine, Limits(max_queue=2 * MAX_TEXTS))
    batcher = app.state.service.batcher

    async def steps(client: httpx2.AsyncClient) -> None:
        with busy_model(engine):
            held = [asyncio.create_task(client.post("/embed", json={"texts": ["sun"] * MAX_TEXTS})) for _ in range(2)]
            await until(lambda: batcher.queued == 2 * MAX_TEXTS - 32)
            refused = await client.post("/embed", json={"texts": ["sun"] * 33})
            assert refused.status_code == 429 and refused.headers["Retry-After"] == "1"
            assert refused.json()["error"]["code"] == "queue_full"
        assert [len((await answer).json()["embeddings"]) for answer in held] == [MAX_TEXTS] * 2

    run(app, steps)


def test_no_more_requests_are_under_way_than_may(engine: Engine) -> None:
    app = create_app(engine, Limits(max_requests=2))

    async def steps(client: httpx2.AsyncClient) -> None:
        with busy_model(engine):
            held = [asyncio.create_task(client.post("/embed", json={"texts": ["sun"]})) for _ in range(2)]
            await until(lambda: app.state.service.in_flight == 2)
            refused = await client.post("/embed", json={"texts": ["sun"]})
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
            assert (await client.get("/health")).status_code == 200
        assert [(await answer).status_code for answer in held] == [200, 200]

    run(app, steps)


SECRET = "a secret sentence"
BAD_BODIES: dict[str, tuple[str, Any, str]] = {
    "no texts": ("/predict", {}, "texts"),
    "an empty list": ("/predict", {"texts": []}, "texts"),
    "one string": ("/embed", {"texts": SECRET}, "texts"),
    "a number": ("/embed", {"texts": [SECRET, 7]}, "texts.1"),
    "a pair to embed": ("/embed", {"texts": [[SECRET, SECRET]]}, "texts.0"),
    "too many texts": ("/embed", {"texts": [SECRET] * (MAX_TEXTS + 1)}, "texts"),
    "a text too long": ("/embed", {"texts": ["x" * (MAX_CHARACTERS + 1)]}, "texts.0"),
    "half a surrogate pair": ("/embed", {"texts": ["\ud800"]}, "texts.0"),
    "an unknown field": ("/predict", {"texts": [SECRET], SECRET[2:]: 1}, SECRET[2:]),
    "an unknown task": ("/predict", {"texts": [SECRET], "tasks": [SECRET]}, "tasks"),
    "an unknown strategy": ("/predict", {"texts": [SECRET], "aggregation_strategy": SECRET}, "aggregation_strategy"),
    "top_k of 0": ("/predict", {"texts": [SECRET], "top_k": 0}, "top_k"),
    "top_k as text": ("/predict", {"texts": [SECRET], "top_k": "3"}, "top_k"),
    "pairs and texts": ("/similarity", {"texts": [SECRET], "pairs": [[SECRET, SECRET]]}, None),
    "three texts a pair": ("/similarity", {"pairs": [[SECRET] * 3]}, None),
    "numbers of tokens": ("/v1/embeddings", {"model": "m", "input": [1, 2]}, "input"),
    "fewer dimensions": ("/v1/embeddings", {"model": "m", "input": SECRET, "dimensions": 2}, "dimensions"),
    "a normalising model's raw vectors": ("/embed", {"texts": [SECRET], "normalize": False}, "normalize"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_body_is_refused_with_its_field_and_without_its_text(engine: Engine, case: str) -> None:
    path, body, param = BAD_BODIES[case]

    async def steps(client: httpx2.AsyncClient) -> None:
        headers = {"Content-Type": "application/json"}
        answer = await client.post(path, content=json.dumps(body), headers=headers)
        error = answer.json()["error"]
        assert answer.status_code == 422 and error.keys() == ERROR_FIELDS
        assert error["type"] == "invalid_request_error"
        if param is not None:
            assert error["param"].startswith(param)
        assert SECRET not in answer.text and "xxx" not in answer.text

    run(create_app(engine, Limits()), steps)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b'{"texts": ["\xff"]}', b'{"texts": ' + b"9" * 5000 + b"}"]
)
def test_what_is_no_json_is_refused_in_the_same_shape(engine: Engine, content: bytes) -> None:
    async def steps(client: httpx2.AsyncClient) -> None:
        answer = await client.post("/embed", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422) and answer.json()["error"].keys() == ERROR_FIELDS

    run(create_app(engine, Limits()), steps)


def test_unknown_paths_and_methods_are_refused_in_the_same_shape(engine: Engine) -> None:
    async def steps(client: httpx2.AsyncClient) -> None:
        answers = [await client.get("/nowhere"), await client.get("/predict")]
        assert [answer.status_code for answer in answers] == [404, 405]
        assert all(answer.json()["error"].keys() == ERROR_FIELDS for answer in answers)
        assert answers[1].headers["Allow"] == "POST"

    app = create_app(engine, Limits())
    run(app, steps)
    assert 'endpoint="other"' in app.state.service.metrics.text().decode()
    assert "nowhere" not in app.state.service.metrics.text().decode()


def test_a_large_body_is_refused_with_and_without_its_length(engine: Engine) -> None:
    read = []

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            read.append(1000)
            yield b" " * 1000

    async def steps(client: httpx2.AsyncClient) -> None:
        declared = await client.post("/embed", content=b" " * 3000)
        undeclared = await client.post("/embed", content=chunks())
        assert "content-length" not in undeclared.request.headers
        for answer in (declared, undeclared):
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert len(read) <= 4  # it stops reading

    run(create_app(engine, Limits(max_body=2000)), steps)


@pytest.mark.parametrize(
    ("sent", "status"),
    [(None, 401), ("Bearer wrong", 401), ("Basic right", 401), ("right", 401), ("Bearer r\xefght", 401),
     ("Bearer right", 200), ("bearer right", 200)],
)  # fmt: skip
def test_only_the_token_opens(engine: Engine, sent: str | None, status: int) -> None:
    async def steps(client: httpx2.AsyncClient) -> None:
        headers = {} if sent is None else {"Authorization": sent.encode("latin-1")}
        for path in ("/info", "/metrics", "/openapi.json"):
            assert (await client.get(path, headers=headers)).status_code == status
        answer = await client.post("/embed", json={"texts": ["sun"]}, headers=headers)
        assert answer.status_code == status and "right" not in answer.text
        assert (await client.get("/health")).status_code == (await client.get("/ready")).status_code == 200

    run(create_app(engine, Limits(), token="right"), steps)


def test_while_it_drains_newcomers_are_refused_and_requests_under_way_are_answered(engine: Engine) -> None:
    app = create_app(engine, Limits(drain=0))

    async def steps(client: httpx2.AsyncClient) -> None:
        with busy_model(engine):
            held = asyncio.create_task(client.post("/embed", json={"texts": ["sun"]}))
            await until(lambda: app.state.service.in_flight == 1)
            finishing = asyncio.create_task(app.state.service.finish())
            await until(lambda: app.state.service.draining)
            refused = [await client.get("/ready"), await client.post("/embed", json={"texts": ["sun"]})]
            assert [(answer.status_code, answer.json()["error"]["code"]) for answer in refused] == [
                (503, "draining")
            ] * 2
            assert (await client.get("/health")).status_code == 200 and not finishing.done()
        assert (await held).status_code == 200
        await finishing

    run(app, steps)


def test_a_mistake_of_ours_shows_neither_text_nor_path_in_answer_or_log(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(engine, Limits())

    async def fail(texts: list[Any], tasks: list[str], strategy: str) -> list[dict[str, Any]]:
        raise RuntimeError(f"cannot read {texts}")

    app.state.service.batcher.predict = fail
    with caplog.at_level(logging.DEBUG):
        (answer,) = ask(app, ("/embed", {"texts": [SECRET]}))
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "Traceback" not in answer.text and ".py" not in answer.text and SECRET not in answer.text
    assert "RuntimeError" in caplog.text and SECRET not in caplog.text


def test_one_request_that_fails_fails_alone() -> None:
    calls = []

    async def predict(texts: list[Any], tasks: list[str], strategy: str) -> list[dict[str, Any]]:
        calls.append(texts)
        if "bad" in texts:
            raise RuntimeError
        return [{"sentence_embedding": text} for text in texts]

    async def steps() -> list[Any]:
        batcher = Batcher(predict, Limits(max_batch=4, max_wait=30))
        running = asyncio.create_task(batcher.run())
        jobs = [batcher.answer(texts) for texts in (["a", "b"], ["bad"], ["c"])]
        answers = await asyncio.gather(*jobs, return_exceptions=True)
        running.cancel()
        return answers

    first, failed, last = asyncio.run(steps())
    assert [item["sentence_embedding"] for item in (*first, *last)] == ["a", "b", "c"]
    assert isinstance(failed, RuntimeError) and calls[0] == ["a", "b", "bad", "c"]


def test_a_lonely_text_waits_no_longer_than_it_may() -> None:
    async def predict(texts: list[Any], tasks: list[str], strategy: str) -> list[dict[str, Any]]:
        return [{} for _ in texts]

    async def steps() -> None:
        batcher = Batcher(predict, Limits(max_batch=2, max_wait=0.01))
        running = asyncio.create_task(batcher.run())
        assert await batcher.answer(["a"]) == [{}]
        running.cancel()
        with pytest.raises(QueueFull):
            await batcher.answer(["a"] * 3000)

    asyncio.run(asyncio.wait_for(steps(), 30))


def test_every_example_of_the_schema_is_answered_and_every_operation_has_one(engine: Engine) -> None:
    app = create_app(engine, Limits())
    schema = app.openapi()
    bodies = schema["components"]["schemas"]
    requests = [
        (path, example)
        for path, operations in schema["paths"].items()
        if "post" in operations
        for name in [path_schema(operations["post"])]
        for reference in name
        for example in bodies[reference]["examples"]
    ]
    assert {path for path, _ in requests} == {"/predict", "/embed", "/similarity", "/v1/embeddings"}
    assert [answer.status_code for answer in ask(app, *requests)] == [200] * len(requests) == [200] * 5
    assert "HTTPValidationError" not in bodies
    guarded = create_app(engine, Limits(), token="right").openapi()["paths"]
    locked = {
        path for path, operations in guarded.items() for operation in operations.values() if "security" in operation
    }
    assert locked == guarded.keys() - {"/health", "/ready"} and "security" not in str(schema["paths"])


def path_schema(operation: dict[str, Any]) -> list[str]:
    """The names of the schemas that an operation's body may have."""
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    return [choice["$ref"].rpartition("/")[2] for choice in schema.get("anyOf", [schema])]


def test_info_says_what_is_served_and_no_path(engine: Engine, model_folder: Path) -> None:
    async def steps(client: httpx2.AsyncClient) -> None:
        answer = await client.get("/info")
        info = answer.json()
        assert info["tasks"].keys() == engine.tasks.keys() and info["engine"] == "torch"
        assert info["tasks"]["topic"] == {
            "kind": "text-classification",
            "problem_type": "single_label_classification",
            "labels": ["Sports", "Technology", "Weather"],
        }
        assert info["limits"]["max_texts"] == MAX_TEXTS and info["limits"]["max_queue"] == 2048
        assert str(model_folder.parent) not in answer.text and info["model"] == model_folder.name

    run(create_app(engine, Limits()), steps)


def test_a_bound_that_lets_nothing_through_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="max_batch must be above 0"):
        Limits(max_batch=0)
    with pytest.raises(ValueError, match="max_wait must be 0 or more"):
        Limits(max_wait=-0.001)
    with pytest.raises(ValueError, match="The queue must hold 512"):
        create_app(engine, Limits(max_queue=511))


def test_one_thread_opens_the_model_and_computes_all_that_is_asked(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            threads.append(threading.current_thread().name)
            return function(*args)

        return call

    for name in ("open_engine", "predict"):
        monkeypatch.setattr(serving.engine, name, watched(getattr(serving.engine, name)))
    engine = Engine(str(model_folder))
    opened_with = len(threads)
    ask(create_app(engine, Limits()), ("/predict", {"texts": TEXTS}), ("/embed", {"texts": TEXTS}))
    engine.close()
    assert len(threads) > opened_with > 1
    assert len(set(threads)) == 1 and threading.current_thread().name not in threads


@pytest.mark.parametrize("bf16", [True, False])
def test_weights_stay_converted_between_calls_if_the_model_multiplies_in_bfloat16(
    model_folder: Path, bf16: bool
) -> None:
    engine = Engine(str(model_folder), bf16=bf16)
    assert engine.worker.submit(torch.is_autocast_enabled, "cpu").result() is bf16
    found = engine.worker.submit(engine.predict_now, TEXTS, list(engine.tasks), "first").result()
    engine.close()
    expected = engine.model.predict(TEXTS, engine.tokenizer, bf16=bf16)
    assert all(
        np.allclose(one["sentence_embedding"], other["sentence_embedding"], atol=0.02 if bf16 else 1e-6)
        for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("graph_format", ["onnx", "openvino"])
def test_exported_graphs_give_the_same_answers(engine: Engine, tmp_path: Path, graph_format: str) -> None:
    export_graph(engine.model, engine.tokenizer, tmp_path, graph_format, "fp32")
    graph = Engine(str(tmp_path))
    predicted, embedded = ask(
        create_app(graph, Limits()), ("/predict", {"texts": [*TEXTS, *PAIRS]}), ("/embed", {"texts": TEXTS})
    )
    assert close(predicted.json()["answers"], offline(engine, [*TEXTS, *PAIRS]))
    assert close(embedded.json()["embeddings"], engine.model.encode(TEXTS, engine.tokenizer))
    assert graph.description()["engine"] == graph_format
    graph.close()


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The address of an app that is served over loopback by a thread."""
    server = DrainingServer(app, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.slow
def test_the_openai_client_reads_embeddings_and_errors(engine: Engine) -> None:
    import openai

    with listening(create_app(engine, Limits(), token="right")) as address:
        with openai.OpenAI(base_url=f"{address}/v1", api_key="right", max_retries=0) as client:
            for options in ({}, {"encoding_format": "float"}):
                found = client.embeddings.create(model="any", input=TEXTS, **options)
                expected = engine.model.encode(TEXTS, engine.tokenizer, normalize=True)
                assert close([item.embedding for item in found.data], expected)
            with pytest.raises(openai.UnprocessableEntityError, match="dimensions"):
                client.embeddings.create(model="any", input=TEXTS, dimensions=3)
        with openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0) as stranger:
            with pytest.raises(openai.AuthenticationError):
                stranger.embeddings.create(model="any", input=TEXTS)
