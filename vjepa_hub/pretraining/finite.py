"""A run with a loss that is not finite has to stop, without the device being asked in every step."""

import torch


class NonFiniteLossError(RuntimeError):
    """The loss, or the norm of the gradients, is NaN or infinite."""


class FiniteWatch:
    """Remembers on the device the first step at which something was not finite; the host asks when it likes.

    Args:
        device: Where the watched numbers are.
    """

    def __init__(self, device: torch.device | str):
        self._first_step = torch.full((), -1.0, dtype=torch.float64, device=torch.device(device))

    def watch(self, number: torch.Tensor, step: int) -> None:
        """Look at a scalar of the optimiser step `step`; nothing is read by the host."""
        is_first = ~torch.isfinite(number.detach()) & (self._first_step < 0)
        self._first_step = torch.where(is_first, float(step), self._first_step)

    def first_step(self) -> torch.Tensor:
        """The first step, from 0, at which something was not finite, or -1, as a scalar on the device."""
        return self._first_step
