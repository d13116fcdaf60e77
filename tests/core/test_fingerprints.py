"""The fingerprint of weights, whose definition records depend on."""

import hashlib

import torch

from vjepa_hub.core.fingerprints import hash_weights


def test_fingerprint_is_the_sha256_of_names_formats_shapes_and_bytes():
    weights = {"b": torch.arange(6.0).reshape(2, 3), "a.weight": torch.ones(2, dtype=torch.bfloat16)}
    content = b"a.weight torch.bfloat16 (2,)\n" + b"\x80\x3f" * 2
    content += b"b torch.float32 (2, 3)\n" + weights["b"].numpy().tobytes()
    assert hash_weights(weights) == hashlib.sha256(content).hexdigest()


def test_fingerprint_knows_neither_order_nor_memory_layout():
    matrix = torch.arange(6.0).reshape(3, 2)
    assert hash_weights({"a": matrix.T, "b": matrix}) == hash_weights({"b": matrix, "a": matrix.T.contiguous()})


def test_fingerprint_tells_names_formats_shapes_and_values_apart():
    variants = [
        {"a": torch.zeros(4)},
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.tensor([0.0, 0.0, 0.0, 1e-30])},
        {"a": (torch.zeros(4), None)},
        {"a": (torch.zeros(4), torch.qint8)},
    ]
    assert len({hash_weights(weights) for weights in variants}) == len(variants)
