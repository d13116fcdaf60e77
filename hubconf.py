"""Entry points of `torch.hub.load`. They need no installation: torch.hub puts this folder on the path for the call.

Example:
    >>> import torch
    >>> model = torch.hub.load(".", "vjepa_vit_large", source="local")
    >>> processor = torch.hub.load(".", "vjepa_video_processor", source="local")

Nothing is imported at the top: torch.hub runs this file before it compares `dependencies` with what is installed.
"""

# Import names, as torch.hub looks them up
dependencies = ["torch", "torchvision", "transformers", "huggingface_hub", "safetensors", "numpy", "PIL"]


def vjepa_vit_large(pretrained=True, *, device=None, dtype=None):
    """V-JEPA ViT-L/16 at 224 pixels: encoder and predictor (weights: CC BY-NC 4.0).

    Args:
        pretrained: The released weights, downloaded and converted at the first call and cached from then on. False:
            random weights, and no download.
        device: Where the model goes; the CPU by default.
        dtype: Number format of the weights, such as "bfloat16"; by default float32.

    Returns:
        A `VJEPAModel`, in eval mode.

    Raises:
        OSError: The released file is not in the cache and could not be downloaded.
    """
    return _load("vjepa-vitl16", pretrained, device, dtype)


def vjepa_vit_huge(pretrained=True, *, device=None, dtype=None):
    """V-JEPA ViT-H/16 at 224 pixels: encoder and predictor (weights: CC BY-NC 4.0).

    Arguments, result and errors as for `vjepa_vit_large`.
    """
    return _load("vjepa-vith16", pretrained, device, dtype)


def vjepa_vit_huge_384(pretrained=True, *, device=None, dtype=None):
    """V-JEPA ViT-H/16 at 384 pixels: encoder and predictor (weights: CC BY-NC 4.0).

    Arguments, result and errors as for `vjepa_vit_large`.
    """
    return _load("vjepa-vith16-384", pretrained, device, dtype)


def vjepa_vit_tiny(pretrained=True, *, device=None, dtype=None):
    """V-JEPA of width 128 at 64 pixels and 8 frames: encoder and predictor, trained by this package (Apache-2.0).

    The weights lie in the package: nothing is downloaded.

    Args:
        pretrained: The trained weights. False: random ones from torch's global generator.
        device: Where the model goes; the CPU by default.
        dtype: Number format of the weights, such as "bfloat16"; by default float32.

    Returns:
        A `VJEPAModel`, in eval mode.
    """
    return _load("vjepa-vit-tiny", pretrained, device, dtype)


def vjepa_video_processor(pretrained=True, *, crop_size=224, num_frames=16, frame_step=4):
    """The video processor: decoded frames to the pixels that the models take.

    Args:
        pretrained: Without effect, since a processor has no weights; taken so that every entry takes it.
        crop_size: Side of the frames in pixels: 224, 384 for `vjepa_vit_huge_384`, 64 for `vjepa_vit_tiny`.
        num_frames: Frames of a clip: 16, 8 for `vjepa_vit_tiny`.
        frame_step: Video frames for each frame of a clip: 4, 2 for `vjepa_vit_tiny`.

    Returns:
        A `VJEPAVideoProcessor`.
    """
    from vjepa_hub import VJEPAVideoProcessor

    return VJEPAVideoProcessor(crop_size=crop_size, num_frames=num_frames, frame_step=frame_step)


def vjepa2_vit_large(pretrained=True, *, num_frames=64, device=None, dtype=None):
    """V-JEPA 2 ViT-L/16 at 256 pixels, called as by the release's torch.hub (weights: MIT).

    Args:
        pretrained: The released weights, downloaded and converted at the first call and cached from then on. False:
            random weights, and no download.
        num_frames: Of the clips whose masks the predictor takes.
        device: Where the modules go; the CPU by default.
        dtype: Number format of the weights, such as "bfloat16"; by default float32.

    Returns:
        A pair: `encoder(x)` gives features `(batch_size, num_tokens, hidden_size)` of clips `(batch_size, channels,
        num_frames, height, width)`, `encoder(x, masks)` those of the tokens that a mask keeps; `predictor(tokens,
        context_mask, target_mask)` gives the predicted features of the hidden tokens, of V-JEPA 2.1 a pair, with those
        of the visible ones. Predictors of ViT-g and ViT-G of 2.1 take `encoder(x, masks, training=True)`.

    Raises:
        OSError: The released file is not in the cache and could not be downloaded.
    """
    return _load_pair("vjepa2-vitl16", pretrained, num_frames, device, dtype)


