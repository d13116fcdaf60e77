"""Random numbers that depend on a seed and a position alone, not on who draws them, when, or after what.

The position is the place of a clip in the global order of a run, counted from 0 over all steps and processes. Each use
of random numbers has a stream of its own, so that one more draw in one of them changes no other. Nothing is kept
between two draws: the numbers are a hash of (seed, stream, position, number of the draw), and therefore the same with
any number of workers and processes, and after a resume.

The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"),
applied once for each of the four. It is written out here, so that no update of a library changes a run.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch

_WORD = 2**64 - 1
# SplitMix64's increment (the golden ratio), multipliers and shifts.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_UNUSED_BITS = np.uint64(11)  # a float64 in [0, 1) has 53


class Stream(IntEnum):
    """Uses of random numbers. The values are part of every run's results: never change one."""

    ORDER = 0
    SOURCE = 1
    REPLACEMENT = 2
    CLIP = 3
    CROP = 4
    FLIP = 5
    AUGMENT = 6
    # The last one: masks of the kind with mask index i draw from MASKS + i.
    MASKS = 1000


def draw_uniform(
    seed: int,
    positions: Sequence[int] | np.ndarray | torch.Tensor,
    *,
    stream: int,
    num_draws: int,
    first_draw: int = 0,
) -> torch.Tensor:
    """Draws numbers that are uniform in [0, 1), independent between seeds, streams, positions and draws.

    Args:
        seed: Any integer; its lowest 64 bits count.
        positions: Places of the clips in the global order, integers from 0.
        stream: What the numbers are for, one of `Stream`.
        num_draws: Numbers for each position.
        first_draw: Number of the first draw. Further draws of the same position go on where earlier ones ended.

    Returns:
        float64 `(num_positions, num_draws)`.

    Raises:
        TypeError: If the positions are no integers.
        ValueError: If the positions are no vector, or a position or one of the other numbers is negative.
    """
    bits = _hash(seed, positions, stream=stream, num_draws=num_draws, first_draw=first_draw)
    return torch.from_numpy((bits >> _UNUSED_BITS) * 2.0**-53)


def generator_at(seed: int, position: int, *, stream: int) -> torch.Generator:
    """A generator for draws of unknown number, such as those of a rejection loop, for one position.

    Torch's CPU generator keeps 32 bits of a seed, so that two of some millions of positions can get the same one;
    their other streams differ. Where the number of draws is known, `draw_uniform` has no such limit and is faster.

    Args:
        seed: Any integer; its lowest 64 bits count.
        position: Place of the clip in the global order, from 0.
        stream: What the numbers are for, one of `Stream`.

    Raises:
        TypeError: If the position is no integer.
        ValueError: If the position or the stream is negative.
    """
    bits = _hash(seed, [position], stream=stream, num_draws=1, first_draw=0)
    return torch.Generator().manual_seed(int(bits[0, 0]))


def _hash(
    seed: int, positions: Sequence[int] | np.ndarray | torch.Tensor, *, stream: int, num_draws: int, first_draw: int
) -> np.ndarray:
    """64 random bits for each position and draw: uint64 `(num_positions, num_draws)`."""
    for name, value in (("stream", stream), ("num_draws", num_draws), ("first_draw", first_draw)):
        if value < 0:
            raise ValueError(f"{name} is {value}, but must be an integer of at least 0; give one of 0 or more")
    # Arrays throughout: numpy warns when a product of scalars wraps around, which a hash lives on.
    state = _finalise(np.array([seed & _WORD], dtype=np.uint64) + _INCREMENT)
    state = _finalise(state + np.array([stream + 1], dtype=np.uint64) * _INCREMENT)
    state = _finalise(state + (_as_positions(positions) + np.uint64(1)) * _INCREMENT)
    draws = np.arange(first_draw + 1, first_draw + num_draws + 1, dtype=np.uint64)
    return _finalise(state[:, None] + draws * _INCREMENT)


def _finalise(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> _SHIFTS[0])) * _MULTIPLIERS[0]
    state = (state ^ (state >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return state ^ (state >> _SHIFTS[2])


def _as_positions(positions: Sequence[int] | np.ndarray | torch.Tensor) -> np.ndarray:
    array = np.asarray(positions)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(
            f"positions have type {array.dtype}, but a position counts clips; give integers, such as the positions "
            "that ClipOrder hands out"
        )
    if array.ndim != 1:
        raise ValueError(
            f"positions have shape {array.shape}, but there is one for each clip; give a vector of them, such as "
            "[position] for a single clip"
        )
    if array.size and array.min() < 0:
        raise ValueError(f"positions hold {array.min()}, but a run's clips are counted from 0; give 0 or more")
    return array.astype(np.uint64)
