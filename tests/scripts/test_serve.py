"""inference.serve=true: the service as a process, and what keeps it from starting."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from src.prediction.predict import predict
from src.prediction.recommender import Recommender
from tests.scripts.conftest import ROOT, Run, call


@contextmanager
def service(run: Run, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The service as a process of its own, whatever becomes of the test."""
    command = [sys.executable, str(ROOT / "predict_bert4rec.py"), f"inference.checkpoint_path={run.best}"]
    command += ["inference.serve=true", "inference.port=0", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_answers_and_stops_when_what_it_has_begun_is_done(trained: Run) -> None:
    body = json.dumps({"histories": [["12", "été"]]}).encode()
    recommender = Recommender.from_checkpoint(trained.best)
    with service(trained, "inference.topk=3") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == f"model       {trained.best}, {len(recommender.items)} items\n"
        address = re.fullmatch(r"service     (http://127\.0\.0\.1:(\d+)), Ctrl-C stops it\n", process.stdout.readline())
        assert address
        with urllib.request.urlopen(f"{address[1]}/recommend", body) as answer:
            rows = json.load(answer)["recommendations"]
        assert [[entry["item"] for entry in row] for row in rows] == recommender.recommend([["12", "été"]], 3)

        # A request whose second half comes after the signal, and beside it a connection without any.
        with (
            socket.create_connection(("127.0.0.1", int(address[2]))) as half,
            socket.create_connection(("127.0.0.1", int(address[2]))),
        ):
            head = f"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            half.sendall(head + body[:9])
            with urllib.request.urlopen(f"{address[1]}/health") as health:  # so the half has come
                assert json.load(health)["status"] == "ready"
            process.send_signal(signal.SIGTERM)
            half.sendall(body[9:])
            assert half.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
        assert process.stdout.read() == "stopped\n"
        assert process.stderr.read() == ""
        assert process.wait(timeout=20) == 0


def serve(run: Run, *words: str) -> str:
    """The line with which it does not start."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    outcome = call(predict, f"output_dir={run.folder}", "inference.serve=true", *words)
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert before == {number: signal.getsignal(number) for number in before}
    return outcome.err


def test_a_port_in_use(trained: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = serve(trained, f"inference.port={port}")
    assert line == (
        f"error: inference.host=127.0.0.1 inference.port={port} cannot be listened at (Address already in use): give"
        " another host or port\n"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_an_address_of_another_machine(trained: Run, host: str) -> None:
    assert f"inference.host={host} inference.port=0 cannot be listened at (" in serve(
        trained, f"inference.host={host}", "inference.port=0"
    )


def test_without_its_libraries(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert serve(trained) == (
        "error: inference.serve needs a library that is not installed (uvicorn): pip install -e '.[serve]'\n"
    )


def test_without_a_checkpoint(trained: Run) -> None:
    assert "there is no checkpoint" in serve(trained, "inference.checkpoint_path=none.ckpt")
