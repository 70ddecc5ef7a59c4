"""The downloader against a server that misbehaves in every way we have a remedy for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from evaluations.features import inception, inception_tensorflow
from guided_diffusion.errors import InputError
from guided_diffusion.io import download

DATA = np.random.RandomState(0).bytes(300_000)


class _Server(ThreadingHTTPServer):
    """Serves DATA. ``cuts`` are how many bytes to send before hanging up, one for each request in turn."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ranges: list[str | None] = []
        self.cuts: list[int] = []
        self.status = 200
        self.knows_ranges = True
        self.data = DATA
        self.url = f"http://127.0.0.1:{self.server_port}/graph.pb"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server: _Server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.knows_ranges else 0
        total = len(server.data)
        if begin >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - begin))
        self.send_header("ETag", '"version"')
        self.end_headers()
        body = server.data[begin:]
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0)
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _start(asked: str | None) -> int:
    """First byte of a Range header; all of what arrived but for the last piece of 16 KiB."""
    return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0


def test_once(server, tmp_path):
    for _ in range(2):
        assert download.fetch(server.url, tmp_path / "g.pb", "help").read_bytes() == DATA
    assert server.ranges == [None]
    assert _names(tmp_path) == ["g.pb"]


def test_cut_connections_are_resumed(server, tmp_path):
    server.cuts = [100_000, 50_000]
    assert download.fetch(server.url, tmp_path / "g.pb", "help").read_bytes() == DATA
    assert [_start(asked) // 50_000 for asked in server.ranges] == [0, 1, 2]
    assert _names(tmp_path) == ["g.pb"]


def test_resume_in_a_later_run(server, tmp_path):
    server.cuts = [20_000] * download.ATTEMPTS
    with pytest.raises(InputError, match="failed 5 times.*help"):
        download.fetch(server.url, tmp_path / "g.pb", "help")
    assert _names(tmp_path) == ["g.pb.part", "g.pb.part.json"]
    assert download.fetch(server.url, tmp_path / "g.pb", "help").read_bytes() == DATA
    assert _start(server.ranges[-1]) >= 5 * 16_000
    assert _names(tmp_path) == ["g.pb"]


def test_server_that_ignores_ranges(server, tmp_path):
    server.knows_ranges = False
    server.cuts = [100_000]
    assert download.fetch(server.url, tmp_path / "g.pb", "help").read_bytes() == DATA
    assert [_start(asked) > 0 for asked in server.ranges] == [False, True]


def test_partial_file_that_is_already_whole(server, tmp_path):
    (tmp_path / "g.pb.part").write_bytes(DATA)
    (tmp_path / "g.pb.part.json").write_text('{"validator": "\\"version\\""}')
    assert download.fetch(server.url, tmp_path / "g.pb", "help").read_bytes() == DATA
    assert server.ranges == ["bytes=300000-", None]


def test_partial_file_that_is_too_long_is_started_again(server, tmp_path):
    (tmp_path / "g.pb.part").write_bytes(DATA + b"x")
    (tmp_path / "g.pb.part.json").write_text('{"validator": "\\"version\\""}')
    assert download.fetch(server.url, tmp_path / "g.pb", "help").read_bytes() == DATA


@pytest.mark.parametrize("status", [404, 500])
def test_error_answers(server, tmp_path, status):
    server.status = status
    with pytest.raises(InputError, match=rf"g\.pb.*{status}.*; help$") as caught:
        download.fetch(server.url, tmp_path / "g.pb", "help")
    assert "\n" not in str(caught.value)
    assert _names(tmp_path) == []


def test_several_at_once_download_once(server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: download.fetch(server.url, tmp_path / "g.pb", "help"), range(4)))
    assert {path.read_bytes() for path in paths} == {DATA}
    assert server.ranges == [None]
    assert _names(tmp_path) == ["g.pb"]


def test_a_lock_whose_file_comes_and_goes(tmp_path):
    """Holders of an empty file remove it as others look whether theirs is still the one that is there."""
    part, holders, most = tmp_path / "g.pb.part", [], []

    def hold(turn: int) -> None:
        for _ in range(300):
            with download.open_locked(part):
                holders.append(turn)
                most.append(len(holders))
                holders.remove(turn)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, range(4)))
    assert len(most) == 1200 and max(most) == 1
    assert _names(tmp_path) == []


def test_no_network(tmp_path, monkeypatch):
    """The line says where the file belongs and which flag names another place."""
    monkeypatch.chdir(tmp_path)
    with _Server() as closed:
        url = closed.url
    monkeypatch.setattr(inception, "INCEPTION_V3_URL", url)
    with pytest.raises(InputError) as caught:
        inception_tensorflow.InceptionExtractor()
    line = str(caught.value)
    assert str(tmp_path / "classify_image_graph_def.pb") in line and "--inception PATH" in line
    assert "\n" not in line
    assert _names(tmp_path) == []


def test_no_directory(server, tmp_path):
    with pytest.raises(InputError, match="No such file or directory"):
        download.fetch(server.url, tmp_path / "none" / "g.pb", "help")
    assert server.ranges == []
