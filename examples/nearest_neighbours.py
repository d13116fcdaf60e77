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
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from vjepa_hub.core.progress import ProgressBar
from vjepa_hub.data.synthetic.moving_pictures import SCENES
from vjepa_hub.evaluation.clips import EvaluationClips
from vjepa_hub.evaluation.encoders.opening import FrozenEncoder, open_encoder
from vjepa_hub.evaluation.labelled import LabelledSet, open_labelled
from vjepa_hub.evaluation.made_tasks import TASKS, TEST, TRAIN, MadeTaskSettings, make_task_videos
from vjepa_hub.evaluation.neighbours import describe_set
from vjepa_hub.evaluation.probe_run import clip_format_of
from vjepa_hub.evaluation.protocols import Protocol, find_protocol
from vjepa_hub.heads.neighbours import DESCRIPTORS, ClipDescriptors, Neighbours, precision_at_k, search
from vjepa_hub.viz.image_grid import evenly_spaced
from vjepa_hub.viz.style import AMBER, GREEN, GREY, INK, style, write_png

NUM_NEIGHBOURS, NUM_SHOWN, NUM_FRAMES_SHOWN = 5, 4, 3


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
        for labelled in (first.gallery, first.queries):
            with ProgressBar() as progress:
                described.append(describe_set(encoder, labelled, protocol, arguments.descriptor, progress=progress))
        gallery, queries = described
        neighbours = search(queries.features, gallery.features, NUM_NEIGHBOURS)
        results.append(Found(encoder, gallery, queries, neighbours))
    print_table(results, tasks)
    path = arguments.output_dir / "neighbours.png"
    write_png(
        draw_neighbours(results, tasks, protocol, arguments.num_rows), path, {"descriptor": arguments.descriptor}
    )
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
        with ProgressBar() as progress:
            make_task_videos(arguments.output_dir, settings, progress)
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


@style()
def draw_neighbours(found: Sequence[Found], tasks: dict[str, Task], protocol: Protocol, num_rows: int) -> Figure:
    """For each encoder a few queries on the left, the same for all, and the nearest clips beside them."""
    num_shown = min(NUM_SHOWN, found[0].neighbours.places.shape[1])
    shown = [(result, query) for result in found for query in evenly_spaced(len(result.queries), num_rows)]
    figure = Figure(figsize=(2.1 * (num_shown + 1), 1.15 * len(shown) + 0.9), layout="constrained")
    figure.suptitle("Nearest neighbours over clips: first, middle and last frame of each", size=11, ha="left", x=0.004)
    first = next(iter(tasks.values()))
    rows = figure.subplots(len(shown), num_shown + 1, squeeze=False)
    for number, (axes, (result, query)) in enumerate(zip(rows, shown, strict=True)):
        own = int(result.queries.indices[query])
        nearest = [int(result.gallery.indices[place]) for place in result.neighbours.places[query, :num_shown]]
        draw_clip(axes[0], result.encoder, first.queries, own, protocol)
        for panel, other in zip(axes[1:], nearest, strict=True):
            draw_clip(panel, result.encoder, first.gallery, other, protocol)
        for line, task in enumerate(tasks.values()):
            wanted, place = int(task.queries.labels[own]), -0.05 - 0.25 * line
            write_class(axes[0], task.class_names[wanted], INK, place)
            for panel, other in zip(axes[1:], nearest, strict=True):
                label = int(task.gallery.labels[other])
                write_class(panel, task.class_names[label], GREEN if label == wanted else AMBER, place)
        if number % num_rows == 0:
            axes[0].set_title(title_of(result.encoder), color=INK if result.encoder.is_trained else AMBER)
    figure.supxlabel("green: of the query's class; orange: of another", size=8, color=GREY)
    return figure


def write_class(axes: Axes, name: str, colour: str, place: float) -> None:
    """The name of a class below a clip."""
    axes.text(0, place, name, color=colour, transform=axes.transAxes, va="top")


def draw_clip(axes: Axes, encoder: FrozenEncoder, labelled: LabelledSet, index: int, protocol: Protocol) -> None:
    """Some frames of a clip, as the encoder sees them."""
    pixels = EvaluationClips(labelled, protocol, clip_format_of(encoder))[index]["pixel_values_videos"][0, 0]
    kept = pixels[evenly_spaced(len(pixels), NUM_FRAMES_SHOWN)]  # (T, C, H, W)
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    frames = ((kept * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    axes.imshow(np.concatenate(frames, axis=1), interpolation="bicubic")
    axes.set_axis_off()


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
