r"""What has the predictor learned to expect? Its error to the true future of a clip against that to wrong ones.

Half of each clip is hidden, and its features are predicted from the other half. A model that understands what it sees
is farther from a wrong continuation than from the true one (Garrido et al. 2025, arXiv 2502.11831): the future of
another clip, the same future backwards, a world that stands still, or one in which the object is gone. In reverse, an
object appears where the background alone was seen. Chance is 50 %; what counts is the distance to the same
architecture untrained, since some continuations are far from any prediction, and of removed and appeared the mean.

The clips are drawn by the package, with and without their objects, and never shown in training: shapes, or with
--pictures those of Fashion-MNIST (`apt-get install dataset-fashion-mnist`).

    python examples/surprise.py                                        # vjepa-vit-tiny, and the same untrained
    python examples/surprise.py --pictures --num-clips 256             # on what it was trained for
    python examples/surprise.py runs/pretrain-tiny/checkpoint-3000 untrained:runs/pretrain-tiny/checkpoint-3000 \
        --pictures --num-clips 256
    python examples/surprise.py runs/pretrain-tiny/checkpoint-3000 --hide middle
"""

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from vjepa_hub import VJEPAForPreTraining, VJEPAVideoProcessor
from vjepa_hub.data.masking import MaskPair, TokenGrid, mask_box, mask_future
from vjepa_hub.data.synthetic.moving_pictures import (
    SCENES,
    MovingPictureSettings,
    read_fashion_mnist,
    render_moving_picture,
    render_moving_picture_background,
)
from vjepa_hub.data.synthetic.shapes import SyntheticVideoSettings, render_synthetic_background, render_synthetic_video
from vjepa_hub.evaluation.surprise import (
    OBJECT_APPEARED,
    OBJECT_REMOVED,
    Surprise,
    make_appearances,
    make_continuations,
    measure_surprise,
    object_permanence,
)
from vjepa_hub.pretraining.run import open_initial
from vjepa_hub.viz.image_grid import evenly_spaced
from vjepa_hub.viz.style import AMBER, FAINT, GREY, INK, TEAL, style, write_png

UNTRAINED = "untrained:"
NUM_FRAMES_SHOWN = 8
TRUE, WRONG = TEAL, AMBER


@dataclass(frozen=True)
class Measured:
    """What one model was surprised by.

    Attributes:
        name: Of the model.
        surprises: For each kind of wrong continuation.
        strips: Frames of one clip, the true one first, then each wrong one: `(num_frames, height, width, 3)` uint8.
    """

    name: str
    surprises: Mapping[str, Surprise]
    strips: Mapping[str, np.ndarray]


def main() -> None:
    """Measure each model, print the table, draw the picture."""
    arguments = parse_arguments()
    measured = [measure(name, arguments) for name in arguments.models]
    print_table(measured, arguments.num_clips)
    path = arguments.output_dir / "surprise.png"
    write_png(draw_surprise(measured, arguments), path)
    print(f"wrote {path}")


