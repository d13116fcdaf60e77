import io
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import close_session, constants

from vjepa_hub.hub import download
from vjepa_hub.hub.download import DownloadError, download_file

CONTENT = bytes(range(256)) * 1000


class FileServer(ThreadingHTTPServer):
    """Serves bytes on the loopback interface, and fails in the ways of real servers.

    `break_after` holds, for each coming GET, the number of bytes after which the connection breaks off (None: never);
    when it is used up nothing breaks. With `always_breaks` its last entry stays.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.break_after: list[int | None] = []
        self.always_breaks = False
        self.has_ranges = True
        self.has_head = True
        self.extra_length = 0
        self.extra_length_of_head = 0
        self.status = 200
        self.content_type = "application/octet-stream"
        self.address = f"http://127.0.0.1:{self.server_address[1]}/"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.shutdown()
        self.server_close()

    def ranges(self) -> list[str | None]:
        """The Range headers of the GET requests, in order."""
        return [bytes_range for method, _, bytes_range in self.requests if method == "GET"]

    def next_break(self) -> int | None:
        if not self.break_after:
            return None
        return self.break_after[0] if self.always_breaks and len(self.break_after) == 1 else self.break_after.pop(0)


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._note()
        if not self.server.has_head:
            self.send_error(501)
        elif self._is_served():
            self._begin(200, len(self._content()) + self.server.extra_length + self.server.extra_length_of_head)

    def do_GET(self):
        self._note()
        if not self._is_served():
            return
        content, start = self._content(), self._range_start()
        if start >= len(content):
            self.send_error(416)
            return
        length = len(content) + self.server.extra_length
        content_range = f"bytes {start}-{length - 1}/{length}" if start else None
        self._begin(206 if start else 200, length - start, content_range)
        end = self.server.next_break()
        self.wfile.write(content[start:] if end is None else content[start : start + end])

    def _note(self):
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))

    def _content(self) -> bytes:
        return self.server.files[self.path]

    def _is_served(self) -> bool:
        status = self.server.status if self.path in self.server.files else 404
        if status != 200:
            self.send_error(status)
        return status == 200

    def _range_start(self) -> int:
        wanted = self.headers.get("Range")
        return int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.has_ranges else 0

    def _begin(self, status: int, length: int, content_range: str | None = None):
        self.send_response(status)
        self.send_header("Content-Type", self.server.content_type)
        self.send_header("Content-Length", str(length))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()


@pytest.fixture
def server(monkeypatch):
    """A server with one file, and no waiting between retries."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what is shorter than a chunk is lost in a break
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(download, "_NUM_HEAD_RETRIES", 1)
    close_session()
    with FileServer() as server:
        server.files["/vit.pth.tar"] = CONTENT
        yield server
    close_session()


@pytest.fixture
def address(server):
    return server.address + "vit.pth.tar"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "new" / "folder" / "vit.pth.tar"


def _incomplete(file):
    return file.with_name("vit.pth.tar.incomplete")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_file_arrives_whole_with_a_progress_bar(server, address, file, monkeypatch):
    monkeypatch.setattr(sys, "stderr", _Terminal())
    download_file(address, file)
    assert file.read_bytes() == CONTENT
    assert [path.name for path in file.parent.iterdir()] == ["vit.pth.tar"]
    assert server.requests == [("HEAD", "/vit.pth.tar", None), ("GET", "/vit.pth.tar", None)]
    assert "vit.pth.tar: 100%" in sys.stderr.getvalue()


def test_broken_connection_goes_on_by_range_within_the_call(server, address, file):
    server.break_after = [1000, 500]
    download_file(address, file)
    assert file.read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=1000-", "bytes=1500-"]


