"""Words of messages: the nearest of some names to a misspelled one, counted nouns."""

import difflib
from collections.abc import Iterable


def nearest(key: str, known: Iterable[str]) -> str:
    """Of some names the one that is most like another."""
    return difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)[0]


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 video", "2,000 videos".

    Args:
        number: How many.
        noun: Of one.
        plural: Of several; by default with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
