"""Clips per second of the frozen encoder, beside its peers of the same size and the machine's matrix rate.

The peers are transformers' VJEPA2 and, given a checkout of facebookresearch/vjepa2, the release's encoder of V-JEPA
2.1. All have random weights, and see the same pixels: those of the sample clip. One run measures everything in turns
(a matrix product, ours, theirs, a matrix product, ...), so that a machine that others use too slows all of them alike;
ratios are medians over the rounds, with their quartiles. On a CPU times are those of the process, not of the clock.
With rotary positions (generations 2 and 2.1) ours runs without them too, which is what rotation costs. "share" is the
operations of our encoder (`count_encoder_operations`, the matrix products alone) by its time, over the rate of a plain
matrix product of the same number format in the same round. int8 is compared with ours in float32: ratio of speeds, and
cosine similarity of each token's features.

    python benchmarks/inference.py                                       # ViT-B, two clips, on the CPU
    python benchmarks/inference.py --size vit-l --int8                   # adds a row for int8, CPU only
    python benchmarks/inference.py --generation 2.1 --crop 256 --repeats 15 --keep-memory --release CHECKOUT
    python benchmarks/inference.py --size vit-h --device cuda --dtype bfloat16 --batch-size 16 --compile
"""

import argparse
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import timm.layers
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import VJEPA2Config, VJEPA2Model

from vjepa_hub import VJEPAConfig, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.core.host_memory import reuse_freed_memory
from vjepa_hub.data.clip_sampling import sample_clip_indices
from vjepa_hub.data.samples import sample_clip_path
from vjepa_hub.data.video import open_video
from vjepa_hub.hub.cost import device_name
from vjepa_hub.hub.quantization import quantize_int8

SIZES = {"vit-ti": (192, 12, 3), "vit-b": (768, 12, 12), "vit-l": (1024, 24, 16), "vit-h": (1280, 32, 16)}
OURS, PEER, INT8, MATRIX = "vjepa_hub", "transformers VJEPA2", "vjepa_hub int8", "matrix product"
RELEASE, UNROTATED = "release 2.1", "vjepa_hub, no rotation"
GENERATIONS: dict[str, dict] = {
    "1": {},
    "2": {"position_embedding": "rotary_tiled"},
    "2.1": {
        "position_embedding": "rotary",
        "rotary_reference_grid": 16,
        "image_tokenizer": True,
        "modality_embeddings": True,
    },
}
MATRIX_SIDES = {"cpu": 2048}
DEFAULT_MATRIX_SIDE = 8192
TERA = 1e12

Times = dict[str, list[float]]


def count_encoder_operations(config: VJEPAConfig, batch_size: int) -> int:
    """Floating point operations of the matrix products in one forward pass, a multiplication and an addition as two.

    Each of N tokens, with width D, passes the patch projection (2 C t p^2 D), and in each block query, key and value
    (6 D^2), the output projection (2 D^2) and the MLP (4 r D^2, r its ratio); the attention's two products take
    2 N D each. Norms, softmax, activation and biases are left out: they are below one per cent.
    """
    depth, rows, columns = config.token_grid
    num_tokens, width = depth * rows * columns, config.hidden_size
    patch = config.in_chans * config.tubelet_size * config.patch_size**2
    linear = (8 + 4 * config.mlp_ratio) * width**2
    block = linear + 4 * num_tokens * width
    return int(batch_size * num_tokens * (2 * patch * width + config.num_hidden_layers * block))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="vit-b", help="width, depth and heads of a known size")
    parser.add_argument("--generation", choices=GENERATIONS, default="1", help="of ours")
    parser.add_argument("--release", type=Path, help="checkout of facebookresearch/vjepa2: its 2.1 encoder runs too")
    for name in ("width", "depth", "heads"):
        parser.add_argument(f"--{name}", type=int, help="in place of the size's")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--crop", type=int, default=224, help="pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="both models through torch.compile")
    parser.add_argument("--int8", action="store_true", help="also ours with int8 weights, on the CPU")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that are measured, after one that is not")
    parser.add_argument("--keep-memory", action="store_true", help="as the commands do; all models of the run alike")
    parser.add_argument("--threads", type=int, help="of the CPU [default: torch's]")
    arguments = parser.parse_args()
    if arguments.int8 and (arguments.device != "cpu" or arguments.dtype != "float32" or arguments.compile):
        parser.error("--int8 is for float32 on the CPU, without --compile")
    if arguments.repeats < 1 or arguments.batch_size < 1:
        parser.error("--repeats and --batch-size must be at least 1")
    return arguments


