"""Features of whole videos with a trained model, and pictures of them."""

from .extraction import (
    ExtractionSettings,
    FeatureExtractionError,
    VideoFeatures,
    extract_features,
    extract_features_to_file,
    load_features,
    save_features,
)
from .pictures import draw_video_picture
from .video_list import VideoFile, find_videos
from .video_set import OutputMismatchError, VideoReport, extract_video_set

__all__ = [
    "ExtractionSettings",
    "FeatureExtractionError",
    "OutputMismatchError",
    "VideoFeatures",
    "VideoFile",
    "VideoReport",
    "draw_video_picture",
    "extract_features",
    "extract_features_to_file",
    "extract_video_set",
    "find_videos",
    "load_features",
    "save_features",
]
