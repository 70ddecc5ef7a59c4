"""`ed-dpm download` against a server that cuts, stalls, lies and fails, and the lock file it keeps."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from experiments import cli as reproduce
from experiments import downloads
from experiments.published import PUBLISHED, PublishedFile
from guided_diffusion.errors import InputError
from guided_diffusion.io import download
from tests.support.helpers import ROOT, clean_environment

DATA = np.random.RandomState(0).bytes(200_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
FORM_ONLY = "256x256_classifier+0.1ECT.pt"
NAME = "weights.pt"
TIMEOUT = (5.0, 0.3)


class _Server(ThreadingHTTPServer):
    """Serves ``data``. ``acts`` are what the first requests meet: a status, or how many bytes before a cut.

    ``headers`` go with every answer; an ETag or Last-Modified among them is compared with If-Range where the server
    ``checks_if_range``. ``length`` is announced instead of the true one ("none": nothing is), ``surplus`` is sent
    behind the data. ``change`` is what ``data`` and ``headers`` become after the first answer.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data, self.md5, self.length = DATA, None, None
        self.headers = {"ETag": '"version"'}
        self.change: tuple[bytes, dict[str, str]] | None = None
        self.checks_if_range = True
        self.conditions: list[str | None] = []
        self.surplus, self.sent = b"", 0
        self.acts: list[tuple[str, int]] = []
        self.knows_ranges = True
        self.asked: list[str] = []
        self.over = threading.Event()  # lets a stalled answer end
        self.url = f"http://127.0.0.1:{self.server_port}/{NAME}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted or "all")
        server.conditions.append(self.headers.get("If-Range"))
        data, headers = server.data, server.headers
        if server.change:
            (server.data, server.headers), server.change = server.change, None
        act, value = server.acts.pop(0) if server.acts else ("cut", 1 << 30)
        if act == "status" and value >= 400:
            self.send_error(value)
            return
        if act == "status":
            self.send_response(value)
            self.end_headers()
            return
        if act == "endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while server.sent < 1 << 28:
                    server.sent += self.wfile.write(bytes(1 << 16))
            return
        if act == "silence":
            server.over.wait(10)
            return
        condition, versions = server.conditions[-1], (headers.get("ETag"), headers.get("Last-Modified"))
        knows = server.knows_ranges and not (server.checks_if_range and condition and condition not in versions)
        begin = int(wanted[len("bytes=") : -1]) if wanted and knows else 0
        total = len(data)
        if begin and begin >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        for name, text in headers.items():
            self.send_header(name, text)
        if begin:
            self.send_header("Content-Range", f"bytes {begin + (act == 'shift')}-{total - 1}/{total}")
        elif server.md5:
            self.send_header("Content-MD5", server.md5)
        if server.length != "none":
            self.send_header("Content-Length", str((server.length or total) - begin))
        self.end_headers()
        body = data[begin:] + server.surplus
        self.wfile.write(body if act == "shift" else body[:value])
        self.wfile.flush()
        if act == "stall":
            server.over.wait(10)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server that the one file called NAME is registered at."""
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0)
    with _Server() as server:
        monkeypatch.setitem(PUBLISHED, NAME, PublishedFile(NAME, server.url))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def pin(monkeypatch, **known) -> None:
    monkeypatch.setitem(PUBLISHED, NAME, PublishedFile(NAME, PUBLISHED[NAME].url, **known))


def get(directory: Path) -> Path:
    return downloads.download(PUBLISHED[NAME], directory, timeout=TIMEOUT)


def refused(directory: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        get(directory)
    assert "\n" not in str(caught.value)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def write_partial(directory: Path, data: bytes, **version: str) -> None:
    """What a process leaves that was ended in the middle."""
    (directory / f"{NAME}.part").write_bytes(data)
    (directory / f"{NAME}.part.json").write_text(json.dumps(version))


def md5_header(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def test_a_download_is_recorded_and_not_repeated(server, tmp_path):
    server.md5 = md5_header(DATA)
    for _ in range(2):
        path = get(tmp_path / "new" / "models")
        assert path.read_bytes() == DATA and path.is_absolute()
    assert server.asked == ["all"]
    assert names(path.parent) == [downloads.LOCK_NAME, NAME]
    recorded = json.loads((path.parent / downloads.LOCK_NAME).read_text())
    assert recorded == {NAME: {"url": server.url, "size": len(DATA), "sha256": SHA256}}


@pytest.mark.parametrize("acts", [
    [("cut", 100_000), ("cut", 30_000)], [("stall", 50_000)], [("silence", 0)],
    [("status", 500), ("cut", 70_000), ("status", 503)], [("cut", 50_000), ("shift", 0)],
], ids=str)  # fmt: skip
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_an_unreliable_server(server, tmp_path, acts, knows_ranges):
    server.md5, server.knows_ranges, server.acts = md5_header(DATA), knows_ranges, list(acts)
    assert get(tmp_path).read_bytes() == DATA
    assert names(tmp_path) == [downloads.LOCK_NAME, NAME]
    if acts[0][0] in ("cut", "stall"):  # the second request asks for the rest
        assert server.asked[0] == "all" and server.asked[1].startswith("bytes=")


def test_what_has_no_version_is_not_resumed(server, tmp_path):
    """Within one call: the file changes after the first answer has stalled."""
    other = DATA[::-1]
    server.headers, server.length, server.acts, server.change = {}, "none", [("stall", 50_000)], (other, {})
    assert get(tmp_path).read_bytes() == other
    assert server.asked == ["all", "all"]


def test_a_server_that_never_recovers(server, tmp_path):
    server.acts = [("status", 503)] * 100
    refused(tmp_path, "weights.pt: cannot be downloaded from http.*failed 5 times, at last: 503")
    assert len(server.asked) == download.ATTEMPTS and names(tmp_path) == []


def test_not_found_is_not_asked_again(server, tmp_path):
    server.acts = [("status", 404)]
    refused(tmp_path, "404 Client Error")
    assert server.asked == ["all"] and names(tmp_path) == []


def test_unreachable(server, tmp_path, monkeypatch):
    with _Server() as closed:
        pass
    monkeypatch.setitem(PUBLISHED, NAME, PublishedFile(NAME, closed.url))
    refused(tmp_path, "cannot be downloaded")
    assert names(tmp_path) == []


def test_wrong_md5(server, tmp_path):
    server.md5 = md5_header(b"other")
    refused(tmp_path, f"found md5 {hashlib.md5(DATA).hexdigest()}, expected {hashlib.md5(b'other').hexdigest()}")
    assert names(tmp_path) == []


@pytest.mark.parametrize("header", ["none", "AAAA", "!"])
def test_a_header_that_is_no_md5_is_ignored(server, tmp_path, header):
    server.md5 = header
    assert get(tmp_path).read_bytes() == DATA


def test_wrong_bytes(server, tmp_path, monkeypatch):
    pin(monkeypatch, size=len(DATA), sha256=hashlib.sha256(b"other").hexdigest())
    server.md5 = md5_header(DATA)
    refused(tmp_path, f"found sha256 {SHA256}, expected ")
    assert names(tmp_path) == []


def test_a_wrong_length_is_refused_before_it_is_sent(server, tmp_path, monkeypatch):
    pin(monkeypatch, size=len(DATA) + 1)
    refused(tmp_path, "the server announces 200000 bytes, expected 200001")
    assert names(tmp_path) == []


def test_a_length_that_is_never_reached(server, tmp_path):
    """Every attempt ends early; nothing gets the final name."""
    server.length = len(DATA) + 5
    refused(tmp_path, "failed 5 times")
    assert NAME not in names(tmp_path) and downloads.LOCK_NAME not in names(tmp_path)


def test_a_length_that_is_too_small(server, tmp_path, monkeypatch):
    pin(monkeypatch, sha256=SHA256)
    server.length = len(DATA) - 5
    refused(tmp_path, "found sha256")
    assert names(tmp_path) == []


def test_a_corrupt_partial_file_fails_once(server, tmp_path):
    """Its beginning is from elsewhere. A range's answer has no MD5 of the whole, but the first answer had."""
    write_partial(tmp_path, bytes(100_000), validator='"version"', md5=hashlib.md5(DATA).hexdigest())
    refused(tmp_path, "found md5")
    assert server.asked == ["bytes=100000-"] and names(tmp_path) == []
    assert get(tmp_path).read_bytes() == DATA


