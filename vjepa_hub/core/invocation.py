"""The command of a run: the words that the process was started with, or those that would do the same."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_INVOCATION: ContextVar[tuple[str, ...]] = ContextVar("invocation", default=())


@contextmanager
def invoked_by(arguments: Sequence[str]) -> Iterator[None]:
    """Let runs within the block record these words of the command line as their command."""
    token = _INVOCATION.set(tuple(arguments))
    try:
        yield
    finally:
        _INVOCATION.reset(token)


def invocation() -> tuple[str, ...]:
    """Words of the command line after `vjepa-hub`; none for a call from Python."""
    return _INVOCATION.get()


def command_words(
    kind: str, *names: object, assignments: Mapping[str, Any] | None = None, **options: Any
) -> list[str]:
    """Words of the command line that runs as it is; for a call from Python, of the command that would do the same.

    Args:
        kind: The command.
        names: Its arguments.
        assignments: Settings for `--set`, by dotted key.
        options: By name; None, False and empty ones are left out, lists repeat theirs, True gives a flag.
    """
    invoked = invocation()
    if invoked and invoked[0] == kind:
        return list(invoked)
    words = [kind, *map(str, names)]
    for name, given in options.items():
        for value in given if isinstance(given, list | tuple) else [given]:
            if value is not None and value is not False:
                words += [f"--{name.replace('_', '-')}"] + [str(value)] * (value is not True)
    for key, value in (assignments or {}).items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return words
