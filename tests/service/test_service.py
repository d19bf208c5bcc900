"""The service over HTTP: the Recommender's lists, one line for a bad request, limits, metrics, and batches."""

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import UserError
from src.prediction.recommender import Id
from src.service.app import MOST_BYTES, MOST_HISTORIES, MOST_ITEMS, MOST_LISTED, MOST_TOPK, make_app
from src.service.batches import HISTORIES_AT_ONCE, MOST_WAITING, Batches, Best, BusyError, Options
from src.service.metrics import Metrics
from tests.prediction.test_recommender import IDS, POPULAR, make_recommender

RECOMMENDER, _ = make_recommender()
HISTORY = ["12", "film,3", "item 3"]


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(make_app(RECOMMENDER, "last.ckpt", topk=4)) as client:
        yield client


def recommend(client: TestClient, **body: Any) -> list[list[tuple[str, float]]]:
    answer = client.post("/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return [[(entry["item"], entry["score"]) for entry in row] for row in answer.json()["recommendations"]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"topk": 7},
        {"exclude_seen": False},
        {"exclude": ["item 1", 12]},
        {"candidates": ["item 1", "0012", "unheard of"], "exclude": ["0012"]},
        {"topk": None, "exclude_seen": None, "candidates": None},
    ],
)
def test_lists_are_those_of_the_recommender(client: TestClient, options: dict[str, Any]) -> None:
    given = {key: value for key, value in options.items() if value is not None}
    expected = RECOMMENDER.recommend_with_scores([HISTORY, ["été"]], **{"topk": 4, **given})
    got = recommend(client, histories=[HISTORY, ["été"]], **options)
    assert [[item for item, _ in row] for row in got] == [[item for item, _ in row] for row in expected]
    for row, others in zip(got, expected, strict=True):
        assert [score for _, score in row] == pytest.approx([score for _, score in others])


def test_ids_are_texts_or_numbers(client: TestClient) -> None:
    assert recommend(client, histories=[[12, "été"]]) == recommend(client, histories=[["12", "été"]])


def test_without_a_known_item_come_the_most_popular_with_null(client: TestClient) -> None:
    rows = recommend(client, histories=[[], ["unheard of"], HISTORY])
    assert rows[:2] == [[(item, None) for item in POPULAR[:4]]] * 2
    assert None not in [score for _, score in rows[2]]


def test_the_settings_are_the_defaults() -> None:
    with TestClient(make_app(RECOMMENDER, "", topk=2, exclude_seen=False)) as client:
        [row] = recommend(client, histories=[HISTORY])
    assert [item for item, _ in row] == RECOMMENDER.recommend([HISTORY], 2, exclude_seen=False)[0]


