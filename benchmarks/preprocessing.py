"""CPU seconds of the evaluation preprocessing of a clip, beside the release's transform or the same in plain torch.

Both see the same 16 frames of noise, one after the other in each round, on one thread; a ratio above 1 means that ours
is faster. The release's transform needs a checkout of it (facebookresearch/jepa or vjepa2) and OpenCV. Without one the
peer resizes float frames, crops and normalises, as transformers' video processors do. "difference" is the largest of
all pixels, in grey levels.

    python benchmarks/preprocessing.py                                     # against plain torch
    python benchmarks/preprocessing.py --release ../vjepa2 --rounds 25     # against the release
"""

import argparse
import sys
import time
from collections.abc import Callable
from statistics import quantiles

import numpy as np
import torch
from torch.nn import functional as F

from vjepa_hub import VJEPAVideoProcessor

NUM_FRAMES, CROP = 16, 224
SIZES = ((640, 272), (1280, 720), (176, 144))
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

PROCESSOR = VJEPAVideoProcessor(crop_size=CROP)

Transform = Callable[[np.ndarray], torch.Tensor]


def ours(frames: np.ndarray) -> torch.Tensor:
    """Pixels (T, C, H, W) of frames (T, h, w, C)."""
    return PROCESSOR(frames, return_tensors="pt")["pixel_values_videos"][0]


def plain_torch(frames: np.ndarray) -> torch.Tensor:
    """The same in floats, step by step."""
    height, width = frames.shape[1:3]
    side = int(CROP * 256 / 224)
    size = [side * height // min(height, width), side * width // min(height, width)]
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=False)
    top, left = (round((length - CROP) / 2) for length in size)
    return (pixels[..., top : top + CROP, left : left + CROP] / 255 - MEAN) / STD


def open_release(checkout: str) -> Transform:
    """The release's transform from a checkout of it."""
    sys.path.insert(0, checkout)
    import cv2
    from evals.video_classification_frozen.utils import make_transforms

    cv2.setNumThreads(1)
    transform = make_transforms(training=False, crop_size=CROP)
    return lambda frames: transform(frames)[0].transpose(0, 1)


def seconds_of(transform: Transform, frames: np.ndarray) -> float:
    """CPU seconds of the process."""
    begin = time.process_time()
    transform(frames)
    return time.process_time() - begin


def main() -> None:
    """Print a row for each size of frame."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", help="folder of a checkout of the release")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    peer = open_release(arguments.release) if arguments.release else plain_torch
    print(f"{'frames':>10} {'peer ms':>9} {'ours ms':>9} {'ratio':>7} {'quartiles':>13} {'difference':>11}")
    for width, height in SIZES:
        frames = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, height, width, 3), dtype=np.uint8)
        difference = ((peer(frames) - ours(frames)) * STD * 255).abs().max().item()
        times = [(seconds_of(peer, frames), seconds_of(ours, frames)) for _ in range(arguments.rounds)]
        low, ratio, high = quantiles((theirs / own for theirs, own in times), n=4)
        theirs, own = (1e3 * quantiles(column, n=2)[0] for column in zip(*times, strict=True))
        size, spread = f"{width}x{height}", f"{low:.2f} - {high:.2f}"
        print(f"{size:>10} {theirs:9.1f} {own:9.1f} {ratio:7.2f} {spread:>13} {difference:11.2f}")


if __name__ == "__main__":
    main()
