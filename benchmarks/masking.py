"""Time to draw the masks of a batch, beside a loop over clips and blocks: the shape of the released code.

Ours is the whole `MaskCollator`: both kinds of masks, each clip's from its position in the run. The loop makes a
tensor of ones for each block of each clip, multiplies them, and cuts the clips to the smallest count of the batch.
With `--release` the collator of a checkout of https://github.com/facebookresearch/jepa is timed in its place. Neither
has pixels to stack.

One run measures both in turns on one core, as in a data loading worker. The time is that of the processor: on a busy
machine the clock on the wall would count the turns of others too, which a long call meets more often than a short one.
Times are medians over the batches of a round, the ratio is the median over the rounds. Exits 1 below five times.

    python benchmarks/masking.py [--batch-size 24] [--crop-size 224] [--release PATH]
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from vjepa_hub.data.collation import MaskCollator
from vjepa_hub.data.masking import LONG_RANGE, SHORT_RANGE, MultiBlockMasking, TokenGrid, sample_block_size

KINDS = (SHORT_RANGE, LONG_RANGE)
SMALLEST_RATIO = 5.0

Masks = tuple[torch.Tensor, torch.Tensor]


def draw_clip(grid: TokenGrid, num_blocks: int, block_size: tuple[int, int, int]) -> Masks:
    """Context and targets of one clip, one block after the other, until there is some context."""
    sizes = (grid.depth, grid.rows, grid.columns)
    while True:
        is_context = torch.ones(sizes, dtype=torch.int32)
        for _ in range(num_blocks):
            is_outside = torch.ones(sizes, dtype=torch.int32)
            starts = [
                int(torch.randint(size - length + 1, (1,))) for size, length in zip(sizes, block_size, strict=True)
            ]
            is_outside[tuple(slice(s, s + length) for s, length in zip(starts, block_size, strict=True))] = 0
            is_context *= is_outside
        context, targets = is_context.flatten().nonzero()[:, 0], (is_context.flatten() == 0).nonzero()[:, 0]
        if len(context):
            return context, targets


def draw_in_a_loop(settings: MultiBlockMasking, grid: TokenGrid, batch_size: int, step: int) -> Masks:
    """Context and targets of a batch, `(batch_size, num_kept)` each."""
    block_size = sample_block_size(settings, grid, step=step)
    clips = [draw_clip(grid, settings.num_blocks, block_size) for _ in range(batch_size)]
    num_context, num_targets = (min(map(len, masks)) for masks in zip(*clips, strict=True))
    return torch.stack([c[:num_context] for c, _ in clips]), torch.stack([t[:num_targets] for _, t in clips])


def build_ours(grid: TokenGrid, batch_size: int) -> Callable[[int], object]:
    collator = MaskCollator(grid, KINDS, seed=0, clips_per_step=batch_size)
    frames = torch.zeros(grid.num_frames, 1, 1, 3, dtype=torch.uint8)
    samples = [{"frames": frames, "is_flipped": False, "num_failures": 0} for _ in range(batch_size)]

    def draw(step: int) -> object:
        return collator([sample | {"position": step * batch_size + i} for i, sample in enumerate(samples)])

    return draw


def build_loop(grid: TokenGrid, batch_size: int) -> Callable[[int], object]:
    return lambda step: [draw_in_a_loop(kind, grid, batch_size, step) for kind in KINDS]


def build_release(grid: TokenGrid, batch_size: int, checkout: Path) -> Callable[[int], object]:
    """The released collator, which counts its steps by itself."""
    path = checkout / "src" / "masks" / "multiblock3d.py"
    spec = importlib.util.spec_from_file_location("multiblock3d", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the folder of a checkout of facebookresearch/jepa")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = ("num_blocks", "spatial_scale", "temporal_scale", "aspect_ratio")
    collator = module.MaskCollator(
        [{name: getattr(kind, name) for name in names} for kind in KINDS],
        crop_size=(grid.height, grid.width),
        num_frames=grid.num_frames,
        patch_size=grid.patch_size,
        tubelet_size=grid.tubelet_size,
    )
    return lambda step: collator(list(range(batch_size)))


def measure(draw: Callable[[int], object], steps: range) -> float:
    """Milliseconds of processor time for a batch, the median over steps."""
    times = []
    for step in steps:
        start = time.process_time()
        draw(step)
        times.append(time.process_time() - start)
    return 1000 * median(times)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=24, help="clips of a batch")
    parser.add_argument("--crop-size", type=int, default=224, help="side of the clips in pixels")
    parser.add_argument("--rounds", type=int, default=7, help="how often both are measured in turns")
    parser.add_argument("--batches", type=int, default=30, help="batches of a round")
    parser.add_argument("--release", type=Path, help="checkout of the released code, timed instead of the loop")
    return parser.parse_args()


def main() -> int:
    arguments = read_arguments()
    torch.set_num_threads(1)
    grid = TokenGrid(num_frames=16, height=arguments.crop_size, width=arguments.crop_size)
    ours = build_ours(grid, arguments.batch_size)
    name = "loop" if arguments.release is None else "release"
    peer = build_loop(grid, arguments.batch_size)
    if arguments.release is not None:
        peer = build_release(grid, arguments.batch_size, arguments.release)
    for draw in (ours, peer):
        measure(draw, range(5))
    rounds = []
    for number in range(arguments.rounds):
        steps = range(number * arguments.batches, (number + 1) * arguments.batches)
        rounds.append((measure(ours, steps), measure(peer, steps)))
        print(f"round {number + 1}: ours {rounds[-1][0]:6.2f} ms, {name} {rounds[-1][1]:6.2f} ms")
    ratio = median(peer_time / our_time for our_time, peer_time in rounds)
    print(
        f"batch {arguments.batch_size}, {grid.depth} x {grid.rows} x {grid.columns} tokens, both kinds: "
        f"{ratio:.1f} times as fast as the {name}"
    )
    return 0 if ratio >= SMALLEST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
