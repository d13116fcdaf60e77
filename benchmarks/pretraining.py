"""Seconds of a pretraining step, beside a plain step in the shape of the released one and the machine's matrix rate.

Ours is the step of the `VJEPATrainer`, with all that it does around the model (`--no-trainer`: a bare loop), in a
process that keeps freed memory, as `vjepa-hub pretrain` does. The plain peer has a process of its own. It computes the
same loss from the same weights, which is checked first, the way the released code does: the patches of whole clips are
projected by a convolution for each mask kind, every block runs on all tokens, tokens are gathered with indices of
their full size, AdamW and the average of the weights go through the parameters one by one. With `--release` a checkout
of https://github.com/facebookresearch/jepa gives encoder and predictor for a third step. On the CPU the released code
computes in float32 whatever its configuration says, since the autocast that it asks for is CUDA's: `--peer-dtype
float32` compares with that.

One run measures everything in turns (a step of ours, a matrix product, a plain step, a step of ours, ...), so that a
machine that others use too slows all of them alike; ratios are medians over the rounds. "share" is the operations of
a step by its time, over the rate of a plain matrix product in the same number format. It is given for two counts:
that of our step, and that of the plain step, which computes more for the same result. Masks are those that a run
draws in its first step. Of several batch sizes each is measured, up to the first that does not fit the device.

    python benchmarks/pretraining.py                                          # ViT-S, four clips, on the CPU
    python benchmarks/pretraining.py --dtype bfloat16 --peer-dtype float32
    python benchmarks/pretraining.py --no-trainer --predictor-depth 2 --steps 3
    python benchmarks/pretraining.py --size vit-l --batch-size 24 48 64 80 96 112 128 --device cuda --dtype bfloat16 \
        --no-peer --check-sync
"""

import argparse
import copy
import gc
import importlib
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
import transformers
from inference import MATRIX, TERA, Times, matrix_product, measure_in_turns, median_ratio, seconds
from torch import nn
from torch.nn import functional as F
from transformers import TrainerCallback

from vjepa_hub import VJEPAConfig, VJEPAForPreTraining
from vjepa_hub.core.host_memory import reuse_freed_memory
from vjepa_hub.data.masking import LONG_RANGE, SHORT_RANGE, TokenGrid, sample_masks_at
from vjepa_hub.hub.cost import device_name
from vjepa_hub.pretraining.arguments import VJEPATrainingArguments
from vjepa_hub.pretraining.trainer import VJEPATrainer

# Width, depth and heads, and the release's name; the released predictor has the heads of its encoder
SIZES = {
    "vit-ti": (192, 12, 3, "vit_tiny"),
    "vit-s": (384, 12, 6, "vit_small"),
    "vit-b": (768, 12, 12, "vit_base"),
    "vit-l": (1024, 24, 16, "vit_large"),
    "vit-h": (1280, 32, 16, "vit_huge"),
}
OURS, PLAIN, RELEASE = "vjepa_hub", "plain step", "release"
LEARNING_RATE, MOMENTUM, MAX_NORM = 1e-4, 0.998, 10.0
# Largest relative difference of the two losses: rounding, and under autocast that of bfloat16
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}

Batch = dict[str, Any]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="vit-s")
    parser.add_argument("--depth", type=int, help="layers of the encoder, in place of the size's")
    parser.add_argument("--predictor-depth", type=int, default=12)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[4], help="one or several, rising")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=TOLERANCES, default="float32", help="bfloat16 is autocast")
    parser.add_argument("--peer-dtype", choices=TOLERANCES, help="what the peers compute in [default: as ours]")
    parser.add_argument("--compile", action="store_true", help="ours through torch.compile")
    parser.add_argument("--steps", type=int, default=3, help="rounds that are measured, after one that is not")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--trainer", action=switch, default=True, help="ours in the VJEPATrainer or in a bare loop")
    parser.add_argument("--peer", action=switch, default=True, help="the plain step too")
    parser.add_argument("--release", metavar="PATH", help="a checkout of the released code, measured too")
    parser.add_argument("--check-sync", action="store_true", help="raise where our step waits for the device (CUDA)")
    parser.add_argument("--threads", type=int, help="of the CPU [default: torch's]")
    arguments = parser.parse_args()
    if arguments.check_sync and not arguments.device.startswith("cuda"):
        parser.error("--check-sync is for --device cuda: on the CPU there is nothing to wait for")
    if arguments.steps < 1 or min(arguments.batch_size) < 1:
        parser.error("--steps and --batch-size must be at least 1")
    arguments.peer_dtype = arguments.peer_dtype or arguments.dtype
    return arguments