def refused(answer: Any, status: int) -> str:
    """The line of a refusal."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["error"]
    assert "\n" not in body["error"]
    assert "Traceback" not in body["error"]
    return str(body["error"])


BAD: list[tuple[bytes, str]] = [
    (b"", "Invalid JSON"),
    (b"{", "Invalid JSON"),
    (b"{'histories': []}", "Invalid JSON"),
    (b'{"histories": [["\xff"]]}', "Invalid JSON"),
    (b'{"histories": [["\\ud800"]]}', "Invalid JSON"),
    (b"[" * 100_000, "recursion limit"),
    (b'{"histories": ' + b"[" * 150 + b"]" * 150 + b"}", "histories.0.0: "),
    (b'{"histories": [["12", 1' + b"0" * 5000 + b"]]}", "number out of range"),
    (b'{"histories": [["12", 1' + b"0" * 500 + b"]]}", "histories.0.1: "),
    (b'{"histories": [["12", 1e999]]}', "histories.0.1: "),
    (b'{"histories": [[NaN]]}', "histories.0.0: "),
    (b"[]", "object"),
    (b"null", "object"),
    (b"{}", "histories: Field required"),
    (b'{"histories": []}', "histories: "),
    (b'{"histories": "12"}', "histories: "),
    (b'{"histories": ["12"]}', "histories.0: "),
    (b'{"histories": {"0": ["12"]}}', "histories: "),
    (b'{"histories": [["12"], ["12", true]]}', "histories.1.1: Input should be a valid string or a valid integer"),
    (b'{"histories": [["12", null]]}', "histories.0.1: "),
    (b'{"histories": [["12"]], "topk": 0}', "topk: "),
    (b'{"histories": [["12"]], "topk": "3"}', "topk: "),
    (b'{"histories": [["12"]], "topk": 1e30}', "topk: "),
    (b'{"histories": [["12"]], "topk": true}', "topk: "),
    (b'{"histories": [["12"]], "exclude_seen": 1}', "exclude_seen: "),
    (b'{"histories": [["12"]], "exclude": null}', "exclude: "),
    (b'{"histories": [["12"]], "exclude": [[]]}', "exclude.0: "),
    (b'{"histories": [["12"]], "top_k": 3}', "'top_k' is unknown: give histories, topk, "),
    (b'{"histories": [["12"]], "candidates": ["unheard of"]}', "none of the candidates"),
    (json.dumps({"histories": [["12"]], "topk": MOST_TOPK + 1}).encode(), f"topk: .*{MOST_TOPK}"),
    (json.dumps({"histories": [["12"]] * (MOST_HISTORIES + 1)}).encode(), f"histories: .*{MOST_HISTORIES}"),
    (json.dumps({"histories": [["12"] * (MOST_ITEMS + 1)]}).encode(), f"histories.0: .*{MOST_ITEMS}"),
    (json.dumps({"histories": [["12"]], "exclude": ["12"] * (MOST_LISTED + 1)}).encode(), f"exclude: .*{MOST_LISTED}"),
]


@pytest.mark.parametrize(("body", "line"), BAD, ids=range(len(BAD)))
def test_a_bad_request_gets_one_line(client: TestClient, body: bytes, line: str) -> None:
    assert re.search(line, refused(client.post("/recommend", content=body), 422))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(IDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=12,
)
keys = st.sampled_from(["histories", "topk", "exclude_seen", "exclude", "candidates", "other"])
asks = st.fixed_dictionaries({"histories": values | st.just([HISTORY])}, optional={"topk": values, "exclude": values})


@settings(max_examples=60, deadline=None)
@given(body=values | st.dictionaries(keys, values, max_size=4) | asks)
def test_any_json_gets_lists_or_one_line(client: TestClient, body: Any) -> None:
    answer = client.post("/recommend", content=json.dumps(body))
    if answer.status_code == 200:
        assert len(answer.json()["recommendations"]) == len(body["histories"])
    else:
        refused(answer, 422)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_large_body_is_refused(client: TestClient, is_chunked: bool) -> None:
    chunks = [b" " * 2**17] * (MOST_BYTES // 2**17 + 1)
    answer = client.post("/recommend", content=iter(chunks) if is_chunked else b"".join(chunks))
    assert f"{MOST_BYTES:,} bytes" in refused(answer, 413)


def test_wrong_paths_and_methods(client: TestClient) -> None:
    assert "POST /recommend" in refused(client.get("/recommender"), 404)
    answer = client.get("/recommend")
    assert "POST /recommend" in refused(answer, 405)
    assert answer.headers["allow"] == "POST"
    refused(client.delete("/health"), 405)


def test_a_fault_gives_500_and_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    recommender, _ = make_recommender()
    with TestClient(make_app(recommender, ""), raise_server_exceptions=False) as client:
        monkeypatch.setattr(recommender, "recommend_with_scores", lambda *_, **__: 1 / 0)
        with caplog.at_level(logging.ERROR):
            assert "log" in refused(client.post("/recommend", json={"histories": [HISTORY]}), 500)
        monkeypatch.undo()
        assert recommend(client, histories=[HISTORY])  # the next ones are answered


def test_health_and_metrics() -> None:
    with TestClient(make_app(RECOMMENDER, "a/last.ckpt")) as client:
        assert client.get("/health").json() == {
            "status": "ready",
            "model": "a/last.ckpt",
            "items": len(IDS),
            "max_len": RECOMMENDER.max_len,
        }
        for histories in ([HISTORY], [HISTORY] * 3, "bad"):
            client.post("/recommend", json={"histories": histories})
        client.get("/none/of/these")
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert answer.text.endswith("\n")
    for line in (
        'bert4rec_requests_total{path="/health",status="200"} 1',
        'bert4rec_requests_total{path="/recommend",status="200"} 2',
        'bert4rec_requests_total{path="/recommend",status="422"} 1',
        'bert4rec_requests_total{path="other",status="404"} 1',
        'bert4rec_recommend_seconds_bucket{le="+Inf"} 3',
        "bert4rec_recommend_seconds_count 3",
        'bert4rec_batch_histories_bucket{le="1"} 1',
        'bert4rec_batch_histories_bucket{le="4"} 2',
        "bert4rec_batch_histories_sum 4",
        "bert4rec_waiting_histories 0",
    ):
        assert line in lines
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) == 4


class Noted:
    """A recommender that notes its calls: each history's items are the history itself."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, bool]] = []

    def recommend_with_scores(self, histories: list[list[Id]], topk: int, **options: Any) -> list[Best]:
        self.calls.append((len(histories), topk, options["exclude_seen"]))
        if options["candidates"] == ():
            raise UserError("none")
        return [[(str(item), 0.0) for item in history[:topk]] for history in histories]


