"""int8 on the CPU: the blocks' linear layers with 8-bit weights, and activations quantised as they come."""

from __future__ import annotations

import warnings
from typing import TypeVar

import torch
from torch import nn

from ..model.modeling_vjepa import VJEPAAttentivePooler, VJEPALayer, VJEPAPreTrainedModel

Model = TypeVar("Model", bound=VJEPAPreTrainedModel)


def quantize_int8(model: Model) -> Model:
    """Quantise the linear layers of all transformer blocks to int8, in place: for inference on a CPU.

    Torch's own dynamic quantisation: weights have one scale for each output channel, activations one for each call.
    Patch projection, norms, attention and heads, the pooler's blocks among them, stay float32. The float weights are
    released one block at a time, so that no second copy of the model is made, and the blocks take a quarter of their
    memory. A quantised model is for use, not for training or `save_pretrained`: save the float model.
    `benchmarks/inference.py --int8` prints speed and cosine similarity.

    Args:
        model: Any model of the family, float32, on the CPU.

    Returns:
        The same model, in eval mode.

    Raises:
        ValueError: The model is on an accelerator, or not in float32, or already quantised.
        ImportError: This version of torch has no dynamic quantisation any more, or the machine no kernels for it.

    Example:
        >>> model = quantize_int8(vjepa_hub.load("vjepa-vit-tiny"))
    """
    poolers = [module for module in model.modules() if isinstance(module, VJEPAAttentivePooler)]
    of_poolers = {layer for pooler in poolers for layer in pooler.layer}
    layers = [module for module in model.modules() if isinstance(module, VJEPALayer) and module not in of_poolers]
    _require_float32_on_cpu(layers)
    quantize_dynamic, settings = _dynamic_quantization()
    model.eval()
    with warnings.catch_warnings():
        # Torch announces that this moves to torchao, which at present is slower than float32 on a CPU without compile
        warnings.filterwarnings("ignore", message=r"(?s).*deprecated")
        for layer in layers:
            quantize_dynamic(layer, {nn.Linear: settings}, inplace=True)
    return model


def _require_float32_on_cpu(layers: list[VJEPALayer]) -> None:
    for layer in layers:
        weight = layer.attention.proj.weight
        if not isinstance(weight, torch.Tensor):
            raise ValueError("the model is already quantised; int8 starts from a float32 model: load it again")
        if weight.device.type != "cpu":
            raise ValueError(
                f"the model is on {weight.device}, but int8 runs on the CPU alone; move it there with "
                'model.to("cpu"), or use bfloat16 on the accelerator'
            )
        if weight.dtype != torch.float32:
            raise ValueError(
                f"the model is in {weight.dtype}, but int8 is made from float32; load it with dtype='float32'"
            )


def _dynamic_quantization():
    """Torch's function and its settings for weights with one scale for each output channel."""
    if torch.backends.quantized.engine == "none":
        raise ImportError(
            "torch has no int8 kernels for this machine (torch.backends.quantized.engine is 'none'); use bfloat16"
        )
    try:
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
    except ImportError as error:
        raise ImportError(
            f"torch {torch.__version__} has no torch.ao.quantization.quantize_dynamic any more; use an older torch, "
            "or bfloat16"
        ) from error
    return quantize_dynamic, per_channel_dynamic_qconfig
