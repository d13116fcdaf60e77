"""Fetching one released file: resumed where it broke off, checked, and under its name only once it is complete.

The bytes are fetched by huggingface_hub, with its progress bar, proxies, timeouts and offline mode. What is added here
is what a server that is not the Hub needs: bounded retries, and errors that say what to do.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import http_backoff

from ..core.files import put_in_place
from .registry import BASE_ADDRESS_VARIABLE

logger = logging.getLogger(__name__)

INCOMPLETE_SUFFIX = ".incomplete"

# huggingface_hub 1.x speaks through httpx, 2.x through httpx2: the ancestor of their errors, whichever it is
_HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]

# A compressed answer has neither a known length nor ranges
_HEADERS = {"Accept-Encoding": "identity"}
_NUM_HEAD_RETRIES = 2
_MAX_RESTARTS = 2
_STATUS_RANGE_NOT_SATISFIABLE = 416
_STATUSES_WITHOUT_HEAD = (405, 501)
_ANOTHER_WAY = (
    f"Set another base address with {BASE_ADDRESS_VARIABLE} (a mirror), or fetch the file by other means and pass its "
    "path in place of the model's name"
)


class DownloadError(OSError):
    """A file could not be fetched; the message has the address, what was found there, and the remedy."""


def download_file(address: str, file: Path) -> None:
    """Fetch a file, with a progress bar; what is there of it from an earlier attempt is not fetched again.

    The bytes are gathered in `<file>.incomplete`, which stays where the connection breaks off, so that the next call
    goes on from there (HTTP range); within a call it is tried again for as long as each attempt brings something.
    Bytes arrive in chunks (`huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE`, 10 MB): a break loses the one under way.

    Args:
        address: Where the file is, http or https.
        file: Where it goes; its folder is made. One process at a time: the caller holds a lock.

    Raises:
        DownloadError: The mode is offline, the server cannot be reached or does not have the file, sends a web page,
            breaks off again and again, or sends another length than it announced.
    """
    _require_online(address)
    file.parent.mkdir(parents=True, exist_ok=True)
    incomplete = file.with_name(file.name + INCOMPLETE_SUFFIX)
    logger.info("downloading %s to %s", address, file)
    with _download_errors(address, incomplete):
        size = _ask_size(address)
        if size is not None and incomplete.is_file() and incomplete.stat().st_size > size:
            incomplete.unlink()
        _fetch(address, incomplete, size, file.name)
        put_in_place(incomplete, file)


def _require_online(address: str) -> None:
    if constants.is_offline_mode():
        raise DownloadError(
            f"could not download {address}: the mode is offline (HF_HUB_OFFLINE) and the file is not in the cache "
            f"{constants.HF_HUB_CACHE}. Unset HF_HUB_OFFLINE for one call, after which the model works offline, or "
            "fetch the file by other means and pass its path in place of the model's name"
        )


def _ask_size(address: str) -> int | None:
    """The length in bytes, None where the server does not say; asked first, so that a web page overwrites nothing."""
    response = http_backoff(
        "HEAD",
        address,
        max_retries=_NUM_HEAD_RETRIES,
        retry_on_exceptions=(),  # huggingface_hub 1.5 would retry with a client that it has closed
        headers=_HEADERS,
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
    )
    if response.status_code in _STATUSES_WITHOUT_HEAD:
        return None
    if response.status_code != 200:
        raise DownloadError(_describe(address, f"the server answers {response.status_code}", _ANOTHER_WAY))
    content_type = response.headers.get("Content-Type", "")
    if content_type.startswith("text/html"):
        found = f"the server answers with a web page ({content_type}), not with a file"
        raise DownloadError(_describe(address, found, f"Sign in where the network asks for it. {_ANOTHER_WAY}"))
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _fetch(address: str, incomplete: Path, size: int | None, name: str) -> None:
    """Append what is missing, again and again for as long as each attempt brings something."""
    with _IncompleteFile(incomplete) as stream:
        while True:
            num_bytes = stream.tell()
            try:
                http_get(
                    address,
                    stream,
                    resume_size=num_bytes,
                    headers=_HEADERS,
                    expected_size=size,
                    displayed_filename=name,
                )
            except HfHubHTTPError:
                raise
            except _HTTPError:
                if stream.tell() <= num_bytes:
                    raise
            else:
                return


class _IncompleteFile(io.BufferedWriter):
    """An unfinished download, which may be begun anew only so often.

    `http_get` itself has no limit: from a server that knows no ranges and breaks off each time it would fetch the
    beginning of the file for ever.
    """

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path, "a"))
        self.num_restarts = 0

    def truncate(self, size: int | None = None) -> int:
        """Start again: `http_get` calls it where the server sends the whole file in place of the missing range."""
        self.num_restarts += 1
        if self.num_restarts > _MAX_RESTARTS:
            raise OSError(f"the server broke off {self.num_restarts} times and knows no ranges to go on from there")
        return super().truncate(size)


@contextmanager
def _download_errors(address: str, incomplete: Path) -> Iterator[None]:
    """Give every way to fail one form; the unfinished file stays only where its bytes are good."""
    try:
        yield
    except DownloadError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == _STATUS_RANGE_NOT_SATISFIABLE:  # it is longer than the file there
            incomplete.unlink()
        raise DownloadError(_describe(address, f"the server answers {status}", _ANOTHER_WAY)) from error
    except (_HTTPError, RecursionError) as error:  # http_get calls itself to go on
        num_bytes = incomplete.stat().st_size if incomplete.is_file() else 0
        found = f"the connection failed or broke off ({type(error).__name__}: {error})"
        kept = f"{num_bytes} bytes are kept in {incomplete}: call again to go on from there. {_ANOTHER_WAY}"
        raise DownloadError(_describe(address, found, kept)) from error
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) is not None:  # of this machine, such as a full disk
            raise DownloadError(
                _describe(address, str(error), f"Make room for {incomplete}, and call again to go on from there")
            ) from error
        # http_get's own: another length than announced, or headers without sense
        incomplete.unlink(missing_ok=True)
        remedy = f"What came was deleted: call again to fetch it anew. {_ANOTHER_WAY}"
        raise DownloadError(_describe(address, str(error).split("\n")[0], remedy)) from error


def _describe(address: str, found: str, remedy: str) -> str:
    return f"could not download {address}: {found}. {remedy}"
