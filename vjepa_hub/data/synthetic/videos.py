"""Video that the package makes, by what it shows: drawn shapes, or pictures of Fashion-MNIST."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import Field

from ...core.progress import Progress, no_progress
from .moving_pictures import MovingPictureSettings, make_moving_pictures, read_fashion_mnist
from .shapes import SyntheticVideoSettings, make_synthetic_videos

VideoSettings: TypeAlias = Annotated[SyntheticVideoSettings | MovingPictureSettings, Field(discriminator="kind")]
"""Settings of any kind of video, told apart by `kind`."""
MADE_KINDS: Mapping[str, type[SyntheticVideoSettings]] = {
    "shapes": SyntheticVideoSettings,
    "fashion-mnist": MovingPictureSettings,
}
"""The settings of each kind."""


def make_videos(
    folder: str | Path,
    settings: SyntheticVideoSettings,
    *,
    pictures: str | Path | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Make the videos of one split, their labels and the manifests. Videos that are there already are kept.

    Args:
        folder: Made if it is not there.
        settings: Of a kind; pictures are those of its split.
        pictures: Folder of the IDX files of Fashion-MNIST; None: that of Debian's package.
        progress: Called with the videos that are there, and all videos, before the first and after each.

    Returns:
        The path of `videos.csv`.

    Raises:
        FileNotFoundError: The pictures are not there.
        ValueError: A file of pictures is broken, or the folder holds other videos.
        OSError: A file cannot be written.
    """
    if isinstance(settings, MovingPictureSettings):
        shown = read_fashion_mnist(settings.split, pictures)
        return make_moving_pictures(folder, settings, **shown, progress=progress)
    return make_synthetic_videos(folder, settings, progress=progress)