def test_a_later_run_resumes(server, tmp_path, monkeypatch):
    pin(monkeypatch, size=len(DATA), sha256=SHA256)
    server.acts = [("cut", 20_000)] * download.ATTEMPTS
    refused(tmp_path, "failed 5 times")
    assert names(tmp_path) == [f"{NAME}.part", f"{NAME}.part.json"]
    assert get(tmp_path).read_bytes() == DATA
    assert int(server.asked[5][len("bytes=") : -1]) >= 5 * 16_000


# ---- answers that are no file


PAGE = b"\n <!DOCTYPE html><html><body>Please log in</body></html>"


@pytest.mark.parametrize(("what", "says"), [
    ({"acts": [("status", 204)]}, "found answer 204 No Content, expected 200"),
    ({"acts": [("status", 304)]}, "found answer 304 Not Modified, expected 200"),
    ({"acts": [("status", 206)]}, "found answer 206 Partial Content, expected 200"),
    ({"data": b""}, "found an empty file"),
    ({"data": b"", "length": "none"}, "found an empty file"),
    ({"data": PAGE}, "found an HTML page, expected another file"),
    ({"data": b"\xef\xbb\xbf<HTML>"}, "found an HTML page, expected another file"),
    ({"headers": {"Content-Type": "Text/HTML; charset=utf-8"}}, "found an HTML page .Content-Type Text/HTML"),
    ({"data": gzip.compress(DATA), "headers": {"Content-Encoding": "gzip"}}, "found Content-Encoding gzip"),
], ids=["204", "304", "206", "empty", "empty, no length", "page", "page with BOM", "type", "gzip"])  # fmt: skip
def test_what_is_no_file_is_neither_kept_nor_recorded(server, tmp_path, what, says):
    for name, value in what.items():
        setattr(server, name, value)
    refused(tmp_path, says)
    assert names(tmp_path) == []
    vars(server).update(data=DATA, length=None, headers={}, acts=[])
    assert get(tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("known", [{"size": 1_000_000}, {}])
def test_an_endless_answer_is_stopped(server, tmp_path, monkeypatch, known):
    monkeypatch.setattr(download, "MOST_BYTES", 1_000_000)
    pin(monkeypatch, **known)
    server.acts = [("endless", 0)]
    refused(tmp_path, "more than 1000000 bytes arrive")
    assert names(tmp_path) == [] and server.sent < 1 << 26


def test_an_answer_that_is_announced_to_be_too_long_is_not_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MOST_BYTES", len(DATA) - 1)
    refused(tmp_path, "the server announces 200000 bytes, expected at most 199999")
    assert names(tmp_path) == []


def test_a_range_that_goes_on_beyond_the_end_is_stopped(server, tmp_path):
    write_partial(tmp_path, DATA[:100_000], validator='"version"')
    server.length, server.surplus = "none", bytes(1 << 16)
    refused(tmp_path, "more than 200000 bytes arrive")
    assert server.asked == ["bytes=100000-"] and names(tmp_path) == []


def test_an_announcement_that_is_no_number_is_none(server, tmp_path):
    server.length, server.headers = "none", {"Content-Length": "9" * 5000}
    assert get(tmp_path).read_bytes() == DATA


# ---- a file that changes on the server between two ranges


OLD, NEW = {"ETag": '"old"'}, {"ETag": '"new"'}
MONDAY, TUESDAY = ({"Last-Modified": f"{day} Jan 2024 00:00:00 GMT"} for day in ("Mon, 01", "Tue, 02"))
CHANGED = DATA[::-1]


@pytest.mark.parametrize("checks", [True, False])
@pytest.mark.parametrize(("old", "new"), [(OLD, NEW), (MONDAY, TUESDAY)], ids=["etag", "date"])
def test_a_file_that_changes_is_started_again(server, tmp_path, old, new, checks):
    """By the server, which is told what we have; or by us, where it sends the new version's range all the same."""
    server.headers, server.change, server.checks_if_range = old, (CHANGED, new), checks
    server.acts = [("cut", 100_000)]
    assert get(tmp_path).read_bytes() == CHANGED
    assert server.conditions[:2] == [None, *old.values()]
    assert names(tmp_path) == [downloads.LOCK_NAME, NAME]


@pytest.mark.parametrize("checks", [True, False])
def test_a_file_that_changes_between_two_processes_is_started_again(server, tmp_path, checks):
    server.headers, server.checks_if_range = OLD, checks
    server.acts = [("cut", 20_000)] * download.ATTEMPTS
    refused(tmp_path, "failed 5 times")
    server.data, server.headers = CHANGED, NEW
    assert get(tmp_path).read_bytes() == CHANGED
    assert names(tmp_path) == [downloads.LOCK_NAME, NAME]


@pytest.mark.parametrize(("headers", "condition"), [
    (OLD, '"old"'), (MONDAY, MONDAY["Last-Modified"]),
    (MONDAY | {"ETag": 'W/"weak"'}, MONDAY["Last-Modified"]),
], ids=str)  # fmt: skip
def test_a_file_that_stays_is_resumed(server, tmp_path, headers, condition):
    server.headers, server.acts = headers, [("cut", 100_000)]
    assert get(tmp_path).read_bytes() == DATA
    assert server.conditions == [None, condition] and server.asked[1].startswith("bytes=")


@pytest.mark.parametrize("note", ["none", "", "[]", '{"validator": 5}', '{"md5": null}'])
def test_a_partial_file_of_unknown_origin_is_not_resumed(server, tmp_path, note):
    (tmp_path / f"{NAME}.part").write_bytes(CHANGED[:100_000])
    if note != "none":
        (tmp_path / f"{NAME}.part.json").write_text(note)
    assert get(tmp_path).read_bytes() == DATA
    assert names(tmp_path) == [downloads.LOCK_NAME, NAME]


def test_another_content_under_a_recorded_name_is_refused(server, tmp_path):
    get(tmp_path).unlink()
    server.data = DATA[::-1]
    refused(tmp_path, f"found sha256 .*, expected {SHA256}.*recorded in .*downloads.lock.json")
    assert names(tmp_path) == [downloads.LOCK_NAME]
    server.data = DATA[:-1]
    refused(tmp_path, "announces 199999 bytes, expected 200000")
    server.data = DATA
    assert get(tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("damaged", [DATA[:-1], DATA[::-1]])
def test_an_existing_file_is_held_to_the_lock(server, tmp_path, damaged):
    path = get(tmp_path)
    path.write_bytes(damaged)
    refused(tmp_path, "weights.pt: found .* expected .*moved to weights.pt.rejected")
    assert names(tmp_path) == [downloads.LOCK_NAME, f"{NAME}.rejected"]
    assert get(tmp_path).read_bytes() == DATA


def test_an_existing_file_is_recorded_if_it_is_the_pinned_one(server, tmp_path, monkeypatch):
    pin(monkeypatch, size=len(DATA), sha256=SHA256)
    (tmp_path / NAME).write_bytes(DATA)
    get(tmp_path)
    assert server.asked == [] and downloads.read_lock(tmp_path / downloads.LOCK_NAME)[NAME].sha256 == SHA256


def test_a_lock_that_contradicts_the_pinned_hash(server, tmp_path, monkeypatch):
    get(tmp_path)
    pin(monkeypatch, sha256="0" * 64)
    refused(tmp_path, f"downloads.lock.json: {NAME}: found sha256 {SHA256}, expected 0000")


@pytest.mark.parametrize("text", [
    "", "[]", "{", '{"a": 1}', '{"a": {"url": "u", "size": 1}}', '{"a": {"url": "u", "size": "1", "sha256": "x"}}',
    '{"a": {"url": "u", "size": 1, "sha256": "x"}}', '{"a": {"url": "u", "size": 1, "sha256": null}}', "\udcff",
])  # fmt: skip
def test_a_damaged_lock(server, tmp_path, text):
    lock = tmp_path / downloads.LOCK_NAME
    lock.write_bytes(text.encode(errors="surrogateescape"))
    refused(tmp_path, "downloads.lock.json: expected JSON")
    assert server.asked == [] and lock.read_bytes() == text.encode(errors="surrogateescape")


def test_several_files_at_once_are_all_recorded(server, tmp_path):
    files = [PublishedFile(f"{i}.pt", server.url) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda file: downloads.download(file, tmp_path, TIMEOUT), files))
    assert list(downloads.read_lock(tmp_path / downloads.LOCK_NAME)) == [file.name for file in files]
    assert names(tmp_path) == sorted([file.name for file in files] + [downloads.LOCK_NAME])


def test_a_lock_that_cannot_be_replaced_keeps_its_content(server, tmp_path, monkeypatch):
    get(tmp_path)
    before = (tmp_path / downloads.LOCK_NAME).read_bytes()
    replace = os.replace

    def full(source, target):
        if Path(target).name == downloads.LOCK_NAME:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="downloads.lock.json: cannot be written: No space left"):
        downloads.download(PublishedFile("b.pt", server.url), tmp_path, TIMEOUT)
    assert (tmp_path / downloads.LOCK_NAME).read_bytes() == before
    assert names(tmp_path) == ["b.pt", downloads.LOCK_NAME, NAME]


