"""Features of whole videos with a trained model, and pictures of them."""

from .extraction import (
    ExtractionSettings,
    FeatureExtractionError,
    VideoFeatures,
    VideoReport,
    extract_features,
    extract_features_to_file,
    extract_video_set,
    load_features,
    save_features,
)
from .pictures import FeaturePCA, PictureSettings, draw_video_pictures

__all__ = [
    "ExtractionSettings",
    "FeatureExtractionError",
    "FeaturePCA",
    "PictureSettings",
    "VideoFeatures",
    "VideoReport",
    "draw_video_pictures",
    "extract_features",
    "extract_features_to_file",
    "extract_video_set",
    "load_features",
    "save_features",
]
