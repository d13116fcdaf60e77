"""`vjepa-hub show-masks`: masks on a clip, as a picture."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.files import require_replaceable
from .common import usage_errors
from .options import Backend, complete_models, existing, known_model

if TYPE_CHECKING:
    from ..data.masking import MaskPair, TokenGrid


class MaskKind(str, Enum):
    """Kinds of masks."""

    short_range = "short-range"
    long_range = "long-range"
    random_tube = "random-tube"
    causal = "causal"
    future = "future"
    box = "box"


_TRAINING_KINDS = (MaskKind.short_range, MaskKind.long_range, MaskKind.random_tube, MaskKind.causal)


def show_masks(
    video: Annotated[
        Path | None,
        typer.Argument(help="A video or an image. Default: the sample clip.", show_default=False, callback=existing),
    ] = None,
    output: Annotated[Path, typer.Option(help="The picture, a .png; replaced if it exists.")] = Path("masks.png"),
    kind: Annotated[
        list[MaskKind] | None,
        typer.Option(help="May be repeated. Default: the kinds of training, that is all but future and box."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="The model whose tokens are shown: a name or a folder.",
            callback=known_model,
            autocompletion=complete_models,
        ),
    ] = "vjepa-vitl16",
    size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Pixels of the clip, 224 or 192x320. Default: the model's.")
    ] = None,
    step: Annotated[int, typer.Option(help="Step of training, which sets the size of the blocks.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the places of blocks and patches.")] = 0,
    batch_size: Annotated[
        int, typer.Option(help="Clips that are drawn together and cut to the smallest counts; the first is shown.")
    ] = 1,
    frame: Annotated[
        int | None, typer.Option(help="First hidden frame of the clip, for future. Default: the middle one.")
    ] = None,
    box: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option(metavar="TOP LEFT BOTTOM RIGHT", help="Pixels, for box. Default: the middle of the frame."),
    ] = None,
    backend: Backend = None,
) -> None:
    """Draw masks on a clip: what the encoder sees, and what is hidden from it for the predictor to predict.

    short-range and long-range are the two kinds of the paper's training, random-tube and causal those of its
    ablation, future and box are made by hand. The same step and seed give the same masks.
    """
    kinds = [chosen.value for chosen in kind or _TRAINING_KINDS]
    _require_kind("--frame", frame, "future", kinds)
    _require_kind("--box", box, "box", kinds)
    _require_new_png(output, video)

    from ..data.samples import sample_clip_path
    from ..features.extraction import open_frames
    from ..viz.masks import MaskSampler, draw_masks, read_tubelet_frames, token_grid
    from ..viz.style import write_png

    with usage_errors():
        grid, path = token_grid(model, size), video or sample_clip_path()
        sampler = MaskSampler(grid=grid, step=step, seed=seed, batch_size=batch_size, frame=frame, box=box)
        masks = {name: sampler.sample(name) for name in kinds}
        with open_frames(path, backend) as opened:
            frames, seconds = read_tubelet_frames(opened, grid)
        figure = draw_masks(frames, seconds, grid, masks, title=Path(path).name, model=model)
        write_png(figure, output, {"model": model, "step": str(step), "seed": str(seed)})
    _show_counts(masks, grid)
    typer.echo(f"wrote {output}")


def _require_kind(option: str, value: object, kind: str, kinds: list[str]) -> None:
    if value is not None and kind not in kinds:
        raise typer.BadParameter(f"{option} was given, but --kind {kind} was not, which it belongs to: add it")


def _require_new_png(output: Path, video: Path | None) -> None:
    if output.suffix.lower() != ".png":
        raise typer.BadParameter(f"--output is {output}, but the picture is a PNG: give a name that ends with .png")
    with usage_errors():
        require_replaceable([output], inputs=[] if video is None else [video], is_own=_is_mask_picture)


def _is_mask_picture(path: Path) -> bool:
    """Return whether a file is a PNG that states the step and seed of masks."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return {"model", "step", "seed"} <= image.info.keys()
    except OSError:  # no picture
        return False


def _show_counts(masks: dict[str, MaskPair], grid: TokenGrid) -> None:
    from ..viz.masks import count_tokens, describe_tokens

    counts = {name: count_tokens(mask, grid) for name, mask in masks.items()}
    table = Table("mask", *next(iter(counts.values())), box=None, pad_edge=False)
    for name, numbers in counts.items():
        table.add_row(name, *numbers.values())
    console = Console()
    console.print(Text(describe_tokens(masks, grid)))
    console.print(table)
