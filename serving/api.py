"""The HTTP endpoints: each turns a body into texts for the batcher, and answers into a body. One app, one model.

app = create_app(Engine("outputs/news"), Limits(), token=None)     # an ASGI app; `serve_hf.py` runs it
"""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from handler import MAX_CHARACTERS, MAX_TEXTS
from pipeline_multitask import Text
from serving import bodies
from serving.batcher import EMBEDDING, QueueFull
from serving.engine import Engine
from serving.gate import Gate
from serving.limits import Limits
from serving.refusal import ErrorAnswer, Refusal, busy, of_status, of_validation
from serving.service import Service

router = APIRouter()
open_router = APIRouter()
"""Endpoints that need no token."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The body is no JSON."},
    401: {"model": ErrorAnswer, "description": "The server wants a token."},
    413: {"model": ErrorAnswer, "description": "The body is too large."},
    422: {"model": ErrorAnswer, "description": "The body is not of this schema, or asks for what is not there."},
    429: {"model": ErrorAnswer, "description": "Too much at once: come again after Retry-After seconds."},
    500: {"model": ErrorAnswer, "description": "A mistake of the server."},
    503: {"model": ErrorAnswer, "description": "The deadline passed, or the server is shutting down."},
}
GUARDED: dict[int | str, dict[str, Any]] = {status: REFUSALS[status] for status in (401, 429, 500, 503)}


def create_app(engine: Engine, limits: Limits, token: str | None = None) -> FastAPI:
    """The app that serves one model.

    Args:
        engine (Engine): The model.
        limits (Limits): Bounds.
        token (str): What clients must send as bearer token; None for everybody.

    Raises:
        ValueError: if the queue could not hold the texts of the largest request.
    """
    if limits.max_queue < 2 * MAX_TEXTS:
        raise ValueError(f"The queue must hold {2 * MAX_TEXTS} texts, as a request may have; got {limits.max_queue}.")
    service = Service(engine, limits, token)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    description = f"Every task's answer and the sentence embedding of {engine.name}, from one pass of its encoder."
    app = FastAPI(
        title="Multi-task sentence transformer",
        description=description,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(Gate, service=service)
    app.add_exception_handler(RequestValidationError, lambda request, error: of_validation(error).response())
    app.add_exception_handler(HTTPException, refuse_as_framework)
    # the gate looks at tokens; this says in the schema that there is one
    app.include_router(router, dependencies=[Depends(HTTPBearer(auto_error=False))] if token else [])
    app.include_router(open_router)
    return app


def refuse_as_framework(request: Request, error: Exception) -> Response:
    """What the framework refuses (an HTTPException, which it is registered for), in the shape of all errors."""
    assert isinstance(error, HTTPException), error
    return of_status(error.status_code, dict(error.headers or {})).response()


def service_of(request: Request) -> Service:
    """What the request's app serves."""
    return request.app.state.service


async def ask(
    request: Request, texts: list[Text], tasks: list[str] | None = None, strategy: str = "first"
) -> list[dict[str, Any]]:
    """The batcher's answers, or a Refusal if its queue is full."""
    try:
        return await service_of(request).batcher.answer(texts, tasks or [], strategy)
    except QueueFull:
        raise busy("queue_full", "Too many texts are waiting for the model. Come again later.") from None


async def embed(request: Request, texts: list[str]) -> np.ndarray:
    """Sentence embeddings as the model gives them. Shape (texts, size)."""
    return np.stack([answer[EMBEDDING] for answer in await ask(request, list(texts))])


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Rows over their length; zeros stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@router.post("/predict", response_model=bodies.PredictAnswer, responses=REFUSALS, tags=["model"])
async def predict(body: bodies.PredictBody, request: Request) -> Response:
    """Every asked task's answer for every text."""
    engine = service_of(request).engine
    tasks = list(engine.tasks) if body.tasks is None else list(dict.fromkeys(body.tasks))
    if not set(tasks) <= set(engine.tasks):
        known = ", ".join(engine.tasks) or "none"
        raise Refusal(422, "unknown_task", f"There is an unknown task; this model's tasks are: {known}.", "tasks")
    strategy = body.aggregation_strategy if engine.tag_tasks & set(tasks) else "first"
    texts = [text if isinstance(text, str) else (text[0], text[1]) for text in body.texts]
    answers = await ask(request, texts, tasks, strategy)
    return JSONResponse({"answers": [plain(answer, body.top_k, body.embeddings) for answer in answers]})


