r"""Nearest neighbours over clips: does a frozen encoder find the same object and the same motion, untrained for it?

Each clip becomes one vector, the mean and deviation of its tokens, and the clips of a gallery are sorted by their
cosine to a query. Printed is how often the nearest ones are of the query's class, beside what chance would give and
beside the same architecture untrained; `neighbours.png` shows some queries with what was found.

The video is made by the package, as in evaluate.py: drawn shapes, or with --pictures those of Fashion-MNIST
(`apt-get install dataset-fashion-mnist`); gallery and queries share no texture, picture or background. Folders of your
own need a list of 'path label' for each task, TASK.csv.

    python examples/nearest_neighbours.py                              # vjepa-vit-tiny, and the same untrained
    python examples/nearest_neighbours.py runs/pretrain-tiny untrained:runs/pretrain-tiny --pictures \
        --size 64 --num-gallery 800 --num-queries 200
    python examples/nearest_neighbours.py vjepa-vitl16 --gallery my/train --queries my/test --tasks action
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from vjepa_hub.data.synthetic.moving_pictures import SCENES
from vjepa_hub.evaluation.clips import EvaluationClips
from vjepa_hub.evaluation.encoders.opening import FrozenEncoder, open_encoder
from vjepa_hub.evaluation.labelled import LabelledSet, open_labelled
from vjepa_hub.evaluation.made_tasks import TASKS, TEST, TRAIN, MadeTaskSettings, make_task_videos
from vjepa_hub.evaluation.neighbours import (
    DESCRIPTORS,
    ClipDescriptors,
    Neighbours,
    describe_set,
    precision_at_k,
    search,
)
from vjepa_hub.evaluation.probe_run import clip_format_of
from vjepa_hub.evaluation.protocols import Protocol, find_protocol
from vjepa_hub.features.pictures import MARGIN, evenly_spaced, paper_with_header, picture_font, save_png
from vjepa_hub.pretraining.console import shown_progress

NUM_NEIGHBOURS, NUM_SHOWN, NUM_FRAMES_SHOWN, CELL = 5, 4, 3, 68
INK, GREY, SAME, OTHER = (28, 28, 30), (112, 112, 118), (18, 133, 122), (190, 92, 0)
LINE, BETWEEN = 15, 14  # pixels: of a line of text, and between two clips

show_progress = partial(shown_progress, Console(stderr=True))


@dataclass(frozen=True)
class Task:
    """One way to label the videos.

    Attributes:
        gallery: The videos that are searched.
        queries: Those that are searched for.
        class_names: Of the labels, in words.
    """

    gallery: LabelledSet
    queries: LabelledSet
    class_names: Sequence[str]


@dataclass(frozen=True)
class Found:
    """What one encoder found."""

    encoder: FrozenEncoder
    gallery: ClipDescriptors
    queries: ClipDescriptors
    neighbours: Neighbours


def main() -> None:
    """Search with each encoder, print the table, draw the picture."""
    arguments = parse_arguments()
    tasks = open_tasks(arguments)
    first = next(iter(tasks.values()))
    protocol = find_protocol("plain").with_values(num_segments=1, frame_step=arguments.frame_step, augmentation=None)
    results: list[Found] = []
    for name in arguments.encoders:
        encoder = open_encoder(name, crop_size=arguments.crop_size, device=arguments.device)
        described = []
        for words, labelled in (("the gallery", first.gallery), ("the queries", first.queries)):
            with show_progress(f"{name} sees {words}") as progress:
                described.append(describe_set(encoder, labelled, protocol, arguments.descriptor, progress=progress))
        gallery, queries = described
        neighbours = search(queries.features, gallery.features, NUM_NEIGHBOURS)
        results.append(Found(encoder, gallery, queries, neighbours))
    print_table(results, tasks)
    path = arguments.output_dir / "neighbours.png"
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    save_png(draw_neighbours(results, tasks, protocol, arguments.num_rows), path, {"descriptor": arguments.descriptor})
    print(f"wrote {path}")


# --- the videos ---


def open_tasks(arguments: argparse.Namespace) -> dict[str, Task]:
    """The labels of each task, of given folders or of videos that are made."""
    gallery, queries = arguments.gallery, arguments.queries
    if gallery is None:
        settings = MadeTaskSettings(
            num_train=arguments.num_gallery,
            num_test=arguments.num_queries,
            size=arguments.size,
            has_pictures=arguments.pictures is not None,
            scene=arguments.scene,
            pictures=Path(arguments.pictures) if arguments.pictures else None,
        )
        make_task_videos(arguments.output_dir, settings, show_progress)
        gallery, queries = arguments.output_dir / TRAIN, arguments.output_dir / TEST
    return {task: open_task(task, gallery, queries) for task in arguments.tasks}


def open_task(task: str, gallery: Path, queries: Path) -> Task:
    """One task; names of classes stand in classes.json, if there is one."""
    names_file = gallery / "classes.json"
    names = json.loads(names_file.read_text()).get(task) if names_file.exists() else None
    searched = open_labelled(gallery / f"{task}.csv", class_names=names)
    asked = open_labelled(queries / f"{task}.csv", num_classes=searched.num_classes, class_names=names)
    return Task(searched, asked, names or [f"class {number}" for number in range(searched.num_classes)])


# --- the table ---


def print_table(found: Sequence[Found], tasks: dict[str, Task]) -> None:
    """Precision of each encoder in each task."""
    table = Table(title="Precision of the nearest clips in %, with its 95 % interval")
    table.add_column("encoder", overflow="fold")
    for words in ("task", "at 1", f"at {NUM_NEIGHBOURS}", "chance"):
        table.add_column(words, no_wrap=True)
    for result in found:
        name = title_of(result.encoder)
        for task, labels in tasks.items():
            cells = []
            for k in (1, NUM_NEIGHBOURS):
                precision = precision_at_k(
                    result.neighbours,
                    labels.queries.labels[result.queries.indices],
                    labels.gallery.labels[result.gallery.indices],
                    k=k,
                )
                low, high = precision.interval
                cells.append(f"{100 * precision.value:.1f} ({100 * low:.1f}-{100 * high:.1f})")
            table.add_row(name, task, *cells, f"{100 * precision.chance:.1f}")
        unreadable = result.gallery.num_unreadable + result.queries.num_unreadable
        if unreadable:
            table.add_row(name, f"{unreadable} videos could not be read", "", "", "")
    console = Console()
    console.print(table, f"{len(found[0].queries)} queries, {len(found[0].gallery)} clips in the gallery")


def title_of(encoder: FrozenEncoder) -> str:
    """Its name, and that it is untrained where the name does not say so."""
    says_all = encoder.is_trained or encoder.name.startswith("untrained:")
    return encoder.name if says_all else f"{encoder.name} (untrained)"


# --- the picture ---


def draw_neighbours(found: Sequence[Found], tasks: dict[str, Task], protocol: Protocol, num_rows: int) -> Image.Image:
    """For each encoder a few queries on the left, the same for all, and the nearest clips beside them."""
    num_shown = min(NUM_SHOWN, found[0].neighbours.places.shape[1])
    clip_width, row_height = NUM_FRAMES_SHOWN * CELL, CELL + LINE * len(tasks) + BETWEEN
    title_height = 2 * LINE + BETWEEN // 2
    header = [
        ("Nearest neighbours over clips", 22, INK),
        (
            "First, middle and last frame of each clip. A filled square: of the query's class; a hollow one: not.",
            15,
            GREY,
        ),
    ]
    canvas, y = paper_with_header(
        header,
        (num_shown + 1) * (clip_width + BETWEEN) + BETWEEN,
        len(found) * (title_height + row_height * num_rows),
    )
    for result in found:
        draw = ImageDraw.Draw(canvas)
        is_trained = result.encoder.is_trained
        draw.text((MARGIN, y), title_of(result.encoder), font=picture_font(16), fill=INK if is_trained else OTHER)
        for column, words in enumerate(("query", *(f"nearest {place + 1}" for place in range(num_shown)))):
            x = column_start(column, clip_width)
            draw.text((x, y + LINE + 6), words, font=picture_font(13), fill=GREY)
        y += title_height + 4
        for query in evenly_spaced(len(result.queries), num_rows):
            draw_row(canvas, result, tasks, protocol, query, y, num_shown)
            y += row_height
    return canvas


def column_start(column: int, clip_width: int) -> int:
    """Left side of a clip; the query stands a little apart."""
    return MARGIN + column * (clip_width + BETWEEN) + (BETWEEN if column else 0)


def draw_row(
    canvas: Image.Image,
    result: Found,
    tasks: dict[str, Task],
    protocol: Protocol,
    query: int,
    y: int,
    num_shown: int,
) -> None:
    """A query and its nearest clips, with the names of their classes."""
    clip_width = NUM_FRAMES_SHOWN * CELL
    own = int(result.queries.indices[query])
    first = next(iter(tasks.values()))
    paste_clip(canvas, result.encoder, first.queries, own, protocol, (MARGIN, y))
    wanted = {task: int(labels.queries.labels[own]) for task, labels in tasks.items()}
    for line, (task, label) in enumerate(wanted.items()):
        draw_class(canvas, tasks[task].class_names[label], None, MARGIN, y + CELL + LINE * line)
    for column, place in enumerate(result.neighbours.places[query, :num_shown], 1):
        x, other = column_start(column, clip_width), int(result.gallery.indices[place])
        paste_clip(canvas, result.encoder, first.gallery, other, protocol, (x, y))
        for line, (task, label) in enumerate(wanted.items()):
            found = int(tasks[task].gallery.labels[other])
            draw_class(canvas, tasks[task].class_names[found], found == label, x, y + CELL + LINE * line)


def draw_class(canvas: Image.Image, name: str, is_same: bool | None, x: int, y: int) -> None:
    """The name of a class, with a square that says whether it is the query's."""
    draw = ImageDraw.Draw(canvas)
    colour = INK if is_same is None else SAME if is_same else OTHER
    if is_same is not None:
        draw.rectangle((x, y + 4, x + 8, y + 12), fill=colour if is_same else None, outline=colour, width=2)
        x += 13
    draw.text((x, y + 2), name, font=picture_font(12), fill=colour)


