"""Public data sets, from a server on this machine that serves generated archives, well or badly."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from src.data import BERT4RecDataModule, download
from src.data.interactions import read_interactions
from src.errors import UserError
from tests.data.test_interactions import histories

ROWS = [("1", "0010", 5, 30), ("2", "7", 3, 20), ("1", "7", 4, 10), ("2", "9", 1, 5)]
EXPECTED = {"1": ["7", "0010"], "2": ["9", "7"]}


def archive_of(name: str) -> bytes:
    """What the owners serve, with other rows."""
    archive = download.ARCHIVES[name]
    header = "userId,movieId,rating,timestamp\n" if archive.has_header else ""
    rows = ROWS if "time" in archive.columns else sorted(ROWS, key=lambda row: row[3])
    lines = "".join(archive.delimiter.join(map(str, row[: len(archive.columns)])) + "\n" for row in rows)
    if archive.member is None:
        return (header + lines).encode()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr(archive.member, header + lines)
        zipped.writestr(f"{name}/README", "the terms\n" * 20_000)
        zipped.writestr(f"{name}/movies.dat", bytes(range(256)) * 200)
    return content.getvalue()


@dataclass
class Server:
    """What it serves, how it misbehaves, and what it was asked.

    Attributes:
        breaks_off_after: bytes of each answer, None for all.
        knows_ranges: whether it can resume in the middle.
    """

    content: bytes = b""
    breaks_off_after: int | None = None
    knows_ranges: bool = True
    status: int = 200
    address: str = ""
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.knows_ranges else 0
            if state.status != 200 or start > len(state.content) or (start and start == len(state.content)):
                self.send_error(416 if state.status == 200 else state.status)
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.breaks_off_after])

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda _: None)


def serve(name: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Serve a generated archive as if the owners published it, sums included."""
    server.content = archive_of(name)
    known = download.ARCHIVES[name]
    sums = (
        {"md5": hashlib.md5(server.content).hexdigest()}
        if known.md5
        else {"size": len(server.content), "users": 2, "items": 3}
    )
    url = f"{server.address}/{known.url.rsplit('/', 1)[1]}"
    monkeypatch.setitem(download.ARCHIVES, name, replace(known, url=url, **sums))
    return url


