"""Downloads go on where they stopped, are checked by their hash, and are whole or not there."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from nlprobe.checkpoints.download import download
from nlprobe.checkpoints.registry import Entry, published
from nlprobe.cli import run
from nlprobe.errors import CheckpointError

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(HTTPServer):
    """Serves CONTENT, as its attributes say."""

    ranges = True
    breaks_after: int | None = None
    asked: list[str | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path != "/net.pth":
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        self.send_response(206 if wanted and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = len(CONTENT) if self.server.breaks_after is None else start + self.server.breaks_after
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as found:
        found.asked = []
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_a_file_is_fetched_whole_and_nothing_else_is_left(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    target = tmp_path / "new" / "net.pth"
    download(f"{server.url}/net.pth", target, SHA256[:8], lambda done, total: told.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["net.pth"]
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_a_broken_download_is_kept_and_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "net.pth"
    server.breaks_after = 700_000
    with pytest.raises(CheckpointError, match="700000 bytes are kept") as error:
        download(f"{server.url}/net.pth", target, SHA256[:8])
    assert error.value.remedy == "the same command goes on from there"
    assert not target.exists()
    server.breaks_after = None
    download(f"{server.url}/net.pth", target, SHA256[:8])
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=700000-"]


def test_a_server_without_ranges_is_asked_for_all_of_it(server: Server, tmp_path: Path) -> None:
    target, server.ranges = tmp_path / "net.pth", False
    (tmp_path / "net.pth.part").write_bytes(CONTENT[:1000])
    download(f"{server.url}/net.pth", target, SHA256[:8])
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("more", [b"", b"too much"])
def test_a_part_that_is_whole_already_is_taken_and_one_that_is_too_long_is_not(
    server: Server, tmp_path: Path, more: bytes
) -> None:
    (tmp_path / "net.pth.part").write_bytes(CONTENT + more)
    download(f"{server.url}/net.pth", tmp_path / "net.pth", SHA256[:8])
    assert (tmp_path / "net.pth").read_bytes() == CONTENT


def test_a_file_of_another_hash_is_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"SHA-256 {SHA256[:16]}.*should begin with 00000000; it was removed"):
        download(f"{server.url}/net.pth", tmp_path / "net.pth", "00000000")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_and_who_does_not_answer_are_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the server answers 404"):
        download(f"{server.url}/other.pth", tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"cannot be fetched: .*refused"):
        download("http://127.0.0.1:9/net.pth", tmp_path / "net.pth")


@pytest.fixture
def entry(server: Server, monkeypatch: pytest.MonkeyPatch) -> Entry:
    real = published("gcnet_r50-d8_512x1024_40k_cityscapes")
    local = Entry(**{**real.__dict__, "url": f"{server.url}/net.pth", "sha256": SHA256[:8], "flaw": "is another"})
    monkeypatch.setattr("nlprobe.commands.fetch.published", lambda name: local)
    return local


def test_the_command_prints_the_path_and_does_not_fetch_twice(
    entry: Entry, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fetch", entry.name, "--out", str(tmp_path)]
    assert run([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out == f"{entry.url} -> {tmp_path / 'net.pth'}\n"
    for _ in range(2):
        assert run(arguments) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'net.pth'}\n"
    assert len(server.asked) == 1
    assert run([*arguments, "--force"]) == 0
    assert "FLAWED: is another" in capsys.readouterr().err
    assert len(server.asked) == 2


def test_pages_that_only_a_browser_opens_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = published("gcnet_r50-d8_512x1024_40k_cityscapes")
    page = Entry(**{**real.__dict__, "url": "https://drive.example/file/d/1/view", "sha256": ""})
    monkeypatch.setattr("nlprobe.commands.fetch.published", lambda name: page)
    assert run(["fetch", page.name]) == 2
    told = capsys.readouterr().err
    assert "only a browser can open: https://drive.example/file/d/1/view" in told
    assert f"--set like={page.name}" in told