def measure(name: str, arguments: argparse.Namespace) -> Measured:
    """One model on clips of the size that it wants."""
    model = open_for_prediction(name)
    config = model.config
    side, num_frames = config.crop_size, config.frames_per_clip
    clips, backgrounds = draw_clips(arguments, side, num_frames)
    grid = TokenGrid.from_config(config)
    masks = hide(arguments.hide, grid)
    processor = VJEPAVideoProcessor(crop_size=side, size={"shortest_edge": side})
    pixels, empty = (
        processor(list(frames), do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
        for frames in (clips, backgrounds)
    )
    continuations = make_continuations(pixels, masks, grid, backgrounds=empty)
    appearances = make_appearances(empty, pixels, masks, grid)
    model.to(arguments.device)
    surprises: dict[str, Surprise] = {}
    with Console(stderr=True).status(f"{name} expects, and sees other things"):
        for true, wrong in ((pixels, continuations), (empty, appearances)):
            surprises |= measure_surprise(model, true, wrong, masks, clips_per_pass=8)
    shown = {"what came": pixels, **continuations, **appearances}
    strips = {kind: to_frames(clips[arguments.shown], processor) for kind, clips in shown.items()}
    return Measured(name, surprises, strips)


def open_for_prediction(name: str) -> VJEPAForPreTraining:
    """A model; of an untrained one only the architecture counts."""
    model = open_initial(name.removeprefix(UNTRAINED))
    if not name.startswith(UNTRAINED):
        return model
    torch.manual_seed(0)
    return VJEPAForPreTraining(model.config)


def draw_clips(arguments: argparse.Namespace, side: int, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips with their objects and without, `(num_clips, num_frames, side, side, 3)` each, of the test split."""
    length, step = num_frames * arguments.frame_step, arguments.frame_step
    values = {"size": side, "num_frames": length, "split": "test", "seed": arguments.seed}
    pairs = []
    if arguments.pictures is None:
        shapes = SyntheticVideoSettings(**values)
        for index in range(arguments.num_clips):
            pairs.append((render_synthetic_video(shapes, index).frames, render_synthetic_background(shapes, index)))
    else:
        moving = MovingPictureSettings(**values, scene=arguments.scene)
        given = read_fashion_mnist("test", arguments.pictures or None)
        for index in range(arguments.num_clips):
            video = render_moving_picture(moving, index, pictures=given["pictures"], labels=given["labels"])
            pairs.append((video.frames, render_moving_picture_background(moving, index)))
    clips, backgrounds = (np.stack(frames)[:, ::step] for frames in zip(*pairs, strict=True))
    return clips, backgrounds


def hide(what: str, grid: TokenGrid) -> MaskPair:
    """The second half of the clip, or the middle of the frame, a quarter of it, all the time."""
    if what == "future":
        return mask_future(grid, grid.num_frames // 2)
    top, left = grid.height // 4, grid.width // 4
    return mask_box(grid, top=top, left=left, bottom=grid.height - top, right=grid.width - left)


def to_frames(clip: torch.Tensor, processor: VJEPAVideoProcessor) -> np.ndarray:
    """Normalised pixels as frames again."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return ((clip * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def print_table(measured: Sequence[Measured], num_clips: int) -> None:
    """Mean absolute errors, and the share of clips with the larger one for the wrong continuation."""
    console = Console()
    for result in measured:
        table = Table("wrong continuation", "true", "wrong", "larger, %", "95 % interval", title=result.name)
        removed, appeared = (result.surprises[kind] for kind in (OBJECT_REMOVED, OBJECT_APPEARED))
        rows = {**result.surprises, "removed and appeared": object_permanence(removed, appeared)}
        for kind, found in rows.items():
            low, high = found.interval()
            errors = f"{found.true_errors.mean():.3f}", f"{found.wrong_errors.mean():.3f}"
            table.add_row(kind, *errors, f"{100 * found.accuracy:.1f}", f"{100 * low:.1f} to {100 * high:.1f}")
        console.print(table)
    console.print(f"{num_clips} clips; chance is 50 %")


# --- the picture ---


@style()
def draw_surprise(measured: Sequence[Measured], arguments: argparse.Namespace) -> Figure:
    """One clip and its wrong continuations, and beside each the errors of all models."""
    kinds = list(measured[0].surprises)
    num_rows = len(kinds) + 1
    figure = Figure(figsize=(8.6 + 2.9 * len(measured), 1.1 + 1.12 * num_rows), facecolor="white")
    ratios = [7.3, *[2.7] * len(measured)]
    axes = figure.subplots(num_rows, len(ratios), gridspec_kw={"width_ratios": ratios}, squeeze=False)
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=1.5 / figure.get_figwidth(), right=0.985, top=1 - 1.0 / height, bottom=0.045, wspace=0.06, hspace=0.12
    )
    what = "the second half" if arguments.hide == "future" else "the middle of the frame"
    words = (
        f"Hidden and predicted is {what} of each clip. Mean error to what came (green) and to what did not (orange); "
        "for how many clips the second is larger, with the 95 % interval; by how much, each dot a clip."
    )
    words = textwrap.fill(words, int(12 * figure.get_figwidth()))
    figure.text(0.012, 1 - 0.24 / height, "Surprise", fontsize=16, va="center")
    figure.text(0.012, 1 - 0.44 / height, words, color=GREY, va="top")
    for row, kind in enumerate(("what came", *kinds)):
        draw_strip(axes[row][0], measured[0].strips[kind], kind, has_future=arguments.hide == "future")
        for column, result in enumerate(measured, 1):
            if row:
                draw_errors(axes[row][column], result.surprises[kind], is_last=row == len(kinds))
            else:
                axes[row][column].axis("off")
                axes[row][column].text(
                    0.5, 0.06, wrapped(result.name), ha="center", va="bottom", transform=axes[row][column].transAxes
                )
    return figure


def draw_strip(axis, frames: np.ndarray, kind: str, *, has_future: bool) -> None:
    """Frames side by side; those that were hidden have a line above."""
    kept = evenly_spaced(len(frames), NUM_FRAMES_SHOWN)
    side, gap = frames.shape[1], max(2, frames.shape[1] // 24)
    strip = np.full((side, len(kept) * (side + gap) - gap, 3), 255, np.uint8)
    for place, number in enumerate(kept):
        strip[:, place * (side + gap) : place * (side + gap) + side] = frames[number]
    axis.imshow(strip, interpolation="nearest")
    axis.set_axis_off()
    axis.text(-0.02 * strip.shape[1], side / 2, kind, ha="right", va="center", fontsize=11)
    first = sum(number < len(frames) // 2 for number in kept) if has_future else 0
    colour = TRUE if kind == "what came" else WRONG
    axis.plot([first * (side + gap), strip.shape[1]], [-0.07 * side] * 2, color=colour, linewidth=2.5, clip_on=False)


def changes(found: Surprise) -> np.ndarray:
    """By how much of the true error the wrong one is larger, in per cent, for each clip."""
    return 100 * (found.wrong_errors / found.true_errors - 1)


def draw_errors(axis, found: Surprise, *, is_last: bool) -> None:
    """A dot for each clip, to the right of the line where the wrong error is larger; the means in words.

    The axis is even up to 1 %, and logarithmic beyond.
    """
    heights = np.random.default_rng(0).uniform(0.08, 0.5, len(found.true_errors))
    colours = [WRONG if is_surprised else GREY for is_surprised in found.is_surprised]
    axis.axvline(0, ymax=0.58, color=FAINT, linewidth=1.5, zorder=0)
    axis.scatter(changes(found), heights, c=colours, s=13, alpha=0.6, linewidths=0)
    low, high = found.interval()
    shares = f"{100 * found.accuracy:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
    for x, words, side, colour in (
        (0.03, f"{found.true_errors.mean():.3f}", "left", TRUE),
        (0.21, f"{found.wrong_errors.mean():.3f}", "left", WRONG),
        (0.97, shares, "right", INK),
    ):
        axis.text(x, 0.82, words, transform=axis.transAxes, ha=side, va="center", color=colour)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlim(-300, 300)
    axis.set_ylim(0, 1)
    axis.set_yticks([])
    ticks = {-100: "-100 %", -10: "-10", -1: "-1", 0: "0", 1: "1", 10: "10", 100: "100 %"} if is_last else {}
    axis.set_xticks(list(ticks), labels=list(ticks.values()), fontsize=8)
    axis.set_xticks([], minor=True)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_color(FAINT)


def wrapped(name: str, width: int = 32) -> str:
    """A long name in lines."""
    return "\n".join(name[start : start + width] for start in range(0, len(name), width))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models",
        nargs="*",
        default=["vjepa-vit-tiny", f"{UNTRAINED}vjepa-vit-tiny"],
        metavar="MODEL",
        help="folder of a pretraining run or checkpoint, registered name, or untrained: and one of them",
    )
    parser.add_argument(
        "--pictures",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="move pictures of Fashion-MNIST, from a folder of its IDX files (default: that of Debian's package)",
    )
    parser.add_argument("--scene", choices=list(SCENES), default="grainy", help="how pictures look")
    parser.add_argument("--num-clips", type=int, default=8)
    parser.add_argument("--hide", choices=("future", "middle"), default="future")
    parser.add_argument("--frame-step", type=int, default=2, help="video frames between two of a clip")
    parser.add_argument("--seed", type=int, default=0, help="of the clips")
    parser.add_argument("--shown", type=int, default=0, help="number of the clip in the picture")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/surprise"))
    arguments = parser.parse_args()
    if arguments.num_clips < 2 or not 0 <= arguments.shown < arguments.num_clips:
        parser.error("--num-clips must be at least 2, for a clip needs another one, and --shown one of them")
    return arguments


if __name__ == "__main__":
    main()
