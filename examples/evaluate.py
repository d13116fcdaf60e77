"""Frozen evaluation from nothing: make labelled video, train attentive probes on a frozen encoder, print the tables.

The video is real files that the package makes: shapes that move over a drifting background, labelled by what they look
like and, independently, by how they move. No video, texture or background of the test set is in the training set.
With --pictures the pictures of Fashion-MNIST move instead (`apt-get install dataset-fashion-mnist`): they are easier,
so that a small encoder is above chance after minutes.

    python examples/evaluate.py                                        # vjepa-vit-tiny, three seeds, minutes on a CPU
    python examples/evaluate.py runs/pretrain-tiny untrained:runs/pretrain-tiny --num-train 2000 --label-fraction 0.1
    python examples/evaluate.py vjepa-vit-tiny untrained:vjepa-vit-tiny --pictures
"""

import argparse
from pathlib import Path

from rich.console import Console

from vjepa_hub.core.progress import ProgressBar
from vjepa_hub.data.synthetic.moving_pictures import SCENES
from vjepa_hub.evaluation.made_tasks import TASKS, MadeTaskSettings, make_task_videos, probe_tasks
from vjepa_hub.heads.pooling import HeadSettings


def main() -> None:
    """Make the video, then a table for each task."""
    arguments = parse_arguments()
    settings = MadeTaskSettings(
        num_train=arguments.num_train,
        num_test=arguments.num_test,
        size=arguments.size,
        num_epochs=arguments.num_epochs,
        has_pictures=arguments.pictures is not None,
        scene=arguments.scene,
        pictures=Path(arguments.pictures) if arguments.pictures else None,
    )
    with ProgressBar() as progress:
        make_task_videos(arguments.output_dir, settings, progress)
    heads = [
        HeadSettings(pooling=pooling, learning_rate=rate, weight_decay=0.01)
        for pooling in ("attentive", "average")
        for rate in (3e-4, 1e-3, 3e-3)
    ]
    with ProgressBar() as progress:
        tables = probe_tasks(
            arguments.encoders,
            arguments.output_dir,
            arguments.output_dir,
            settings,
            heads=heads,
            seeds=arguments.seed,
            label_fractions=arguments.label_fraction,
            progress=progress,
        )
    for task, rows in tables.items():
        for row in rows:
            mark = "*" if row.is_selected else " "
            Console().print(
                f"{mark} {task}, {row.encoder}, {row.fraction:.0%} of the labels, {row.head}: top-1 "
                f"{row.top1.to_percent()} % (chance {100 / TASKS[task]:.1f} %)",
                soft_wrap=True,
                highlight=False,
            )


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
    parser.add_argument("--scene", choices=list(SCENES), default="grainy", help="how pictures look")
    parser.add_argument("--num-train", type=int, default=480)
    parser.add_argument("--num-test", type=int, default=240)
    parser.add_argument("--size", type=int, default=64, help="pixels of the videos")
    parser.add_argument("--num-epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--label-fraction", type=float, nargs="*", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