def architecture(arguments: argparse.Namespace) -> dict[str, int]:
    """The fields that both configurations have; the predictor is as small as it can be, since it never runs."""
    width, depth, heads = SIZES[arguments.size]
    return {
        "hidden_size": arguments.width or width,
        "num_hidden_layers": arguments.depth or depth,
        "num_attention_heads": arguments.heads or heads,
        "crop_size": arguments.crop,
        "frames_per_clip": arguments.frames,
        "pred_hidden_size": 12,
        "pred_num_hidden_layers": 1,
        "pred_num_attention_heads": 1,
    }


def sample_pixels(config: VJEPAConfig, batch_size: int) -> torch.Tensor:
    """The sample clip through the processor, `(batch_size, num_frames, 3, crop, crop)`, shifted by a frame a row."""
    with open_video(sample_clip_path()) as video:
        indices = sample_clip_indices(
            len(video), fps=None, frames_per_clip=config.frames_per_clip, frame_step=4, allow_clip_overlap=True
        )[0]
        clips = [video.read_frames((indices + shift) % len(video)) for shift in range(batch_size)]
    processor = VJEPAVideoProcessor(crop_size=config.crop_size)
    return processor(clips, return_tensors="pt")["pixel_values_videos"]


def build_models(arguments: argparse.Namespace, config: VJEPAConfig) -> dict[str, nn.Module]:
    """The models by name. The int8 one has the same weights as ours."""

    def ours() -> VJEPAModel:
        torch.manual_seed(0)
        return VJEPAModel(config)

    models: dict[str, nn.Module] = {OURS: ours(), PEER: VJEPA2Model(VJEPA2Config(**architecture(arguments)))}
    if config.has_rotary_positions:
        models[UNROTATED] = VJEPAModel(VJEPAConfig(**architecture(arguments)))
    if arguments.release:
        models[RELEASE] = ReleasedEncoder(arguments.release, config)
    if arguments.int8:
        models[INT8] = quantize_int8(ours())
    dtype = getattr(torch, arguments.dtype)
    models = {name: model.eval().to(arguments.device, dtype) for name, model in models.items()}
    return {name: torch.compile(model) if arguments.compile else model for name, model in models.items()}


class ReleasedEncoder(nn.Module):
    """The release's encoder of V-JEPA 2.1 from a checkout, called as ours is."""

    def __init__(self, checkout: Path, config: VJEPAConfig):
        super().__init__()
        sys.path.insert(0, str(checkout))
        # Newer versions of timm have moved this module; einops serves a tokenizer of sound alone
        sys.modules.setdefault("timm.models.layers", timm.layers)
        sys.modules.setdefault("einops", types.SimpleNamespace(rearrange=None))  # type: ignore[arg-type]
        from app.vjepa_2_1.models.vision_transformer import VisionTransformer

        self.encoder = VisionTransformer(
            img_size=config.crop_size,
            num_frames=config.frames_per_clip,
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            use_rope=True,
            interpolate_rope=True,
            img_temporal_dim_size=1,
        )

    def forward(self, pixel_values_videos: torch.Tensor, skip_predictor: bool) -> torch.Tensor:
        return self.encoder(pixel_values_videos.transpose(1, 2))


def matrix_product(arguments: argparse.Namespace) -> tuple[Callable[[], torch.Tensor], int]:
    """A square product into memory that is there already, and its number of operations."""
    side = MATRIX_SIDES.get(torch.device(arguments.device).type, DEFAULT_MATRIX_SIDE)
    settings = {"device": arguments.device, "dtype": getattr(torch, arguments.dtype)}
    first, second, product = (torch.randn(side, side, **settings) for _ in range(3))
    return lambda: torch.mm(first, second, out=product), 2 * side**3


def seconds(task: Callable[[], object]) -> float:
    """Seconds on an accelerator; on a CPU those of this process, whose time others do not take."""
    if not torch.accelerator.is_available():
        start = time.process_time()
        task()
        return (time.process_time() - start) / torch.get_num_threads()
    start = time.perf_counter()
    task()
    torch.accelerator.synchronize()
    return time.perf_counter() - start


