"""The video processor of a model that comes without one, as of the released files."""

from ..model.configuration_vjepa import VJEPAConfig
from ..model.video_processing_vjepa import VJEPAVideoProcessor


def default_processor(config: VJEPAConfig, *, is_classifier: bool = False) -> VJEPAVideoProcessor:
    """Build a processor that samples clips as the release does.

    V-JEPA sees every fourth frame, V-JEPA 2 and 2.1 four frames a second in training. Their probes see every fourth
    frame in clips of 16 and every second one in longer clips.

    Args:
        config: Of the model; gives crop and frames of a clip.
        is_classifier: Whether the model is a classifier, whose clips are those of the released probes.
    """
    pace: dict[str, float] = {"frame_step": 4}
    if config.has_rotary_positions and is_classifier and config.frames_per_clip > 16:
        pace = {"frame_step": 2}
    elif config.has_rotary_positions and not is_classifier:
        pace = {"fps": 4}
    return VJEPAVideoProcessor(crop_size=config.crop_size, num_frames=config.frames_per_clip, **pace)