def paste_clip(
    canvas: Image.Image,
    encoder: FrozenEncoder,
    labelled: LabelledSet,
    index: int,
    protocol: Protocol,
    place: tuple[int, int],
) -> None:
    """Some frames of a clip, as the encoder sees them."""
    clips = EvaluationClips(labelled, protocol, clip_format_of(encoder))
    pixels = clips[index]["pixel_values_videos"][0, 0]  # (T, C, H, W)
    kept = pixels[evenly_spaced(len(pixels), NUM_FRAMES_SHOWN)]
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    frames = ((kept * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    for number, frame in enumerate(np.ascontiguousarray(frames)):
        picture = Image.fromarray(frame).resize((CELL - 2, CELL - 2), Image.Resampling.BICUBIC)
        canvas.paste(picture, (place[0] + number * CELL, place[1]))


# --- the command line ---


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["vjepa-vit-tiny", "untrained:vjepa-vit-tiny"]
    parser.add_argument("encoders", nargs="*", default=default, help="as for `vjepa-hub probe`")
    parser.add_argument("--gallery", type=Path, metavar="FOLDER", help="your own videos that are searched")
    parser.add_argument("--queries", type=Path, metavar="FOLDER", help="your own videos that are searched for")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="lists of labels in the folders")
    parser.add_argument(
        "--pictures",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="move pictures of Fashion-MNIST, from a folder of its IDX files (default: that of Debian's package)",
    )
    parser.add_argument("--scene", choices=list(SCENES), default="grainy", help="how pictures look")
    parser.add_argument("--num-gallery", type=int, default=64, help="videos that are made to be searched")
    parser.add_argument("--num-queries", type=int, default=16)
    parser.add_argument("--size", type=int, default=64, help="pixels of the videos that are made")
    parser.add_argument("--crop-size", type=int, help="pixels of the encoders' input (default: their own)")
    parser.add_argument("--frame-step", type=int, default=2, help="video frames between two of a clip")
    parser.add_argument("--descriptor", choices=list(DESCRIPTORS), default="mean-std")
    parser.add_argument("--num-rows", type=int, default=3, help="queries in the picture, for each encoder")
    parser.add_argument("--device", help="such as cuda (default: the CPU)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/nearest-neighbours"))
    arguments = parser.parse_args()
    if (arguments.gallery is None) != (arguments.queries is None):
        parser.error("--gallery and --queries belong together: give both, or none")
    return arguments


if __name__ == "__main__":
    main()