def test_a_folder_that_cannot_be(server, tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "cannot be made")
    (tmp_path / NAME).mkdir()
    refused(tmp_path, "expected a file, found a directory")


def test_all_leaves_out_what_has_no_address(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(downloads, "PUBLISHED", {name: PUBLISHED[name] for name in (FORM_ONLY, NAME)})
    monkeypatch.setattr(sys, "argv", ["ed-dpm", "download", "all", "--out", str(tmp_path)])
    reproduce.main()
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / NAME}\n"
    skipped = [line for line in said.err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 1 and FORM_ONLY in skipped[0] and "--classifier_path" in skipped[0]


def command(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", "download", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=clean_environment(),
    )  # fmt: skip


@pytest.mark.slow
def test_command_line(tmp_path):
    """Four processes side by side; mistakes are found before anything is made or fetched."""
    out = ["--out", str(tmp_path / "none")]
    mistakes = {
        "nothing.pt: no such published file": command("64x64_diffusion.pt", "nothing.pt", *out),
        "--classifier_path": command("64x64_diffusion.pt", FORM_ONLY, *out),
        "found 'all' among 2 words": command("all", "64x64_diffusion.pt", *out),
    }
    listing = command("list")
    for message, process in mistakes.items():
        printed, said = process.communicate(timeout=60)
        assert process.returncode == 2 and printed == ""
        assert said.startswith("error: ") and said.count("\n") == 1 and message in said
    printed, said = listing.communicate(timeout=60)
    assert listing.returncode == 0 and said == ""
    lines = {line.split()[0]: line for line in printed.splitlines()}
    assert list(lines) == list(PUBLISHED)
    assert "  2,211,383,297  https://" in lines["256x256_diffusion_uncond.pt"]
    assert "  -  https://" in lines["64x64_diffusion.pt"] and "--classifier_path" in lines[FORM_ONLY]
    assert not (tmp_path / "none").exists()


def test_the_command_ends_in_one_line_when_a_check_fails(server, tmp_path, monkeypatch, capsys):
    server.md5 = md5_header(b"other")
    monkeypatch.setattr(sys, "argv", ["ed-dpm", "download", NAME, "--out", str(tmp_path)])
    with pytest.raises(InputError, match="found md5"):
        reproduce.main()
    assert capsys.readouterr().out == "" and names(tmp_path) == []
