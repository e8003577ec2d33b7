import concurrent.futures
import hashlib
import http.server
import socket
import threading

import numpy as np
import pytest

from jaxdet.weights import download
from jaxdet.weights.tensor_pickle import WeightsError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]


class Server(http.server.ThreadingHTTPServer):
    """Serves `CONTENT` under any name; breaks off once after `breaks_after` bytes."""

    breaks_after = None
    knows_ranges = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = []

    def url(self, name=f"model-{DIGITS}.pth"):
        return f"http://127.0.0.1:{self.server_port}/models/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        start = start if self.server.knows_ranges else 0
        if "missing" in self.path or start >= len(CONTENT):
            self.send_error(404 if "missing" in self.path else 416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        stop, self.server.breaks_after = self.server.breaks_after, None
        self.wfile.write(CONTENT[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def left_in(folder):
    """Names of files, but for the lock that processes wait at."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_of_several_processes_one_downloads(server, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: download.fetch(server.url(), folder=tmp_path), range(4)))
    assert server.ranges == [None] and set(paths) == {tmp_path / f"model-{DIGITS}.pth"}
    assert paths[0].read_bytes() == CONTENT


def test_an_answer_that_is_none(tmp_path):
    """Neither a status line nor a length."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"nonsense\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/model-{DIGITS}.pth"
        with pytest.raises(WeightsError, match="could not be downloaded: BadStatusLine"):
            download.fetch(url, folder=tmp_path)
        thread.join()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="could not be downloaded"):
        download.fetch("http://127.0.0.1:1/model-01234567.pth", folder=tmp_path / "file" / "cache")


def test_downloads_once(server, tmp_path):
    seen = []
    folder = tmp_path / "deep" / "cache"
    path = download.fetch(server.url(), folder=folder, progress=lambda *now: seen.append(now))
    assert path == folder / f"model-{DIGITS}.pth" and path.read_bytes() == CONTENT
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(done) and done[-1] == len(CONTENT) and set(totals) == {len(CONTENT)}
    assert download.fetch(server.url(), folder=folder) == path
    assert server.ranges == [None] and left_in(folder) == [path.name]


def test_goes_on_where_it_stopped(server, tmp_path):
    server.breaks_after = 1_000_000
    with pytest.raises(WeightsError, match="1000000 bytes are kept"):
        download.fetch(server.url(), folder=tmp_path)
    assert left_in(tmp_path) == [f"model-{DIGITS}.pth.part"]
    assert download.fetch(server.url(), folder=tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000000-"]
    assert left_in(tmp_path) == [f"model-{DIGITS}.pth"]


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.breaks_after, server.knows_ranges = 500_000, False
    with pytest.raises(WeightsError, match="500000 bytes are kept"):
        download.fetch(server.url(), folder=tmp_path)
    assert download.fetch(server.url(), folder=tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_whole_already(server, tmp_path):
    (tmp_path / f"model-{DIGITS}.pth.part").write_bytes(CONTENT)
    assert download.fetch(server.url(), folder=tmp_path).read_bytes() == CONTENT


def test_wrong_hash(server, tmp_path):
    with pytest.raises(WeightsError, match=f"SHA-256 {DIGITS}.*begin with 00000000"):
        download.fetch(server.url("model-00000000.pth"), folder=tmp_path)
    assert left_in(tmp_path) == []


def test_what_is_not_there(server, tmp_path):
    with pytest.raises(WeightsError, match="404"):
        download.fetch(server.url(f"missing-{DIGITS}.pth"), folder=tmp_path)
    assert left_in(tmp_path) == []


def test_no_server(tmp_path):
    with pytest.raises(WeightsError, match=r"put the file there yourself: .*m-01234567\.pth"):
        download.fetch("http://127.0.0.1:9/m-01234567.pth", folder=tmp_path)


def test_urls_without_hash(tmp_path):
    with pytest.raises(ValueError, match="HASH"):
        download.fetch("http://127.0.0.1:9/model.pth", folder=tmp_path)


def test_progress_is_shown(capsys):
    download.show_progress(5_000_000, 10_000_000)
    download.show_progress(10_000_000, 10_000_000)
    assert capsys.readouterr().err == "\rdownloading: 5 of 10 MB\rdownloading: 10 of 10 MB\n"
