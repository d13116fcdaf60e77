"""Cost of running an encoder before it runs: tokens, FLOPs, memory and time on this machine.

FLOPs are those of the matrix products, 2 m n k each, attention included. Memory and time are estimates.
"""

import math
import time
from dataclasses import dataclass

import torch

from ..core.host_memory import available_memory
from ..core.names import counted
from ..model.configuration_vjepa import VJEPAConfig
from .safety import count_elements

# Speed of a whole pass over that of large matrix products, on the same device and in the same format
ASSUMED_SHARE = 0.4
_FLOAT32 = 4
# Seconds; beyond them a command warns before it begins
LONGEST_SECONDS = 3600
REMEDY = "take fewer frames, a smaller crop, fewer clips at once, bfloat16, or a smaller model"


@dataclass(frozen=True, kw_only=True)
class EncodingCost:
    """Cost of a command that encodes clips.

    Attributes:
        num_tokens: Tokens of a clip.
        num_clips: That are encoded.
        memory: Bytes, without what device and libraries take for themselves. An estimate.
        free_memory: Bytes that the device has free now.
        seconds: Time of all clips, without decoding. An estimate.
        device: In words.
    """

    num_tokens: int
    num_clips: int
    memory: float
    free_memory: float
    seconds: float
    device: str

    def describe(self) -> str:
        """The cost as a sentence."""
        return (
            f"{counted(self.num_clips, 'clip')} of {counted(self.num_tokens, 'token')}: about "
            f"{bytes_text(self.memory)} of memory and {time_text(self.seconds)} on {self.device}, without decoding"
        )

    @property
    def warnings(self) -> list[str]:
        """Sentences on what goes beyond an hour or the free memory, with the remedy."""
        found = []
        if self.seconds > LONGEST_SECONDS:
            found.append(f"this takes more than an hour ({time_text(self.seconds)})")
        if self.memory > self.free_memory:
            found.append(f"this takes more than the {bytes_text(self.free_memory)} of memory that are free")
        return [f"{text}: {REMEDY}" for text in found]


def encoding_cost(
    config: VJEPAConfig,
    *,
    crop: tuple[int, int],
    num_frames: int,
    num_clips: int,
    clips_at_once: int = 1,
    is_trained: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    num_processes: int = 1,
    matrix_flops: float | None = None,
) -> EncodingCost:
    """Estimate what it costs to encode clips.

    Args:
        config: The model.
        crop: Height and width of the clips in pixels.
        num_frames: Frames of a clip.
        num_clips: Clips in all, over all processes.
        clips_at_once: Clips in a pass of a process.
        is_trained: Whether the encoder is trained, with AdamW; otherwise it runs forward alone.
        dtype: Number format.
        device: Where the speed of matrix products is measured.
        num_processes: Processes that share the clips, each on a device like this one.
        matrix_flops: That speed in FLOPs per second, if it is known.
    """
    device, size, width = torch.device(device), dtype.itemsize, config.hidden_size
    depth = max(num_frames // config.tubelet_size, 1)
    num_tokens = depth * (crop[0] // config.patch_size) * (crop[1] // config.patch_size)
    weights = count_elements(config)["encoder"]
    channels = width * layer_bytes(config.mlp_ratio, size) * (config.num_hidden_layers if is_trained else 1)
    pixels = 4 * config.in_chans * num_frames * crop[0] * crop[1]
    flops = encoder_flops(config, num_tokens) * (3 if is_trained else 1)
    speed = num_processes * ASSUMED_SHARE * (matrix_flops or measure_matrix_flops(device, dtype))
    return EncodingCost(
        num_tokens=num_tokens,
        num_clips=num_clips,
        # AdamW: weights, gradients and two moments, in float32
        memory=weights * (16 if is_trained else size) + clips_at_once * (num_tokens * channels + pixels),
        free_memory=torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory(),
        seconds=num_clips * flops / speed,
        device=device_name(device),
    )


def encoder_flops(config: VJEPAConfig, num_tokens: int | None = None) -> float:
    """FLOPs of the encoder's forward pass over all tokens of one clip.

    Args:
        config: The model.
        num_tokens: Of the clip; None: of a clip of the model's own size.
    """
    num_tokens, width = num_tokens or math.prod(config.token_grid), config.hidden_size
    layers = config.num_hidden_layers * layer_flops(num_tokens, width, config.mlp_ratio)
    return linear_flops(num_tokens, patch_numbers(config), width) + layers


def linear_flops(num_tokens: float, num_inputs: int, num_outputs: int) -> float:
    """FLOPs of a linear layer."""
    return 2 * num_tokens * num_inputs * num_outputs


def layer_flops(num_tokens: float, width: int, mlp_ratio: float) -> float:
    """FLOPs of the forward pass of a block: query, key, value and output projections, scores and their use, MLP."""
    projections = linear_flops(num_tokens, width, 4 * width)
    attention = 2 * 2 * num_tokens**2 * width
    return projections + attention + 2 * linear_flops(num_tokens, width, int(width * mlp_ratio))


def patch_numbers(config: VJEPAConfig) -> int:
    """Numbers in the pixels of one token."""
    return config.in_chans * config.tubelet_size * config.patch_size**2


def layer_bytes(mlp_ratio: float, size: int) -> float:
    """Bytes of a block's activations for each token and channel: inputs of two norms, and the inputs and outputs of
    linear layers, attention and activation (input, query, key, value, the attention's output, the MLP's inner width
    before and after its activation).
    """
    return 2 * _FLOAT32 + (6 + 2 * mlp_ratio) * size


def best_device() -> torch.device:
    """The accelerator, if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def measure_matrix_flops(
    device: str | torch.device, dtype: torch.dtype = torch.float32, *, min_seconds: float = 0.3
) -> float:
    """FLOPs per second of large square matrix products.

    Args:
        device: Where.
        dtype: Of the matrices.
        min_seconds: Time to measure for, at least.
    """
    device = torch.device(device)
    side = 1024 if device.type == "cpu" else 8192
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    product = torch.empty_like(matrix)
    torch.mm(matrix, matrix, out=product)
    product[0, 0].item()  # waits for the device
    num_products, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < min_seconds:
        torch.mm(matrix, matrix, out=product)
        product[0, 0].item()
        num_products += 1
    return num_products * 2 * side**3 / seconds


def flops_text(flops: float) -> str:
    """FLOPs in the unit that suits them."""
    units = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"))
    size, unit = next((entry for entry in units if flops >= entry[0]), units[-1])
    return f"{flops / size:,.2f} {unit}"


def bytes_text(num_bytes: float) -> str:
    """Memory in gigabytes."""
    return f"{num_bytes / 1e9:,.2f} GB"


def time_text(seconds: float) -> str:
    """A time in the unit that suits it."""
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"))
    size, unit = next((entry for entry in units if seconds >= 2 * entry[0]), (1, "seconds"))
    return f"{seconds / size:,.1f} {unit}"


def device_name(device: torch.device) -> str:
    """Name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return counted(torch.get_num_threads(), "CPU thread") if device.type == "cpu" else str(device)
