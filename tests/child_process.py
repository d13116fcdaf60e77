"""Python programs in processes of their own, for what is decided at import."""

import subprocess
import sys
import textwrap
from collections.abc import Mapping


def run_python(code: str, env: Mapping[str, str], *, arguments: tuple[str, ...] = (), timeout: float = 120) -> str:
    """What a child process prints. It must end well.

    huggingface_hub and transformers read their environment variables when they are imported, so that each environment
    needs a process of its own; importing costs seconds, so that a test puts many checks into one.

    Args:
        code: the child's whole program; it may be indented.
        env: the child's whole environment, as `HubServer.environment` gives it.
        arguments: the child's `sys.argv[1:]`.
        timeout: seconds.

    Raises:
        AssertionError: the child failed; the message holds the ends of both its outputs.
    """
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    child = subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=timeout)
    assert child.returncode == 0, f"exit {child.returncode}\n{child.stdout[-2000:]}\n{child.stderr[-6000:]}"
    return child.stdout
