"""Evaluates as one of several processes: `python probe_process.py FOLDER`, which holds the model and the videos."""

import sys
from pathlib import Path

from tests.evaluation.test_probe_run import run_in
from vjepa_hub.core.distributed import join_processes

if __name__ == "__main__":
    run_in(Path(sys.argv[1]), Path(sys.argv[1], "two"))
    name = f"process-{join_processes().rank}-of-{join_processes().count}"
    Path(sys.argv[1], name).touch()  # printed lines of two processes run into each other
