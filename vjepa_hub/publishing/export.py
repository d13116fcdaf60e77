"""Models for runtimes without this package: ONNX, and programs of `torch.export`.

Exported is what computes features (`last_hidden_state`) or, of a classifier, `logits`, from `pixel_values_videos` of
the configured clip size and any batch size. The input is what the model's video processor returns: neither decoding
nor normalisation is part of the export. The configuration travels along, class names and origin of the weights in it.

The released format has its writer in `conversion.export_original_checkpoint`.

V-JEPA 2 has an exact export to transformers' VJEPA2, `hub.transformers_vjepa2.export_transformers`. V-JEPA can have
none: it adds a table of absolute sine-cosine positions to its tokens; VJEPA2 adds none, and rotates queries and keys
by relative positions in every block. No choice of weights bridges that: on a clip whose patches are all equal every
token of VJEPA2 has the same features, whatever its weights, while V-JEPA's differ from place to place.
(`tests/publishing/test_export.py` shows it.)
"""

import copy
import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..core.files import written_whole
from ..hub.loading import open_classifier, open_model
from ..hub.safety import check_folder
from ..model.modeling_vjepa import VJEPAEncoder, VJEPAForVideoClassification, VJEPAPreTrainedModel

CONFIG_KEY = "config.json"
INPUT_NAME, BATCH_NAME = "pixel_values_videos", "batch_size"
_DYNAMIC_SHAPES = {INPUT_NAME: {0: torch.export.Dim(BATCH_NAME)}}

# A protobuf holds 2 GiB at most; beyond, the weights go into a second file
_MAX_ONNX_BYTES = 2_000_000_000