def plain(answer: dict[str, Any], top_k: int | None, embeddings: bool) -> dict[str, Any]:
    """An answer in plain JSON types, its scores cut to the best `top_k`, with or without the embedding."""
    found = {}
    for name, value in answer.items():
        if isinstance(value, np.ndarray):
            value = value.tolist()
        elif isinstance(value, dict) and "scores" in value:
            value = value | {"scores": dict(list(value["scores"].items())[:top_k])}
        if name != EMBEDDING or embeddings:
            found[name] = value
    return found


@router.post("/embed", response_model=bodies.EmbedAnswer, responses=REFUSALS, tags=["model"])
async def embed_texts(body: bodies.EmbedBody, request: Request) -> Response:
    """The sentence embedding of every text."""
    normalized = service_of(request).engine.model.config.normalize_embeddings
    if body.normalize is False and normalized:
        raise Refusal(
            422, "normalized_model", "This model's embeddings have length 1. Leave normalize out.", "normalize"
        )
    vectors = await embed(request, body.texts)
    return JSONResponse({"embeddings": (unit_length(vectors) if body.normalize else vectors).tolist()})


@router.post("/similarity", response_model=bodies.SimilarityAnswer, responses=REFUSALS, tags=["model"])
async def similarity(body: bodies.PairsBody | bodies.MatrixBody, request: Request) -> Response:
    """Cosines of sentence embeddings: one for every pair, or a matrix."""
    if isinstance(body, bodies.PairsBody):
        vectors = unit_length(await embed(request, [text for pair in body.pairs for text in pair]))
        scores = (vectors[::2] * vectors[1::2]).sum(1)
    else:
        vectors = unit_length(await embed(request, [*body.texts, *(body.others or [])]))
        rows = len(body.texts)
        scores = vectors[:rows] @ (vectors[rows:] if body.others else vectors).T
    return JSONResponse({"scores": scores.clip(-1, 1).tolist()})


@router.post("/v1/embeddings", response_model=bodies.OpenAIAnswer, responses=REFUSALS, tags=["OpenAI"])
async def openai_embeddings(body: bodies.OpenAIBody, request: Request) -> Response:
    """Sentence embeddings for clients of OpenAI's API."""
    engine = service_of(request).engine
    size = engine.model.config.embedding_size
    if body.dimensions not in (None, size):
        raise Refusal(422, "unknown_dimensions", f"This model's embeddings have {size} dimensions.", "dimensions")
    texts = [body.input] if isinstance(body.input, str) else body.input
    vectors = unit_length(await embed(request, texts))
    tokens = await engine.count_tokens(texts)
    in_base64 = body.encoding_format == "base64"
    shown = [base64.b64encode(row.astype("<f4").tobytes()).decode() if in_base64 else row.tolist() for row in vectors]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(shown)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": engine.name, "usage": usage})


@router.get("/info", response_model=bodies.InfoAnswer, responses=GUARDED, tags=["server"])
async def info(request: Request) -> Response:
    """The model's tasks and labels, the bounds, the versions."""
    service = service_of(request)
    limits = {"max_texts": MAX_TEXTS, "max_characters": MAX_CHARACTERS} | asdict(service.limits)
    return JSONResponse(service.engine.description() | {"limits": limits})


@open_router.get("/health", response_model=bodies.StateAnswer, tags=["server"])
async def health() -> Response:
    """Whether the process lives (liveness probe)."""
    return JSONResponse({"status": "ok"})


@open_router.get("/ready", response_model=bodies.StateAnswer, responses={503: REFUSALS[503]}, tags=["server"])
async def ready(request: Request) -> Response:
    """Whether new requests are answered (readiness probe)."""
    if not service_of(request).ready:
        raise Refusal(503, "draining", "This server takes no new requests.")
    return JSONResponse({"status": "ok"})


@router.get(
    "/metrics", response_class=Response, tags=["server"], responses=GUARDED | {200: {"content": {"text/plain": {}}}}
)
async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
