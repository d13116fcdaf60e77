"""The crop of a training clip as settings; nothing heavy is imported for it."""

from ..core.settings import PositiveRange, Probability, Settings, ShareRange


class CropSpec(Settings):
    """Random-resized-crop and flip of a clip. The defaults are those of the released pretraining configurations.

    The side of the crop in pixels is the encoder's `crop_size`.

    Args:
        scale: Smallest and largest area of the crop, as a part of the frame's.
        ratio: Smallest and largest width of the crop, divided by its height.
        flip_probability: Probability of a horizontal flip.
    """

    scale: ShareRange = (0.3, 1.0)
    ratio: PositiveRange = (0.75, 1.35)
    flip_probability: Probability = 0.5
