"""Heads that are trained side by side on one pass of the encoder, beside the same heads trained one by one.

Both decode and augment real video files, encode them with the frozen encoder and train attentive probes through the
package's own training; only the number of heads in a run differs. They take turns (together, one by one, together,
...), so that a machine that others use too slows both alike; ratios are medians over the rounds. A third line is an
epoch from the feature cache, filled beforehand, with all heads: without augmentation the encoder is not needed again.

    python benchmarks/probe.py                                  # vjepa-vit-tiny, four heads, on the CPU
    python benchmarks/probe.py --encoder vjepa-vitl16 --device cuda --heads 8 --num-videos 64
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from vjepa_hub.data.synthetic.shapes import SyntheticVideoSettings, make_synthetic_videos
from vjepa_hub.evaluation.clips import ClipFormat, EvaluationClips, TrainingClips
from vjepa_hub.evaluation.encoders.opening import open_encoder
from vjepa_hub.evaluation.labelled import open_labelled
from vjepa_hub.evaluation.protocols import find_protocol
from vjepa_hub.evaluation.tokens import CachedClips, EncodedClips, EncodingSettings
from vjepa_hub.heads.pooling import HeadSettings
from vjepa_hub.heads.tokens import TokenSource
from vjepa_hub.heads.training import SideBySideTraining


def main() -> None:
    arguments = parse_arguments()
    encoder = open_encoder(arguments.encoder, device=arguments.device)
    protocol = find_protocol("plain").with_values(num_epochs=1, batch_size=8, frame_step=1)
    clip_format = ClipFormat(
        crop_size=encoder.crop_size, frames_per_clip=encoder.frames_per_clip, mean=encoder.mean, std=encoder.std
    )
    heads = [
        HeadSettings(pooling="attentive", learning_rate=1e-3 / 2**number, weight_decay=0.01)
        for number in range(arguments.heads)
    ]
    with tempfile.TemporaryDirectory() as folder:
        settings = SyntheticVideoSettings(num_videos=arguments.num_videos, size=encoder.crop_size, num_frames=32)
        labelled = open_labelled(make_synthetic_videos(Path(folder, "videos"), settings).with_name("motion.csv"))
        encoding = EncodingSettings(num_workers=arguments.num_workers)
        drawn = EncodedClips(encoder, TrainingClips(labelled, protocol, clip_format), encoding)
        plain = protocol.with_values(augmentation=None)
        cached = CachedClips(folder, EncodedClips(encoder, EvaluationClips(labelled, plain, clip_format), encoding))
        cached.fill()
        times: dict[str, list[float]] = {"together": [], "one by one": [], "from the cache": []}
        for number in range(arguments.rounds + 1):
            found = {
                "together": time_epoch(drawn, [heads], encoder, protocol),
                "one by one": time_epoch(drawn, [[head] for head in heads], encoder, protocol),
                "from the cache": time_epoch(cached, [heads], encoder, plain),
            }
            for name, seconds in found.items():
                if number:  # the first round is not measured
                    times[name].append(seconds)
    report(times, arguments, encoder.name)


def time_epoch(source: TokenSource, groups: list[list[HeadSettings]], encoder, protocol) -> float:
    """Seconds to train each group of heads for an epoch, one group after the other."""
    start = time.perf_counter()
    for heads in groups:
        with tempfile.TemporaryDirectory() as folder:
            training = SideBySideTraining(
                source,
                heads,
                protocol,
                hidden_size=encoder.hidden_size,
                num_attention_heads=encoder.num_attention_heads,
                seed=0,
                device=next(encoder.parameters()).device,
            )
            training.run(Path(folder))
    return time.perf_counter() - start


def report(times: dict[str, list[float]], arguments: argparse.Namespace, encoder: str) -> None:
    print(
        f"{encoder}, {arguments.heads} heads, {arguments.num_videos} videos of two clips, {arguments.rounds} rounds, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:16} {middle:8.2f} s an epoch   {arguments.num_videos / middle:8.2f} videos/s")
    for name in ("one by one", "from the cache"):
        ratios = [other / ours for other, ours in zip(times[name], times["together"], strict=True)]
        print(f"{name} takes {statistics.median(ratios):.2f} times as long as together")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="vjepa-vit-tiny", help="as for open_encoder")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--num-videos", type=int, default=16)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
