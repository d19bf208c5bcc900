"""The requests that the service answers, their limits, and what a bad one gets: a status of 4xx and one line."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..errors import UserError
from ..prediction.recommender import Recommender
from .batches import Batches, Best, BusyError, Options
from .metrics import CONTENT_TYPE, Measured, Metrics

MOST_BYTES = 2**20  # of a body
MOST_HISTORIES = 128  # in a request
MOST_ITEMS = 1000  # in a history, most of which the model cuts off
MOST_TOPK = 200
MOST_LISTED = 10_000  # items in exclude or candidates
PATHS = frozenset({"/recommend", "/health", "/metrics"})

Item = StrictStr | Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
# The first bad item ends the check: a million would take seconds.
History = Annotated[list[Item], Field(max_length=MOST_ITEMS, fail_fast=True)]
Listed = Annotated[list[Item], Field(max_length=MOST_LISTED, fail_fast=True)]


class Ask(BaseModel):
    """The body of POST /recommend; what is None is as the service was started."""

    model_config = ConfigDict(extra="forbid")

    histories: Annotated[list[History], Field(min_length=1, max_length=MOST_HISTORIES, fail_fast=True)]
    topk: Annotated[StrictInt, Field(ge=1, le=MOST_TOPK)] | None = None
    exclude_seen: StrictBool | None = None
    exclude: Listed = []
    candidates: Listed | None = None


def make_app(recommender: Recommender, name: str, topk: int = 10, exclude_seen: bool = True) -> FastAPI:
    """The service of one model.

    Args:
        name: of the model, for GET /health.
        topk, exclude_seen: of requests that do not say.
    """
    metrics = Metrics()
    batches = Batches(recommender, metrics)
    metrics.waiting = lambda: len(batches.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        computing = asyncio.create_task(batches.run())
        yield
        computing.cancel()
        with suppress(asyncio.CancelledError):
            await computing

    app = FastAPI(title="BERT4Rec", lifespan=lifespan, redoc_url=None)
    app.add_middleware(Measured, metrics=metrics, paths=PATHS)

    body = {"content": {"application/json": {"schema": Ask.model_json_schema()}}, "required": True}

    @app.post("/recommend", openapi_extra={"requestBody": body})
    async def recommend(request: Request) -> JSONResponse:
        # Whatever its content type, so that `curl --data` does as it is.
        ask = Ask.model_validate_json(await read_body(request))
        seen = exclude_seen if ask.exclude_seen is None else ask.exclude_seen
        candidates = None if ask.candidates is None else tuple(ask.candidates)
        options = Options(seen, tuple(ask.exclude), candidates)
        lists = await batches.recommend(ask.histories, ask.topk or topk, options)
        return JSONResponse({"recommendations": entries(lists)})

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ready", "model": name, "items": len(recommender.items), "max_len": recommender.max_len}

    @app.get("/metrics")
    async def show_metrics() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type=CONTENT_TYPE)

    refuse_in_one_line(app)
    return app


async def read_body(request: Request) -> bytes:
    """The body, of which no more is kept than is allowed, whatever length it claims to have."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"the body is larger than {MOST_BYTES:,} bytes: send fewer histories at a time")
    return bytes(body)


def entries(lists: list[Best]) -> list[list[dict[str, Any]]]:
    """Lists as JSON has them, where the most popular items have no score."""
    return [[{"item": item, "score": None if math.isnan(score) else score} for item, score in row] for row in lists]


def refuse_in_one_line(app: FastAPI) -> None:
    """Answer errors with {"error": LINE}."""

    def answer(status: int, line: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": line}, status, headers)

    @app.exception_handler(ValidationError)
    async def invalid(_: Request, error: ValidationError) -> JSONResponse:
        return answer(422, reason(error))

    @app.exception_handler(UserError)
    async def unanswerable(_: Request, error: UserError) -> JSONResponse:
        return answer(422, str(error))

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        known = "use POST /recommend, GET /health or GET /metrics"
        line = f"{error.detail}: {known}" if error.status_code in (404, 405) else error.detail
        return answer(error.status_code, line, error.headers)

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        return answer(503, "too many histories wait: try again", {"Retry-After": "1"})

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> JSONResponse:
        return answer(400, "the body is not whole")  # nobody is there to read it

    @app.exception_handler(Exception)  # which uvicorn logs
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return answer(500, "the service failed: its log says why")


def reason(error: ValidationError) -> str:
    """The first place that is wrong, such as histories.0.3, and how it should be."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = found[0]
    if first["type"] == "extra_forbidden":
        return f"{str(first['loc'][0])[:50]!r} is unknown: give {', '.join(Ask.model_fields)}"
    # An item that is neither text nor number is two errors of one place, which ends with names of the two types.
    place = [part for part in first["loc"] if isinstance(part, int) or part in Ask.model_fields]
    lines = [each["msg"] for each in found if each["loc"][: len(place)] == tuple(place)]
    how = " or ".join(lines).replace(" or Input should be", " or")
    return f"{'.'.join(map(str, place))}: {how}" if place else how
