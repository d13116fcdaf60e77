"""Paths of the publisher's machine in what is published: found, and shortened to their last name.

Runs write down where their weights and videos came from, and that is nobody else's business.
"""

import re
from pathlib import PurePosixPath

# Two names or more after a root, a drive or a home; not the path of an address (https://...), nor "and/or"
_PATH = re.compile(r"(?<![\w.:/\\~<)\]])(?:file://)?(?:~|[A-Za-z]:)?(?:(?:/|\\{1,2})[\w.+@%=-]+){2,}[/\\]*")


def find_machine_paths(text: str) -> list[str]:
    """The absolute paths in a text, each once, in their order.

    Args:
        text: Of a file that is to be published: JSON, YAML, a table, prose.
    """
    return list(dict.fromkeys(match.group() for match in _PATH.finditer(text)))


def shorten_machine_paths(text: str) -> str:
    """A text with the last name of each absolute path in the path's place.

    Args:
        text: Any; that of a JSON file stays JSON.
    """
    return _PATH.sub(lambda match: PurePosixPath(match.group().replace("\\", "/")).name, text)
