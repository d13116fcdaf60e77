"""`vjepa-hub make-videos`: synthetic labelled videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..core.progress import ProgressBar
from .common import usage_errors
from .options import existing, output_folder


def make_videos(
    folder: Annotated[
        Path, typer.Argument(help="Made if it is not there; videos that are there are kept.", callback=output_folder)
    ],
    kind: Annotated[
        Literal["shapes", "fashion-mnist"], typer.Option(help="What moves: drawn shapes, or pictures.")
    ] = "shapes",
    num_videos: Annotated[int, typer.Option(help="Number of videos.")] = 1000,
    size: Annotated[int, typer.Option(help="Side of the square frames in pixels.")] = 64,
    num_frames: Annotated[int, typer.Option(help="Frames of each video.")] = 32,
    split: Annotated[str, typer.Option(help="train or test; they share neither backgrounds nor pictures.")] = "train",
    seed: Annotated[int, typer.Option(help="Everything is a function of it.")] = 0,
    scene: Annotated[
        str | None,
        typer.Option(help="How pictures look: textured (the default), or grainy: grey, in grain new in every frame."),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the four IDX files of Fashion-MNIST (MIT licence). Default: that of Debian's package "
            "dataset-fashion-mnist.",
            callback=existing,
        ),
    ] = None,
) -> None:
    """Make labelled video: H.264 files whose objects and motions are told apart by two labels each.

    The same numbers give the same videos. The folder gets videos.csv (path and both labels), and appearance.csv and
    motion.csv in the form 'path label', for pretrain, probe and finetune.
    """
    if kind == "shapes" and (pictures is not None or scene is not None):
        raise typer.BadParameter("--pictures and --scene are for --kind fashion-mnist; shapes are drawn")

    from ..core.folder_lock import FolderLock
    from ..data.synthetic.videos import MADE_KINDS
    from ..data.synthetic.videos import make_videos as make

    look: dict[str, Any] = {} if scene is None else {"scene": scene}
    with usage_errors():
        numbers = {"num_videos": num_videos, "size": size, "num_frames": num_frames, "seed": seed}
        settings = MADE_KINDS[kind].from_tree({**numbers, "split": split, **look})
        with FolderLock(folder), ProgressBar() as progress:
            manifest = make(folder, settings, pictures=pictures, progress=progress)
    typer.echo(f"wrote {manifest}")
