"""Frozen evaluation from nothing: make labelled video, train attentive probes on a frozen encoder, print the tables.

The video is real files that the package makes: shapes that move over a drifting background, labelled by what they look
like and, independently, by how they move. No video, texture or background of the test set is in the training set.
With --pictures the pictures of Fashion-MNIST move instead (`apt-get install dataset-fashion-mnist`): they are easier,
so that a small encoder is above chance after minutes.

    python examples/evaluate.py                                        # vjepa-vit-tiny, three seeds, minutes on a CPU
    python examples/evaluate.py runs/pretrain-tiny untrained:runs/pretrain-tiny --num-train 2000 --label-fraction 0.1
    python examples/evaluate.py runs/pretrain-tiny untrained:runs/pretrain-tiny --pictures --size 64
"""

import argparse
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from vjepa_hub.data.moving_pictures import MovingPictureSettings, make_moving_pictures, read_fashion_mnist
from vjepa_hub.data.synthetic import SyntheticVideoSettings, make_synthetic_videos
from vjepa_hub.evaluation.heads import HeadSettings
from vjepa_hub.evaluation.probe_run import ProbeSettings, run_probe
from vjepa_hub.evaluation.protocols import find_protocol


def main() -> None:
    """Make the video, then a table for each task."""
    arguments = parse_arguments()
    folder = arguments.output_dir
    for split, num_videos in (("train", arguments.num_train), ("test", arguments.num_test)):
        make_videos(arguments, split, num_videos)
    for task, num_classes in (("appearance", 10), ("motion", 8)):
        settings = ProbeSettings(
            encoders=arguments.encoders,
            protocol=find_protocol("plain").with_values(
                num_segments=1, frame_step=2, augmentation=None, num_epochs=arguments.num_epochs
            ),
            train=folder / "train" / f"{task}.csv",
            validation=folder / "test" / f"{task}.csv",
            heads=[
                HeadSettings(pooling=pooling, learning_rate=rate, weight_decay=0.01)
                for pooling in ("attentive", "average")
                for rate in (3e-4, 1e-3, 3e-3)
            ],
            seeds=arguments.seed,
            label_fractions=arguments.label_fraction,
            num_splits=3,
            num_classes=num_classes,
            cache=folder / "features",
        )
        for row in run_probe(settings, folder / task, show_progress):
            mark = "*" if row.is_selected else " "
            Console().print(
                f"{mark} {task}, {row.encoder}, {row.fraction:.0%} of the labels, {row.head}: top-1 "
                f"{row.top1.to_percent()} % (chance {100 / num_classes:.1f} %)",
                soft_wrap=True,
                highlight=False,
            )


def make_videos(arguments: argparse.Namespace, split: str, num_videos: int) -> None:
    """The videos of a split, of made shapes or of pictures."""
    values = {"num_videos": num_videos, "size": arguments.size, "num_frames": 32, "split": split}
    folder = arguments.output_dir / split
    with show_progress(f"making {num_videos} videos") as progress:
        if arguments.pictures is None:
            make_synthetic_videos(folder, SyntheticVideoSettings(**values), progress=progress)
        else:
            pictures = read_fashion_mnist(split, arguments.pictures or None)
            make_moving_pictures(folder, MovingPictureSettings(**values), **pictures, progress=progress)


@contextmanager
def show_progress(title: str):
    """A bar with the time that is left."""
    with Progress(console=Console(stderr=True)) as bars:
        bar = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="*", default=["vjepa-vit-tiny"], help="as for `vjepa-hub probe`")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/evaluate"))
    parser.add_argument(
        "--pictures",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="move pictures of Fashion-MNIST, from a folder of its IDX files (default: that of Debian's package)",
    )
    parser.add_argument("--num-train", type=int, default=480)
    parser.add_argument("--num-test", type=int, default=240)
    parser.add_argument("--size", type=int, default=112, help="pixels of the videos")
    parser.add_argument("--num-epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--label-fraction", type=float, nargs="*", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
