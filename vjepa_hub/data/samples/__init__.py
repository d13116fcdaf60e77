"""The sample clip that travels with the package; ATTRIBUTION.md beside it says whose it is."""

from pathlib import Path

SAMPLE_CLIP = "big_buck_bunny.mp4"


def sample_clip_path() -> Path:
    """Path of the sample clip: 96 frames of 640x360, 4 s, H.264, from Big Buck Bunny (CC BY 3.0)."""
    return Path(__file__).with_name(SAMPLE_CLIP)