@pytest.mark.parametrize("name", download.ARCHIVES)
def test_every_data_set_becomes_a_table(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    serve(name, server, monkeypatch)
    path = download.fetch(name, tmp_path / "new")
    assert path == tmp_path / "new" / f"{name}.csv"
    assert histories(read_interactions(path)) == EXPECTED
    printed = capfd.readouterr()
    assert download.ARCHIVES[name].licence in printed.out
    assert "100%" in printed.err  # the progress bar
    assert not list((tmp_path / "new").glob("*.part"))
    download.fetch(name, tmp_path / "new")
    assert len(server.asked) == 1  # once


def test_published_sums_and_addresses() -> None:
    """What the owners publish: MD5 sums of the archives, and the paper's counts."""
    sums = {name: (a.md5, a.size, a.users, a.items) for name, a in download.ARCHIVES.items()}
    assert sums == {
        "ml-100k": ("0e33842e24a9c977be4e0107933c0723", None, None, None),
        "ml-1m": ("c4d9eecfca2ab87c1945afe126590906", None, None, None),
        "ml-20m": ("cd245b17a1ae2cc31bb14903e1204af3", None, None, None),
        "beauty": (None, 3_912_093, 40_226, 54_542),
        "steam": (None, 38_226_650, 281_428, 13_044),
    }
    assert all(a.url.startswith("https://") and a.licence.startswith("https://") for a in download.ARCHIVES.values())


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(
    knows_ranges: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve("ml-1m", server, monkeypatch)
    size = len(server.content)
    server.knows_ranges, server.breaks_off_after = knows_ranges, size // 5
    with pytest.raises(UserError) as caught:
        download.fetch("ml-1m", tmp_path)
    message = str(caught.value)
    have = 3 * (size // 5) if knows_ranges else size // 5
    assert message.startswith(
        f"{url} cannot be downloaded (it broke off at {have:,} of {size:,} bytes); {have:,} bytes"
    )
    assert "the same command resumes there" in message
    assert not (tmp_path / "ml-1m.csv").exists()
    server.breaks_off_after = None
    server.asked.clear()
    assert histories(read_interactions(download.fetch("ml-1m", tmp_path))) == EXPECTED
    assert server.asked == [f"bytes={have}-"]


def test_a_part_that_is_longer_than_the_file_is_fetched_anew(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("ml-1m", server, monkeypatch)
    (tmp_path / "ml-1m.zip.part").write_bytes(server.content + b"more")
    assert histories(read_interactions(download.fetch("ml-1m", tmp_path))) == EXPECTED
    assert len(server.asked) == 2


@pytest.mark.parametrize(("name", "what"), [("ml-1m", "MD5"), ("beauty", "bytes instead of")])
def test_the_wrong_bytes(name: str, what: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = serve(name, server, monkeypatch)
    right, server.content = server.content, server.content[:-1] + b"??"
    with pytest.raises(UserError) as caught:
        download.fetch(name, tmp_path)
    assert str(caught.value).startswith(f"{url} served another file than expected (")
    assert what in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    server.content = right
    assert download.fetch(name, tmp_path).exists()


def test_the_right_size_with_other_rows(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve("beauty", server, monkeypatch)
    server.content = server.content.replace(b"9", b"7")
    with pytest.raises(UserError, match="has 2 items instead of 3: delete it and try again"):
        download.fetch("beauty", tmp_path)
    assert not (tmp_path / "beauty.csv").exists()


@pytest.mark.parametrize("status", [404, 503])
def test_a_server_that_refuses(status: int, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = serve("ml-100k", server, monkeypatch)
    server.status = status
    with pytest.raises(UserError) as caught:
        download.fetch("ml-100k", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{url} answers {status} ")
    assert f"data.download_url=URL, or put the file at {tmp_path / 'ml-100k.zip'}" in message


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.zip", "nonsense", "file:///nowhere/x.zip"])
def test_no_server_at_all(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        download.fetch("ml-100k", tmp_path, url)
    message = str(caught.value)
    assert message.startswith(f"{url} cannot be downloaded (")
    assert "\n" not in message


def test_another_address_must_have_the_same_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("ml-1m", server, monkeypatch)
    monkeypatch.setitem(
        download.ARCHIVES, "ml-1m", replace(download.ARCHIVES["ml-1m"], url="http://127.0.0.1:9/ml-1m.zip")
    )
    assert download.fetch("ml-1m", tmp_path, f"{server.address}/mirror/any-name").exists()
    server.content += b"!"
    with pytest.raises(UserError, match="served another file than expected"):
        download.fetch("ml-1m", tmp_path / "again", f"{server.address}/mirror/any-name")


def test_a_file_put_there_by_hand_is_taken(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve("ml-1m", server, monkeypatch)
    (tmp_path / "ml-1m.zip").write_bytes(server.content)
    assert download.fetch("ml-1m", tmp_path).exists()
    assert server.asked == []


def test_an_archive_without_the_table(tmp_path: Path) -> None:
    (tmp_path / "ml-1m.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match="is not the archive that was expected"):
        download.fetch("ml-1m", tmp_path)
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("other.txt", "x")
    with pytest.raises(UserError, match="is not the archive that was expected"):
        download.fetch("ml-1m", tmp_path)


def test_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve("ml-1m", server, monkeypatch)
    (tmp_path / "ml-1m.zip.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be written: No space left on device"):
        download.fetch("ml-1m", tmp_path)
    assert not (tmp_path / "ml-1m.csv").exists()


def test_processes_that_start_together_download_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("ml-1m", server, monkeypatch)
    threads = [threading.Thread(target=download.fetch, args=("ml-1m", tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
    assert histories(read_interactions(tmp_path / "ml-1m.csv")) == EXPECTED


def test_prepare_data_downloads_and_setup_does_not(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve("ml-1m", server, monkeypatch)
    monkeypatch.setitem(
        download.ARCHIVES, "ml-1m", replace(download.ARCHIVES["ml-1m"], url="http://127.0.0.1:9/ml-1m.zip")
    )
    data = BERT4RecDataModule(
        str(tmp_path), "ignored.csv", download="ml-1m", download_url=url, min_interactions=2, holdout=1
    )
    with pytest.raises(UserError, match="there is no file"):
        data.setup()
    data.prepare_data()
    data.setup()
    assert data.summary["users"] == 2
    assert data.path == tmp_path / "ml-1m.csv"