def read_config(arguments: argparse.Namespace) -> VJEPAConfig:
    width, depth, heads, _ = SIZES[arguments.size]
    return VJEPAConfig(
        hidden_size=width,
        num_hidden_layers=arguments.depth or depth,
        num_attention_heads=heads,
        pred_num_hidden_layers=arguments.predictor_depth,
        pred_num_attention_heads=heads,
    )


def build_model(config: VJEPAConfig, arguments: argparse.Namespace) -> VJEPAForPreTraining:
    """Our model, with the same weights in each process."""
    torch.manual_seed(0)
    return VJEPAForPreTraining(config).to(arguments.device).train()


def prepare_batch(config: VJEPAConfig, batch_size: int, device: str) -> Batch:
    """Noise for clips, and the masks of a run's first step, on the device."""
    side, grid = config.crop_size, TokenGrid.from_config(config)
    masks = [sample_masks_at(kind, grid, range(batch_size), seed=0, step=0) for kind in (SHORT_RANGE, LONG_RANGE)]
    shape = (batch_size, config.frames_per_clip, config.in_chans, side, side)
    return {
        "pixel_values_videos": torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device),
        "context_mask": [mask.context_mask.to(device) for mask in masks],
        "target_mask": [mask.target_mask.to(device) for mask in masks],
    }


# ------------------------------------------------------------------------------------------------ operations


def count_step_operations(config: VJEPAConfig, batch: Batch, *, is_plain: bool) -> int:
    """Floating point operations of the matrix products of a step, a multiplication and an addition as two.

    A block gives each token query, key and value (6 D^2, with D its width), and each token that goes on the output
    projection (2 D^2), the MLP (4 r D^2, r its ratio) and the attention's two products (2 N D each, N tokens). All
    tokens go on, except in the last block of our predictor, where the targets alone do. Backward passes cost twice
    what forward passes cost (what a kernel computes again is not counted), except for the projection of the patches,
    whose pixels need no gradient; the plain step projects all patches for each mask kind. The target encoder has no
    backward pass.
    """
    depth, rows, columns = config.token_grid
    num_tokens, width, narrow = depth * rows * columns, config.hidden_size, config.pred_hidden_size
    patch = 2 * config.in_chans * config.tubelet_size * config.patch_size**2 * width
    encoder = config.num_hidden_layers
    total = patch * num_tokens + encoder * count_block(num_tokens, num_tokens, width, config.mlp_ratio)
    for context_mask, target_mask in zip(batch["context_mask"], batch["target_mask"], strict=True):
        num_context, num_targets = context_mask.shape[1], target_mask.shape[1]
        total += 2 * patch * (num_tokens if is_plain else num_context)
        total += 3 * encoder * count_block(num_context, num_context, width, config.mlp_ratio)
        total += 3 * 2 * width * narrow * (num_context + num_targets)  # into the predictor and out of it
        both = num_context + num_targets
        going_on = [both] * (config.pred_num_hidden_layers - 1) + [both if is_plain else num_targets]
        total += 3 * sum(count_block(number, both, narrow, config.pred_mlp_ratio) for number in going_on)
    return int(total) * len(batch["pixel_values_videos"])


