"""The fingerprint of weights: by it features, results and records are known to be those of the same model."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch


def hash_weights(state_dict: Mapping[str, Any]) -> str:
    """SHA-256 of weights: names, number formats, shapes and bytes, in the order of the names.

    It is the same on every device. Records of trainings state it: it must never change.

    Args:
        state_dict: The tensors, and what quantised layers keep instead of them: packed tuples, dtypes and None.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        _add(digest, name, state_dict[name])
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        tensor = (value.dequantize() if value.is_quantized else value).detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, tuple | list):
        for place, part in enumerate(value):
            _add(digest, f"{name}.{place}", part)
    else:
        digest.update(f"{name} {value!r}\n".encode())
