"""Features of whole videos with a trained model, and pictures of them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .extraction import load_features as load_features

__all__ = ["load_features"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has: {', '.join(__all__)}")
    from .extraction import load_features  # heavy: lists of videos are read without it

    return load_features