def count_block(num_going_on: int, num_tokens: int, width: int, mlp_ratio: float) -> float:
    """Operations of a block, forward, from which `num_going_on` of its tokens go on."""
    return num_tokens * 6 * width**2 + num_going_on * ((2 + 4 * mlp_ratio) * width**2 + 4 * num_tokens * width)


# ------------------------------------------------------------------------------------------------ the plain peer


def gather_tokens(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.gather(tokens, 1, mask.unsqueeze(-1).repeat(1, 1, tokens.shape[-1]))


class PlainBlock(nn.Module):
    """A transformer block on all tokens."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, eps: float):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        tokens = tokens + self.proj(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))


class PlainEncoder(nn.Module):
    """Encodes all tokens, or with a list of masks those of each; takes `(batch, channels, frames, height, width)`."""

    def __init__(self, config: VJEPAConfig, positions: torch.Tensor):
        super().__init__()
        width, size = config.hidden_size, (config.tubelet_size, config.patch_size, config.patch_size)
        self.projection = nn.Conv3d(config.in_chans, width, size, stride=size)
        self.register_buffer("positions", positions.clone())
        block = (width, config.num_attention_heads, config.mlp_ratio, config.layer_norm_eps)
        self.blocks = nn.Sequential(*(PlainBlock(*block) for _ in range(config.num_hidden_layers)))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, clips: torch.Tensor, masks: list[torch.Tensor] | None = None):
        if masks is None:
            return self.norm(self.blocks(self._embed(clips)))
        return [self.norm(self.blocks(gather_tokens(self._embed(clips), mask))) for mask in masks]

    def _embed(self, clips: torch.Tensor) -> torch.Tensor:
        return self.projection(clips).flatten(2).transpose(1, 2) + self.positions


class PlainPredictor(nn.Module):
    """Predicts the targets of each mask kind; like the released one it is handed the targets, and ignores them."""

    def __init__(self, config: VJEPAConfig, positions: torch.Tensor):
        super().__init__()
        width = config.pred_hidden_size
        self.mask_tokens = nn.Parameter(torch.zeros(config.pred_num_mask_tokens, 1, width))
        self.embedding = nn.Linear(config.hidden_size, width)
        self.register_buffer("positions", positions.clone())
        block = (width, config.pred_num_attention_heads, config.pred_mlp_ratio, config.layer_norm_eps)
        self.blocks = nn.Sequential(*(PlainBlock(*block) for _ in range(config.pred_num_hidden_layers)))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.proj = nn.Linear(width, config.hidden_size)

    def forward(self, contexts: list, targets: list, context_masks: list, target_masks: list) -> list[torch.Tensor]:
        masks = zip(context_masks, target_masks, strict=True)
        return [self._predict(contexts[i], *pair, self.mask_tokens[i]) for i, pair in enumerate(masks)]

    def _predict(self, context, context_mask, target_mask, mask_token) -> torch.Tensor:
        positions = self.positions.repeat(len(context), 1, 1)
        context = self.embedding(context) + gather_tokens(positions, context_mask)
        hidden = gather_tokens(mask_token.repeat(len(context), positions.shape[1], 1), target_mask)
        hidden = hidden + gather_tokens(positions, target_mask)
        tokens = self.norm(self.blocks(torch.cat([context, hidden], dim=1)))
        return self.proj(tokens[:, context.shape[1] :])


class PlainTraining:
    """The released step: forward and backward passes, clipping by part, AdamW, average, and the loss to the host."""

    def __init__(self, encoder: nn.Module, predictor: nn.Module, arguments: argparse.Namespace):
        self.encoder, self.predictor = encoder.to(arguments.device), predictor.to(arguments.device)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.autocast = lambda: autocast(arguments.device, arguments.peer_dtype)
        parameters = [p for part in (encoder, predictor) for p in part.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)

    def loss(self, batch: Batch) -> torch.Tensor:
        clips = batch["pixel_values_videos"].transpose(1, 2)
        contexts, targets = batch["context_mask"], batch["target_mask"]
        with torch.no_grad():
            features = self.target_encoder(clips)
            features = F.layer_norm(features, features.shape[-1:])
            hidden = [gather_tokens(features, mask) for mask in targets]
        predictions = self.predictor(self.encoder(clips, contexts), hidden, contexts, targets)
        losses = [(p - h).abs().mean() for p, h in zip(predictions, hidden, strict=True)]
        return sum(losses[1:], losses[0]) / len(losses)

    def step(self, batch: Batch) -> float:
        with self.autocast():
            loss = self.loss(batch)
        loss.backward()
        for part in (self.encoder, self.predictor):
            nn.utils.clip_grad_norm_(part.parameters(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            parameters = zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True)
            for target, source in parameters:
                target.mul_(MOMENTUM).add_((1 - MOMENTUM) * source.detach())
        return loss.item()


def build_plain(model: VJEPAForPreTraining, arguments: argparse.Namespace) -> PlainTraining:
    """The plain peer with our weights, which both name in the same order."""
    encoder = PlainEncoder(model.config, model.encoder.embeddings.position_embeddings.table)
    predictor = PlainPredictor(model.config, model.predictor.position_embeddings.table)
    with torch.no_grad():
        for plain, ours in ((encoder, model.encoder), (predictor, model.predictor)):
            for target, source in zip(plain.parameters(), ours.parameters(), strict=True):
                target.copy_(source.view_as(target))
    return PlainTraining(encoder, predictor, arguments)


def build_release(config: VJEPAConfig, arguments: argparse.Namespace) -> PlainTraining:
    """Encoder and predictor of a checkout, which is imported under its own name, `src`."""
    sys.path.insert(0, arguments.release)
    encoders = importlib.import_module("src.models.vision_transformer")
    predictors = importlib.import_module("src.models.predictor")
    wrappers = importlib.import_module("src.models.utils.multimask")
    clip = {
        "img_size": config.crop_size,
        "patch_size": config.patch_size,
        "num_frames": config.frames_per_clip,
        "tubelet_size": config.tubelet_size,
        "uniform_power": config.uniform_power,
    }
    encoder = getattr(encoders, SIZES[arguments.size][3])(**clip)
    predictor = predictors.vit_predictor(
        embed_dim=config.hidden_size,
        predictor_embed_dim=config.pred_hidden_size,
        depth=config.pred_num_hidden_layers,
        num_heads=config.pred_num_attention_heads,
        use_mask_tokens=True,
        num_mask_tokens=config.pred_num_mask_tokens,
        **clip,
    )
    wrapped = wrappers.MultiMaskWrapper(encoder), wrappers.PredictorMultiMaskWrapper(predictor)
    return PlainTraining(*wrapped, arguments)


class Peers:
    """The steps that ours is compared with, in a process of their own: its memory is not ours.

    Args:
        batch_size: Clips of a batch.
        arguments: Which peers, and what they compute.
    """

    def __init__(self, batch_size: int, arguments: argparse.Namespace):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve_peers, args=(theirs, batch_size, arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.loss: float = self.connection.recv()

    def step(self, name: str) -> None:
        self.connection.send(name)
        self.connection.recv()

    def end(self) -> None:
        self.connection.close()
        self.process.join()


def serve_peers(connection: Connection, batch_size: int, arguments: argparse.Namespace) -> None:
    """Send the loss of the plain step, then make a step of each peer that is asked for."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = read_config(arguments)
    batch, model = prepare_batch(config, batch_size, arguments.device), build_model(config, arguments)
    peers = {PLAIN: build_plain(model, arguments)}
    del model
    with torch.no_grad(), peers[PLAIN].autocast():
        connection.send(peers[PLAIN].loss(batch).item())
    if arguments.release:
        peers[RELEASE] = build_release(config, arguments)
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        peers[name].step(batch)  # ends with the loss on the host, so that nothing is left to wait for
        connection.send(name)


@contextmanager
def open_peers(
    model: VJEPAForPreTraining, batch: Batch, arguments: argparse.Namespace
) -> Iterator[dict[str, Callable[[], None]]]:
    """The steps of the peers by name, none where none were asked for. Stops where they do not compute what we do."""
    if not (arguments.peer or arguments.release):
        yield {}
        return
    peers = Peers(len(batch["pixel_values_videos"]), arguments)
    try:
        check_same_loss(model, batch, peers.loss, arguments)
        names = [PLAIN] * arguments.peer + [RELEASE] * bool(arguments.release)
        yield {name: lambda name=name: peers.step(name) for name in names}
    finally:
        peers.end()


def check_same_loss(model: VJEPAForPreTraining, batch: Batch, theirs: float, arguments: argparse.Namespace) -> None:
    with torch.no_grad(), autocast(arguments.device, arguments.dtype):
        ours = model(**batch).loss.item()
    tolerance = max(TOLERANCES[arguments.dtype], TOLERANCES[arguments.peer_dtype])
    if not abs(ours - theirs) <= tolerance * theirs:
        sys.exit(f"the loss of our step is {ours:.6f}, that of the plain step {theirs:.6f}: they are not the same")


# ------------------------------------------------------------------------------------------------ ours


def autocast(device: str, dtype: str) -> torch.autocast:
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


@contextmanager
def no_synchronisation(is_checked: bool):
    """Within, whatever makes the host wait for CUDA raises."""
    mode = torch.cuda.get_sync_debug_mode() if is_checked else 0
    try:
        if is_checked:
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        if is_checked:
            torch.cuda.set_sync_debug_mode(mode)


class PeakMemory:
    """The largest number of bytes that was in use: of the device in our steps, on the CPU of the whole process."""

    def __init__(self, device: str):
        self.is_cuda, self.device, self.bytes = device.startswith("cuda"), device, 0

    def begin(self) -> None:
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def end(self) -> None:
        process = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.bytes = max(self.bytes, torch.cuda.max_memory_allocated(self.device) if self.is_cuda else process)


def bare_step(model: VJEPAForPreTraining, batch: Batch, memory: PeakMemory, arguments: argparse.Namespace) -> Callable:
    """Our step without the Trainer."""
    parts = [list(model.encoder.parameters()), list(model.predictor.parameters())]
    optimizer = torch.optim.AdamW(parts[0] + parts[1], lr=LEARNING_RATE, fused=True)
    forward = torch.compile(model) if arguments.compile else model

    def step() -> None:
        with autocast(arguments.device, arguments.dtype):
            loss = forward(**batch).loss
        loss.backward()
        for part in parts:
            nn.utils.clip_grad_norm_(part, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        model.update_target_encoder(MOMENTUM)

    def measured_step() -> None:
        memory.begin()
        with no_synchronisation(arguments.check_sync):
            step()
        memory.end()

    return measured_step


class Turns(TrainerCallback):
    """Between two steps of the Trainer all other tasks have their turn."""

    def __init__(self, others: dict[str, Callable], memory: PeakMemory, is_checked: bool):
        self.others, self.memory, self.is_checked = others, memory, is_checked
        self.times: Times = {name: [] for name in (OURS, *others)}
        self.start, self.debug_mode = 0.0, 0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.memory.begin()
        self.start = time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if self.is_checked:
            torch.cuda.set_sync_debug_mode("error")

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.is_checked:
            torch.cuda.set_sync_debug_mode("default")
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.times[OURS].append(time.perf_counter() - self.start)
        self.memory.end()
        for name, task in self.others.items():
            self.times[name].append(seconds(task))
        self.memory.begin()
        self.start = time.perf_counter()


def measure_in_trainer(
    model: VJEPAForPreTraining,
    batch: Batch,
    others: dict[str, Callable],
    memory: PeakMemory,
    settings: argparse.Namespace,
) -> Times:
    """Seconds from the end of one step of the Trainer to the end of the next, and those of the others."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = VJEPATrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=len(batch["pixel_values_videos"]),
            max_steps=settings.steps + 1,
            clip_after_steps=0,
            use_cpu=settings.device == "cpu",
            bf16=settings.dtype == "bfloat16",
            torch_compile=settings.compile,
            dataloader_pin_memory=False,  # the batch is on the device already
            health_steps=0,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            report=False,
            disable_tqdm=True,
        )
        clips = [{"clip": number} for number in range(len(batch["pixel_values_videos"]))]
        turns = Turns(others, memory, settings.check_sync)
        trainer = VJEPATrainer(model, arguments, clips, lambda samples: batch, callbacks=[turns])
        trainer.train()
    return {name: times[1:] for name, times in turns.times.items()}


# ------------------------------------------------------------------------------------------------ results


def describe(config: VJEPAConfig, batch: Batch, arguments: argparse.Namespace) -> str:
    pairs = zip(batch["context_mask"], batch["target_mask"], strict=True)
    tokens = ", ".join(f"{context.shape[1]} + {targets.shape[1]}" for context, targets in pairs)
    parts = [
        f"{arguments.size}, depth {config.num_hidden_layers}, predictor {config.pred_num_hidden_layers}",
        f"{len(batch['pixel_values_videos'])} clips, {tokens} tokens, {arguments.dtype}",
        *([f"peers {arguments.peer_dtype}"] if arguments.peer_dtype != arguments.dtype else []),
        "Trainer" if arguments.trainer else "bare loop",
        device_name(torch.device(arguments.device)),
        "compiled" if arguments.compile else "eager",
        f"torch {torch.__version__}, transformers {transformers.__version__}",
    ]
    return "; ".join(parts)


def show(config: VJEPAConfig, batch: Batch, times: Times, memory: PeakMemory, matrix_operations: int) -> None:
    batch_size, matrix_times = len(batch["pixel_values_videos"]), times.pop(MATRIX)
    print(f"{MATRIX:16} {matrix_operations / median(matrix_times) / TERA:8.3f} TFLOP/s")
    for name, taken in times.items():
        print(f"{name:16} {median(taken):8.3f} s/step {batch_size / median(taken):9.3f} clips/s")
    for text, is_plain in (("our own", False), ("the plain step's", True)):
        operations = count_step_operations(config, batch, is_plain=is_plain)
        share = median_ratio(matrix_times, times[OURS]) * operations / matrix_operations
        print(f"share of the matrix rate by {text} count, {operations / TERA:.3f} TFLOP a step: {share:.2f}")
    for name in (name for name in times if name != OURS):
        print(f"speed against {name}: {median_ratio(times[name], times[OURS]):.2f}")
    print(f"peak memory {'on the device' if memory.is_cuda else 'of the process'}: {memory.bytes / 2**30:.2f} GiB")


def measure(config: VJEPAConfig, batch_size: int, arguments: argparse.Namespace) -> None:
    """Measure and show one batch size."""
    batch, memory = prepare_batch(config, batch_size, arguments.device), PeakMemory(arguments.device)
    model = build_model(config, arguments)
    product, matrix_operations = matrix_product(arguments)
    print(describe(config, batch, arguments), flush=True)
    with open_peers(model, batch, arguments) as peers:
        others: dict[str, Callable] = {MATRIX: product, **peers}
        if arguments.trainer:
            times = measure_in_trainer(model, batch, others, memory, arguments)
        else:
            tasks = {OURS: bare_step(model, batch, memory, arguments), **others}
            times = measure_in_turns(tasks, arguments.steps)
    show(config, batch, times, memory, matrix_operations)


def main() -> int:
    arguments = read_arguments()
    reuse_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = read_config(arguments)
    for batch_size in arguments.batch_size:
        try:
            measure(config, batch_size, arguments)
        except torch.OutOfMemoryError as error:
            print(f"{batch_size} clips do not fit: {str(error).splitlines()[0]}")
            return int(batch_size == arguments.batch_size[0])
        gc.collect()  # the Trainer and its model are a cycle
        if arguments.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