def test_download_that_never_gets_on_gives_up_and_the_next_call_goes_on(server, address, file):
    server.break_after, server.always_breaks = [70_000, 0], True
    with pytest.raises(DownloadError, match=rf"{address}: .*broke off.*70000 bytes are kept in .*call again"):
        download_file(address, file)
    assert not file.exists()
    assert _incomplete(file).read_bytes() == CONTENT[:70_000]
    assert len(server.ranges()) < 20
    server.break_after, server.requests = [], []
    download_file(address, file)
    assert file.read_bytes() == CONTENT
    assert server.ranges() == ["bytes=70000-"]
    assert not _incomplete(file).exists()


def test_server_without_ranges_is_not_asked_for_ever(server, address, file):
    server.has_ranges, server.break_after, server.always_breaks = False, [1000], True
    with pytest.raises(DownloadError, match="broke off"):
        download_file(address, file)
    assert len(server.ranges()) <= 4
    assert not file.exists()


def test_server_without_ranges_never_doubles_the_beginning(server, address, file):
    server.has_ranges, server.break_after = False, [1000]
    download_file(address, file)
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize("has_ranges", [True, False])
def test_file_shorter_than_its_announced_length_is_never_used(server, address, file, has_ranges):
    server.extra_length, server.has_ranges = 100, has_ranges
    with pytest.raises(DownloadError, match=address):
        download_file(address, file)
    assert not file.exists()
    assert len(server.ranges()) < 20
    server.extra_length = 0  # the server is mended
    download_file(address, file)
    assert file.read_bytes() == CONTENT


def test_two_announced_lengths_that_differ_are_refused(server, address, file):
    server.extra_length_of_head = 5
    with pytest.raises(DownloadError, match=r"size 256005 but has size 256000.*call again"):
        download_file(address, file)
    assert not list(file.parent.iterdir())


@pytest.mark.parametrize("status", [403, 404, 500])
def test_error_status_is_told_with_address_and_remedy(server, address, file, status):
    server.status = status
    with pytest.raises(DownloadError, match=rf"{address}: the server answers {status}.*VJEPA_HUB_BASE_URL"):
        download_file(address, file)
    assert not list(file.parent.iterdir())
    assert server.ranges() == []


def test_web_page_never_overwrites_what_was_fetched_before(server, address, file):
    file.parent.mkdir(parents=True)
    _incomplete(file).write_bytes(CONTENT[:9000])
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="web page"):
        download_file(address, file)
    assert _incomplete(file).read_bytes() == CONTENT[:9000]


def test_unreachable_server_is_told(server, address, file):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=rf"{address}: the connection failed.*ConnectError"):
        download_file(address, file)


def test_offline_mode_asks_nothing_and_names_the_remedy(server, address, file, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=rf"{address}: the mode is offline .*Unset HF_HUB_OFFLINE"):
        download_file(address, file)
    assert server.requests == []


def test_complete_download_that_was_not_renamed_is_not_fetched_again(server, address, file):
    file.parent.mkdir(parents=True)
    _incomplete(file).write_bytes(CONTENT)
    download_file(address, file)
    assert file.read_bytes() == CONTENT
    assert server.ranges() == []


@pytest.mark.parametrize("has_head", [True, False])
def test_remains_longer_than_the_file_are_dropped(server, address, file, has_head):
    file.parent.mkdir(parents=True)
    _incomplete(file).write_bytes(CONTENT + b"more")
    server.has_head = has_head
    if not has_head:  # then the length is known only by the refusal of the range
        with pytest.raises(DownloadError, match="answers 416"):
            download_file(address, file)
    download_file(address, file)
    assert file.read_bytes() == CONTENT


def test_full_disk_keeps_what_was_fetched(server, address, file, monkeypatch):
    def write(stream, chunk):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download._IncompleteFile, "write", write, raising=False)
    file.parent.mkdir(parents=True)
    _incomplete(file).write_bytes(CONTENT[:10])
    with pytest.raises(DownloadError, match=r"No space left on device. Make room"):
        download_file(address, file)
    assert _incomplete(file).read_bytes() == CONTENT[:10]
