"""The HTTP API keeps what `/openapi.json` promises, for bodies drawn from that schema and for bodies that hurt it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS
from test_serving import listening

from serving.api import create_app
from serving.engine import Engine
from serving.limits import Limits

POSTS = ("/predict", "/embed", "/similarity", "/v1/embeddings")
GETS = ("/info", "/health", "/ready", "/metrics")


@pytest.fixture(scope="module")
def schema(model_folder: Path) -> Iterator[Any]:
    """The schema of a server that runs, with the tiny model."""
    engine = Engine(str(model_folder))
    with listening(create_app(engine, Limits(max_body=2**28))) as address:  # 413 is none of its negatives
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")
    engine.close()


def check(operation: Any, mode: schemathesis.GenerationMode, examples: int) -> None:
    """Call an operation with requests drawn from (positive) or against (negative) its schema, and check the answers."""
    # the names of tasks, and the size of vectors, are the model's: the schema allows others, which get a 422
    names_are_free = [CHECKS.get_one("positive_data_acceptance")]

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=HealthCheck)
    @given(case=operation.as_strategy(generation_mode=mode))
    def answer_is_as_promised(case: Any) -> None:
        case.call_and_validate(excluded_checks=names_are_free)

    answer_is_as_promised()


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", POSTS)
def test_answers_to_any_body_are_as_the_schema_says(schema: Any, path: str, mode: schemathesis.GenerationMode) -> None:
    """Status, content type and body are declared; what hurts the schema is refused; nothing gets a status 500."""
    check(schema[path]["POST"], mode, examples=60)


@pytest.mark.slow
@pytest.mark.parametrize("path", GETS)
def test_answers_about_the_server_are_as_the_schema_says(schema: Any, path: str) -> None:
    check(schema[path]["GET"], schemathesis.GenerationMode.POSITIVE, examples=2)
