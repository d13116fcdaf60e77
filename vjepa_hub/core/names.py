"""The nearest of some names to a misspelled one, for messages."""

import difflib
from collections.abc import Iterable


def nearest(key: str, known: Iterable[str]) -> str:
    """Of some names the one that is most like another."""
    return difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)[0]
