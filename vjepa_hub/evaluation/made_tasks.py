"""Two tasks on video that the package makes: what is shown, and how it moves. Small encoders are judged by them.

Training and test videos share neither pictures, nor textures, nor backgrounds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import PositiveInt

from ..core.progress import Progress, no_progress
from ..core.settings import Settings
from ..data.synthetic.moving_pictures import FASHION_MNIST_CLASSES, MovingPictureSettings, SceneName
from ..data.synthetic.shapes import MOTIONS, Split, SyntheticVideoSettings
from ..data.synthetic.videos import make_videos
from ..heads.pooling import HeadSettings
from .probe_run import ProbeSettings, SummaryRow, run_probe
from .protocols import find_protocol

# Both kinds of video have ten appearances
TASKS: Mapping[str, int] = {"appearance": len(FASHION_MNIST_CLASSES), "motion": len(MOTIONS)}
"""Classes of each task."""

ATTENTIVE_HEADS = tuple(
    HeadSettings(pooling="attentive", learning_rate=rate, weight_decay=0.01) for rate in (3e-4, 1e-3, 3e-3)
)
TRAIN: Split = "train"
TEST: Split = "test"


class MadeTaskSettings(Settings):
    """Videos of the tasks, and the training of heads on them.

    Args:
        num_train: Videos that heads learn from.
        num_test: Videos that they are judged on.
        size: Side of the square frames in pixels.
        num_frames: Frames of each video.
        frame_step: Video frames from one frame of a clip to the next.
        num_epochs: Passes over the training videos.
        has_pictures: Whether pictures of Fashion-MNIST move, or drawn shapes, which are harder.
        scene: How the pictures look, see `MovingPictureSettings`.
        pictures: Folder of the IDX files of Fashion-MNIST; None: that of Debian's package.
    """

    num_train: PositiveInt = 1000
    num_test: PositiveInt = 1000
    size: PositiveInt = 64
    num_frames: PositiveInt = 32
    frame_step: PositiveInt = 2
    num_epochs: PositiveInt = 20
    has_pictures: bool = True
    scene: SceneName = "textured"
    pictures: Path | None = None

    def videos(self, split: Split, num_videos: int) -> SyntheticVideoSettings:
        """Settings of the videos of a split."""
        if self.has_pictures:
            return MovingPictureSettings(
                num_videos=num_videos, size=self.size, num_frames=self.num_frames, split=split, scene=self.scene
            )
        return SyntheticVideoSettings(num_videos=num_videos, size=self.size, num_frames=self.num_frames, split=split)


def make_task_videos(folder: str | Path, settings: MadeTaskSettings, progress: Progress = no_progress) -> None:
    """Write the videos of both splits to `train` and `test` below a folder. Those that are there are kept.

    Args:
        folder: Made if it is not there.
        settings: Which videos.
        progress: Called as the work goes on.

    Raises:
        FileNotFoundError: The pictures are not there.
        ValueError: A number lies outside its range, or the folder has other videos.
    """
    for split, num_videos in ((TRAIN, settings.num_train), (TEST, settings.num_test)):
        made = settings.videos(split, num_videos)
        make_videos(Path(folder) / split, made, pictures=settings.pictures, progress=progress)


def probe_tasks(
    encoders: Sequence[str],
    videos: str | Path,
    output_dir: str | Path,
    settings: MadeTaskSettings,
    *,
    heads: Sequence[HeadSettings] = ATTENTIVE_HEADS,
    seeds: Sequence[int] = (0, 1, 2),
    label_fractions: Sequence[float] = (),
    progress: Progress = no_progress,
) -> dict[str, list[SummaryRow]]:
    """Train heads on frozen encoders in both tasks. The same call goes on after an interruption.

    One clip of each video, no augmentation, so that each clip is encoded once for all heads, seeds and shares.

    Args:
        encoders: As for `vjepa-hub probe`.
        videos: Folder of `make_task_videos`.
        output_dir: Gets a folder for each task, and the cache of features.
        settings: Those of the videos.
        heads: That are trained side by side; the best on the test videos is the selected one.
        seeds: Of the heads.
        label_fractions: Shares of the training labels; by default all of them.
        progress: Called as the work goes on.

    Returns:
        For each task a row for each encoder, share of the labels and head.
    """
    videos, output_dir = Path(videos), Path(output_dir)
    protocol = find_protocol("plain").with_values(
        num_segments=1, frame_step=settings.frame_step, augmentation=None, num_epochs=settings.num_epochs
    )
    rows = {}
    for task, num_classes in TASKS.items():
        probe = ProbeSettings(
            encoders=encoders,
            protocol=protocol,
            train=videos / TRAIN / f"{task}.csv",
            validation=videos / TEST / f"{task}.csv",
            heads=heads,
            seeds=seeds,
            label_fractions=label_fractions,
            num_splits=3,
            num_classes=num_classes,
            cache=output_dir / "features",
        )
        rows[task] = run_probe(probe, output_dir / task, progress)
    return rows


def selected_accuracies(summaries: Mapping[str, Sequence[SummaryRow]]) -> dict[str, float]:
    """Top-1 accuracy of the selected head from 0 to 1, by task.

    Args:
        summaries: Of `probe_tasks`, with one encoder and all labels.
    """
    return {task: next(row.top1.mean for row in rows if row.is_selected) for task, rows in summaries.items()}
