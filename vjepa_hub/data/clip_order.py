"""The global order of a run: which item of the data set each clip of the run is taken from."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from ..core.settings import require_at_least
from .random_streams import Stream, draw_uniform


class ClipRequest(NamedTuple):
    """Request for the clip at `position` of the global order, taken from item `index` of a data set.

    Everything random about a clip is a function of a seed and this position.
    """

    position: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs of a pair


class ClipOrder(Sampler[ClipRequest]):
    """Hands out the clips of a run in a global order that knows no epochs, workers or processes.

    The order is an endless row of permutations of the items: position `p` is item `p % num_items` of permutation
    `p // num_items`. An epoch is a section of it, `steps_per_epoch` steps long, and need not end where a permutation
    does: every item is taken equally often, also where the number of items is no multiple of the clips of a step. The
    clip at a position belongs to the optimiser step `position // clips_per_step`.

    With `weights`, each position instead draws its item with replacement, with a probability in proportion to the
    item's weight. Unshuffled, the items come in their own order, over and over, as an evaluation wants it.

    It knows no ranks: as the sampler of a plain `DataLoader` it gives every process all clips. `pretraining_loader`
    gives each its share, as accelerate does, so that the clips of a step are the same for any number of processes. A
    resumed run skips batches, and goes on exactly.

    Args:
        num_items: Items of the data set.
        clips_per_step: Clips of one optimiser step: batch size of a device x processes x accumulation steps.
        steps_per_epoch: Optimiser steps of an epoch; None: as many as one pass over the items fills, at least one.
        seed: The order is a function of it.
        weights: For each item a finite number of at least 0, one of them above it. None: permutations.
        is_shuffled: Whether the permutations are random; if not, all of them are 0, 1, 2, ...

    Raises:
        ValueError: If a count is below 1, the weights are not as said above, or there are weights without shuffling.
    """

    def __init__(
        self,
        num_items: int,
        *,
        clips_per_step: int,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        weights: Sequence[float] | np.ndarray | torch.Tensor | None = None,
        is_shuffled: bool = True,
    ) -> None:
        super().__init__()
        require_at_least(1, num_items=num_items, clips_per_step=clips_per_step, steps_per_epoch=steps_per_epoch)
        if weights is not None and not is_shuffled:
            raise ValueError(
                "weights are given and is_shuffled is False, but items are drawn by weight at random; leave one out"
            )
        self.num_items = num_items
        self.clips_per_step = clips_per_step
        self.steps_per_epoch = steps_per_epoch or max(1, num_items // clips_per_step)
        self.seed = seed
        self.is_shuffled = is_shuffled
        self.epoch = 0
        self._cumulative_weights = None if weights is None else _accumulate(weights, num_items)
        self._permutation: tuple[int, np.ndarray] | None = None  # the one in use, with its number

    def __len__(self) -> int:
        """Clips of an epoch."""
        return self.steps_per_epoch * self.clips_per_step

    def __iter__(self) -> Iterator[ClipRequest]:
        """Yields the clips of the current epoch."""
        first_step = self.epoch * self.steps_per_epoch
        for step in range(first_step, first_step + self.steps_per_epoch):
            positions = np.arange(step * self.clips_per_step, (step + 1) * self.clips_per_step)
            yield from map(ClipRequest, positions.tolist(), self._indices_at(positions).tolist())

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration yields, from 0.

        accelerate passes an epoch on to the sampler, but (up to 1.15 at least) not through `skip_first_batches` when
        several processes share the batches. A resumed run has to call this itself.
        """
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, but epochs are counted from 0; give 0 or more")
        self.epoch = epoch

    def index_at(self, position: int) -> int:
        """The item that the clip at a position of the global order is taken from."""
        if position < 0:
            raise ValueError(f"position is {position}, but the clips of a run are counted from 0; give 0 or more")
        return int(self._indices_at(np.array([position]))[0])

    def _indices_at(self, positions: np.ndarray) -> np.ndarray:
        """The items at ascending positions."""
        if self._cumulative_weights is not None:
            draws = draw_uniform(self.seed, positions, stream=Stream.ORDER, num_draws=1).numpy()[:, 0]
            # Searching to the right passes items of weight 0.
            return np.searchsorted(self._cumulative_weights, draws * self._cumulative_weights[-1], side="right")
        numbers, places = np.divmod(positions, self.num_items)
        if not self.is_shuffled:
            return places
        indices = np.empty_like(positions)
        for number in range(numbers[0], numbers[-1] + 1):
            is_inside = numbers == number
            indices[is_inside] = self._permutation_at(number)[places[is_inside]]
        return indices

    def _permutation_at(self, number: int) -> np.ndarray:
        if self._permutation is None or self._permutation[0] != number:
            keys = draw_uniform(self.seed, [number], stream=Stream.ORDER, num_draws=self.num_items)[0].numpy()
            # A stable sort, so that equal keys come out alike on every machine.
            self._permutation = number, keys.argsort(kind="stable")
        return self._permutation[1]


def _accumulate(weights: Sequence[float] | np.ndarray | torch.Tensor, num_items: int) -> np.ndarray:
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (num_items,):
        raise ValueError(
            f"weights have shape {array.shape}, but the data set has {num_items} items; give one weight for each item"
        )
    is_wrong = ~(np.isfinite(array) & (array >= 0))
    if is_wrong.any():
        item = int(is_wrong.argmax())
        raise ValueError(
            f"weight of item {item} is {array[item]}, but weights must be finite and at least 0; give 0 to an item "
            "that is never to be taken"
        )
    if not array.any():
        raise ValueError("weights are all 0, but something has to be drawn; give at least one item a weight above 0")
    return array.cumsum()
