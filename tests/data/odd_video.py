"""A video whose decoder does as a test says, in the process that opens it."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from vjepa_hub.data.records import VideoContent, VideoRecord
from vjepa_hub.data.video import VideoDecodingError

__all__ = ["OddVideo", "Path", "VideoDecodingError", "odd_record", "os", "sys", "time"]  # for the code of the tests


@dataclass(frozen=True)
class OddVideo(VideoContent):
    """Content that runs Python code when it is opened."""

    code: str

    def open(self, *, backend):
        exec(self.code, globals())


def odd_record(code: str) -> VideoRecord:
    return VideoRecord("odd.mp4", OddVideo(code))
