"""Failures between here and the Hub in one form: what happened, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# huggingface_hub 1.x speaks through httpx, 2.x through httpx2: the ancestor of their errors, whichever it is
_HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]

NO_TOKEN = "no token of the Hub was found: log in by `hf auth login`, or set HF_TOKEN to one with the role write"
_REMEDIES = {
    401: "the token is not accepted: make a new one at https://huggingface.co/settings/tokens, with the role write",
    403: "the token has no right to do this: use one with the role write, of an account that may write there",
    404: "there is no such repository, or the token may not see it",
    409: "it is in conflict with what is there",
    412: "somebody else wrote to it meanwhile: look at what they did, and run the same command again",
    429: "too many requests were made: wait, and run the same command again",
}


class HubAccessError(OSError):
    """The Hub refused, failed or could not be reached; the message says what to do."""


class HubUnavailableError(HubAccessError):
    """The Hub was not asked, or did not answer: no token, no network, offline mode."""


@contextmanager
def hub_errors(doing: str, *, after: str = "") -> Iterator[None]:
    """Give every failure of a request one form.

    Args:
        doing: What is attempted, such as "read me/name".
        after: How things stand after a failure, and what to do then.

    Raises:
        HubAccessError: In place of what huggingface_hub raised.
    """
    try:
        yield
    except (HfHubHTTPError, _HTTPError, OfflineModeIsEnabled, LocalTokenNotFoundError, HFValidationError) as error:
        kind = HubAccessError if isinstance(error, (HfHubHTTPError, HFValidationError)) else HubUnavailableError
        raise kind(_describe(doing, error, after)) from error
    except (RuntimeError, ValueError) as error:  # of an upload, with the failed request as its cause
        raise HubAccessError(_describe(doing, error.__cause__ or error, after)) from error


def _describe(doing: str, error: BaseException, after: str) -> str:
    return f"could not {doing}: {_explain(error)}" + (f". {after}" if after else "")


def _explain(error: BaseException) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return NO_TOKEN
    if isinstance(error, OfflineModeIsEnabled):
        return "the mode is offline: unset HF_HUB_OFFLINE"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision in it"
    if isinstance(error, RepositoryNotFoundError):
        return _REMEDIES[404]
    if isinstance(error, HfHubHTTPError):
        return _explain_status(error)
    if isinstance(error, _HTTPError):
        return f"the Hub cannot be reached, or the connection broke off ({type(error).__name__}: {error})"
    return str(error)


def _explain_status(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    said = f' It says: "{error.server_message}"' if error.server_message else ""
    if status >= 500:
        return f"the server failed with status {status}.{said}"
    return f"the server answers {status}, {_REMEDIES.get(status, 'which is a refusal')}.{said}"