def in_queue(*requests: tuple[list[list[Id]], int, Options]) -> tuple[list[Any], list[tuple[int, int, bool]]]:
    """What requests that came at once get, and the calls that they took."""

    async def answers() -> list[Any]:
        batches = Batches(noted, Metrics())  # type: ignore[arg-type]
        computing = asyncio.create_task(batches.run())
        found = await asyncio.gather(*(batches.recommend(*request) for request in requests), return_exceptions=True)
        assert not batches.waiting
        computing.cancel()
        return found

    noted = Noted()
    return asyncio.run(answers()), noted.calls


SEEN, UNSEEN = Options(False), Options(True)


def test_histories_with_equal_options_are_one_batch() -> None:
    found, calls = in_queue(
        ([["a", "b", "c"]], 2, UNSEEN), ([["d"]], 1, SEEN), ([["e", "f", "g"], ["h"]], 3, Options(True))
    )
    assert calls == [(3, 3, True), (1, 1, False)]
    assert [[[item for item, _ in row] for row in rows] for rows in found] == [
        [["a", "b"]],
        [["d"]],
        [["e", "f", "g"], ["h"]],
    ]


def test_many_histories_are_several_batches() -> None:
    many: list[list[Id]] = [[f"{number}"] for number in range(HISTORIES_AT_ONCE + 2)]
    [rows, _], calls = in_queue((many, 1, SEEN), ([["a"]], 1, SEEN))
    assert calls == [(HISTORIES_AT_ONCE, 1, False), (3, 1, False)]
    assert [[item for item, _ in row] for row in rows] == many


def test_an_error_is_of_those_alone_who_asked_for_it() -> None:
    found, _ = in_queue(([["a"]] * 2, 1, Options(True, candidates=())), ([["b"]], 1, UNSEEN))
    assert isinstance(found[0], UserError)
    assert found[1] == [[("b", 0.0)]]


def test_a_full_queue_is_refused_at_once() -> None:
    found, _ = in_queue(([["a"]] * MOST_WAITING, 1, SEEN), ([["b"]], 1, SEEN))
    assert len(found[0]) == MOST_WAITING
    assert isinstance(found[1], BusyError)
