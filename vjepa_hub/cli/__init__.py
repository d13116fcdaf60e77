"""The `vjepa-hub` command."""

from .commands import app, main

__all__ = ["app", "main"]