def vjepa2_vit_huge(pretrained=True, *, num_frames=64, device=None, dtype=None):
    """V-JEPA 2 ViT-H/16 at 256 pixels, called as by the release's torch.hub (weights: MIT).

    Arguments, result and errors as for `vjepa2_vit_large`.
    """
    return _load_pair("vjepa2-vith16", pretrained, num_frames, device, dtype)


def vjepa2_vit_giant(pretrained=True, *, num_frames=64, device=None, dtype=None):
    """V-JEPA 2 ViT-g/16 at 256 pixels, called as by the release's torch.hub (weights: MIT).

    Arguments, result and errors as for `vjepa2_vit_large`.
    """
    return _load_pair("vjepa2-vitg16", pretrained, num_frames, device, dtype)


def vjepa2_vit_giant_384(pretrained=True, *, num_frames=64, device=None, dtype=None):
    """V-JEPA 2 ViT-g/16 at 384 pixels, called as by the release's torch.hub (weights: MIT).

    Arguments, result and errors as for `vjepa2_vit_large`.
    """
    return _load_pair("vjepa2-vitg16-384", pretrained, num_frames, device, dtype)


def vjepa2_1_vit_base_384(pretrained=True, *, num_frames=64, device=None, dtype=None):
    """V-JEPA 2.1 ViT-B/16 at 384 pixels, distilled from ViT-G, called as by the release's torch.hub (weights: MIT).

    Arguments, result and errors as for `vjepa2_vit_large`.
    """
    return _load_pair("vjepa2.1-vitb16-384", pretrained, num_frames, device, dtype)


def vjepa2_1_vit_large_384(pretrained=True, *, num_frames=64, device=None, dtype=None):
    """V-JEPA 2.1 ViT-L/16 at 384 pixels, distilled from ViT-G, called as by the release's torch.hub (weights: MIT).

    Arguments, result and errors as for `vjepa2_vit_large`.
    """
    return _load_pair("vjepa2.1-vitl16-384", pretrained, num_frames, device, dtype)


def vjepa2_1_vit_giant_384(pretrained=True, *, num_frames=64, device=None, dtype=None):
    """V-JEPA 2.1 ViT-g/16 at 384 pixels, called as by the release's torch.hub (weights: MIT).

    Arguments, result and errors as for `vjepa2_vit_large`.
    """
    return _load_pair("vjepa2.1-vitg16-384", pretrained, num_frames, device, dtype)


def vjepa2_1_vit_gigantic_384(pretrained=True, *, num_frames=64, device=None, dtype=None):
    """V-JEPA 2.1 ViT-G/16 at 384 pixels, called as by the release's torch.hub (weights: MIT).

    Arguments, result and errors as for `vjepa2_vit_large`.
    """
    return _load_pair("vjepa2.1-vitgg16-384", pretrained, num_frames, device, dtype)


def vjepa2_ac_vit_giant(pretrained=True):
    """V-JEPA 2-AC, which is not here: its predictor takes the actions of a robot.

    Raises:
        NotImplementedError: Always.
    """
    raise NotImplementedError(
        "V-JEPA 2-AC is not part of this package: its predictor takes the actions and states of a robot, and none of "
        "its numbers could be compared here. Use `vjepa2_vit_giant` for features, and the release "
        "(facebookresearch/vjepa2) for its predictor"
    )


def vjepa2_preprocessor(pretrained=True, *, crop_size=256):
    """The evaluation preprocessing, called as by the release's torch.hub.

    Args:
        pretrained: Without effect, since there are no weights; taken so that every entry takes it.
        crop_size: Side of the frames in pixels: 256, or 384.

    Returns:
        A callable: uint8 frames `(num_frames, height, width, 3)`, or a list of pictures, to a list of one tensor
        `(3, num_frames, crop_size, crop_size)`.
    """
    from vjepa_hub.hub.release_interface import ReleasePreprocessor

    return ReleasePreprocessor(crop_size)


def _load(name, pretrained, device, dtype):
    from vjepa_hub.hub.loading import load, load_untrained

    return (load if pretrained else load_untrained)(name, device=device, dtype=dtype)


def _load_pair(name, pretrained, num_frames, device, dtype):
    from vjepa_hub.hub.release_interface import load_release_pair

    return load_release_pair(name, pretrained, num_frames=num_frames, device=device, dtype=dtype)