class _Features(nn.Module):
    """Clips to the features of every token."""

    output_name = "last_hidden_state"

    def __init__(self, encoder: VJEPAEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        return self.encoder(pixel_values_videos, return_dict=True).last_hidden_state


class _Logits(nn.Module):
    """Clips, one segment each, to logits: the classifier's forward pass without what would fix the batch size."""

    output_name = "logits"

    def __init__(self, model: VJEPAForVideoClassification):
        super().__init__()
        self.encoder, self.pooler, self.classifier = model.encoder, model.pooler, model.classifier
        self.feature_layers = model.config.pooler_feature_layers

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        outputs = self.encoder(pixel_values_videos, None, self.feature_layers, return_dict=True)
        tokens = outputs.last_hidden_state  # (B, N, D)
        if outputs.feature_levels is not None:
            tokens = torch.cat(outputs.feature_levels, dim=1)  # joined along the tokens
        return self.classifier(self.pooler(tokens))


def open_for_export(name: str, dataset: str | None = None) -> VJEPAPreTrainedModel:
    """Open a model to export: for features, or the classifier where a folder holds one or a probe is asked for.

    Args:
        name: A name, a folder, a released file, or a Hub name.
        dataset: Of a released probe, such as `k400`.
    """
    is_folder = Path(name).is_dir()
    if dataset or (is_folder and VJEPAForVideoClassification.__name__ in (check_folder(name).architectures or ())):
        return open_classifier(name, dataset)[0]
    return open_model(name).model


def export_program(model: VJEPAPreTrainedModel, file: str | os.PathLike) -> Path:
    """Write a model as a program of `torch.export`, which torch alone loads and runs.

    Args:
        model: A features model; a pretraining model, of which the target encoder is exported; or a classifier. It is
            left as it is. The program has its number format, and is on the CPU.
        file: Where to write, a `.pt2`; replaced if it exists, but only once the new one is complete.

    Returns:
        The file. The configuration is in it as the extra file `config.json`.

    Raises:
        ValueError: The file has another ending, or the model is quantised or has adapters.

    Example:
        >>> file = export_program(vjepa_hub.load("vjepa-vit-tiny"), "tiny.pt2")
        >>> features = torch.export.load(file).module()(pixel_values_videos)
    """
    file = _checked(file, ".pt2")
    program = _trace(_twin(model, "sdpa", model.dtype))
    with written_whole(file) as temporary:
        torch.export.save(program, temporary, extra_files={CONFIG_KEY: model.config.to_json_string()})
    return file


def export_onnx(model: VJEPAPreTrainedModel, file: str | os.PathLike) -> Path:
    """Write a model as ONNX, in float32, for onnxruntime and other runtimes. Needs the extra `vjepa-hub[onnx]`.

    Attention is written out, which every runtime has kernels for.

    Args:
        model: As for `export_program`, and left as it is.
        file: Where to write, a `.onnx`; replaced if it exists, but only once the new one is complete. Weights of 2 GB
            or more are written beside it, `FILE.data`: the two belong together.

    Returns:
        The file. The configuration is among its metadata as `config.json`.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: The file has another ending, or the model is quantised or has adapters.

    Example:
        >>> file = export_onnx(vjepa_hub.load("vjepa-vit-tiny"), "tiny.onnx")
        >>> session = onnxruntime.InferenceSession(file)
        >>> (features,) = session.run(None, {"pixel_values_videos": pixel_values_videos.numpy()})
    """
    file = _checked(file, ".onnx")
    _require_onnx()
    module = _twin(model, "eager", torch.float32)
    exported: Any = torch.onnx.export(
        cast(Any, _trace(module)),  # torch 2.6 takes programs, but does not declare it
        dynamo=True,
        input_names=[INPUT_NAME],
        output_names=[module.output_name],
        dynamic_shapes=_DYNAMIC_SHAPES,
        verbose=False,
    )
    for value in (*exported.model.graph.inputs, *exported.model.graph.outputs):
        value.shape[0] = BATCH_NAME  # torch 2.6 calls it "2", after the clips that it was traced with
    exported.model.metadata_props[CONFIG_KEY] = model.config.to_json_string()
    with written_whole(file) as temporary:
        exported.save(temporary, external_data=_num_bytes(module) >= _MAX_ONNX_BYTES)
    return file


def _twin(model: VJEPAPreTrainedModel, attention: str, dtype: torch.dtype) -> _Features | _Logits:
    """The part to export, as a second model that shares the weights, with an attention of its own."""
    with torch.device("meta"):
        twin: Any = type(model)(copy.deepcopy(model.config))
    if getattr(model, "predictor", None) is None and hasattr(twin, "predictor"):
        twin.predictor = None
    if model.state_dict().keys() != twin.state_dict().keys():
        raise ValueError(
            f"this {type(model).__name__} has other tensors than its class: it is quantised or has adapters. Export "
            "the model that it was made from, or merge the adapters first"
        )
    twin.load_state_dict({name: tensor.cpu() for name, tensor in model.state_dict().items()}, assign=True)
    twin.set_attn_implementation(attention)
    twin.to(dtype).eval().requires_grad_(False)
    if isinstance(twin, VJEPAForVideoClassification):
        return _Logits(twin)
    return _Features(getattr(twin, "target_encoder", twin.encoder))


def _trace(module: _Features | _Logits) -> torch.export.ExportedProgram:
    config = module.encoder.config
    # Two clips: of one, a tracer concludes that there is always one
    clip = torch.zeros(2, config.frames_per_clip, config.in_chans, config.crop_size, config.crop_size)
    with torch.no_grad():
        return torch.export.export(module, (clip,), dynamic_shapes=_DYNAMIC_SHAPES, strict=False)


def _num_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def _checked(file: str | os.PathLike, ending: str) -> Path:
    file = Path(file)
    if file.suffix != ending:
        raise ValueError(f"the file is {file}, but must end with {ending}; change its name")
    return file


def _require_onnx() -> None:
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise ImportError(
            f"ONNX is written with onnx and onnxscript, and {error.name} is not installed; "
            "pip install 'vjepa-hub[onnx]'"
        ) from error
    del onnx, onnxscript
