"""Why a request gets no answer, as one JSON shape for every endpoint: the one that clients of OpenAI's API read.

    {"error": {"message": "...", "type": "invalid_request_error", "param": "texts.3", "code": "invalid_request"}}

Messages hold no text of a request, no path and no traceback.
"""

import logging
import traceback
from http import HTTPStatus
from typing import Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

SHOWN_ERRORS = 3
SHOWN_CHARACTERS = 80


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str = Field(description="The rule, what came instead, and the way out.")
    type: Literal["invalid_request_error", "server_error"] = Field(description="Whose turn it is: client or server.")
    param: str | None = Field(description="Where in the body, as in `texts.3`; null if it is no field.")
    code: str = Field(description="A word for programs, such as `queue_full`.")


class ErrorAnswer(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


class Refusal(Exception):
    """Ends a request with a status and a reason.

    Args:
        status (int): HTTP status.
        code (str): A word for programs.
        message (str): For people.
        param (str): The field at fault, if it is one.
        headers (dict): Further headers of the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.headers = status, code, message, param, headers

    def response(self) -> JSONResponse:
        """The answer to send."""
        whose = "server_error" if self.status >= 500 else "invalid_request_error"
        detail = {"message": self.message, "type": whose, "param": self.param, "code": self.code}
        return JSONResponse({"error": detail}, self.status, self.headers)


def busy(code: str, message: str) -> Refusal:
    """Too much at once: 429, come again in a second."""
    return Refusal(429, code, message, headers={"Retry-After": "1"})


def of_status(status: int, headers: dict[str, str] | None = None) -> Refusal:
    """What the framework refuses by itself: no such path, another method, a body that is no JSON."""
    reasons = {400: "The body is no JSON.", 404: "There is no such path; /openapi.json lists them."}
    message = reasons.get(status, f"{HTTPStatus(status).phrase}.")
    return Refusal(status, HTTPStatus(status).name.lower(), message, headers=headers)


def of_validation(error: RequestValidationError) -> Refusal:
    """A body that is not of its schema: where and why for the first few errors, and never what stood there."""
    found = [(".".join(str(part) for part in item["loc"][1:]), item["msg"]) for item in error.errors()]
    places = [shown(place) for place, _ in found]
    reasons = [f"{place or 'body'}: {shown(reason)}" for place, (_, reason) in zip(places, found, strict=True)]
    further = f" And {len(found) - SHOWN_ERRORS} more." if len(found) > SHOWN_ERRORS else ""
    return Refusal(422, "invalid_request", "; ".join(reasons[:SHOWN_ERRORS]) + "." + further, places[0] or None)


def shown(text: str) -> str:
    """The beginning of a text, as Unicode: a body's keys may be long, and half of a surrogate pair."""
    return text[:SHOWN_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def log_mistake(logger: logging.Logger, error: BaseException, where: str) -> None:
    """Write down an error of ours and the lines it went through, but not its message, which may hold a text."""
    logger.error("%s at %s\n%s", type(error).__name__, where, "".join(traceback.format_tb(error.__traceback__)))
