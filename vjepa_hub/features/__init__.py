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
from .pictures import FeaturePCA, PictureSettings, draw_video_pictures, update_video_pictures
from .video_list import VideoFile, find_videos
from .video_set import OutputMismatchError, VideoReport, extract_video_set

__all__ = [
    "ExtractionSettings",
    "FeatureExtractionError",
    "FeaturePCA",
    "OutputMismatchError",
    "PictureSettings",
    "VideoFeatures",
    "VideoFile",
    "VideoReport",
    "draw_video_pictures",
    "extract_features",
    "extract_features_to_file",
    "extract_video_set",
    "find_videos",
    "load_features",
    "save_features",
    "update_video_pictures",
]