def measure_in_turns(tasks: dict[str, Callable[[], object]], repeats: int) -> Times:
    """Seconds of each task in each round; the first round, in which memory is found and code compiled, is left out."""
    times: Times = {name: [] for name in tasks}
    for round_number in range(repeats + 1):
        for name, task in tasks.items():
            elapsed = seconds(task)
            if round_number > 0:
                times[name].append(elapsed)
    return times


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    return median(n / d for n, d in zip(numerators, denominators, strict=True))


def describe_ratio(numerators: list[float], denominators: list[float]) -> str:
    """The median over the rounds, with the quartiles where there are rounds enough."""
    ratios = [n / d for n, d in zip(numerators, denominators, strict=True)]
    if len(ratios) < 4:
        return f"{median(ratios):.3f}"
    lower, _, upper = quantiles(ratios, n=4)
    return f"{median(ratios):.3f} (quartiles {lower:.3f} to {upper:.3f}, {len(ratios)} rounds)"


def describe(arguments: argparse.Namespace, config: VJEPAConfig, pixels: torch.Tensor) -> str:
    parts = [
        f"width {config.hidden_size}, depth {config.num_hidden_layers}, heads {config.num_attention_heads}",
        f"{'x'.join(map(str, pixels.shape))} pixels of {arguments.dtype}",
        device_name(torch.device(arguments.device)),
        "compiled" if arguments.compile else "eager",
        f"V-JEPA {arguments.generation}, torch {torch.__version__}, transformers {transformers.__version__}",
        f"freed memory is {'kept' if arguments.keep_memory else 'given back'}",
    ]
    return "; ".join(parts)


def show(arguments: argparse.Namespace, times: Times, encoder_operations: int, matrix_operations: int) -> None:
    rate = matrix_operations / median(times[MATRIX])
    print(f"{MATRIX:22} {rate / TERA:8.3f} TFLOP/s")
    for name in (name for name in times if name != MATRIX):
        clips = arguments.batch_size / median(times[name])
        print(f"{name:22} {clips:8.3f} clips/s {median(times[name]):9.3f} s")
    share = median_ratio(times[MATRIX], times[OURS]) * encoder_operations / matrix_operations
    print(f"share of the matrix rate: {share:.2f} ({encoder_operations / TERA:.3f} TFLOP a batch)")
    for name in (PEER, RELEASE, UNROTATED):
        if name in times:
            print(f"speed against {name}: {describe_ratio(times[name], times[OURS])}")
    if INT8 in times:
        print(f"speed of int8 against float32: {median_ratio(times[OURS], times[INT8]):.2f}")


def show_similarity(models: dict[str, nn.Module], pixels: torch.Tensor) -> None:
    first, second = (models[name](pixels, skip_predictor=True).last_hidden_state for name in (OURS, INT8))
    similarity = F.cosine_similarity(first, second, dim=-1)
    print(f"cosine similarity of int8: {similarity.mean():.5f} (lowest of {similarity.numel()} tokens: ", end="")
    print(f"{similarity.min():.5f})")


def main() -> int:
    arguments = read_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.keep_memory and not reuse_freed_memory():
        raise SystemExit("--keep-memory needs glibc; leave it out")
    fields = architecture(arguments)
    levels = [(level + 1) * fields["num_hidden_layers"] // 4 - 1 for level in range(4)]
    feature_levels = levels if arguments.generation == "2.1" else None
    config = VJEPAConfig(**fields, **GENERATIONS[arguments.generation], feature_levels=feature_levels)
    pixels = sample_pixels(config, arguments.batch_size).to(arguments.device, getattr(torch, arguments.dtype))
    models = build_models(arguments, config)
    product, matrix_operations = matrix_product(arguments)
    print(describe(arguments, config, pixels))
    with torch.inference_mode():
        tasks = {MATRIX: product}
        tasks |= {name: lambda model=model: model(pixels, skip_predictor=True) for name, model in models.items()}
        times = measure_in_turns(tasks, arguments.repeats)
        show(arguments, times, count_encoder_operations(config, arguments.batch_size), matrix_operations)
        if INT8 in models:
            show_similarity(models, pixels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
