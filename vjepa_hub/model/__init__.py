"""Model files that travel to the Hub: configuration, model and video processor, three files that need nothing else."""

from .configuration_vjepa import VJEPAConfig
from .modeling_vjepa import VJEPAForPreTraining, VJEPAForVideoClassification, VJEPAModel, VJEPAPreTrainedModel
from .registration import register_auto_classes
from .video_processing_vjepa import VJEPAVideoProcessor

__all__ = [
    "VJEPAConfig",
    "VJEPAForPreTraining",
    "VJEPAForVideoClassification",
    "VJEPAModel",
    "VJEPAPreTrainedModel",
    "VJEPAVideoProcessor",
    "register_auto_classes",
]
