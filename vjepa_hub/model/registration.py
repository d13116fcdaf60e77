"""Makes transformers' Auto classes know the family, here and as remote code."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)

from . import modeling_vjepa
from .configuration_vjepa import VJEPAConfig
from .modeling_vjepa import AUTO_CLASSES
from .video_processing_vjepa import VJEPAVideoProcessor


def register_auto_classes() -> None:
    """Register with the Auto classes, and for remote code: `save_pretrained` then writes the model's source too."""
    AutoConfig.register(VJEPAConfig.model_type, VJEPAConfig, exist_ok=True)
    VJEPAConfig.register_for_auto_class()
    for auto_class in (AutoModel, AutoModelForPreTraining, AutoModelForVideoClassification):
        model_class = getattr(modeling_vjepa, AUTO_CLASSES[auto_class.__name__])
        auto_class.register(VJEPAConfig, model_class, exist_ok=True)
        model_class.register_for_auto_class(auto_class.__name__)
    AutoVideoProcessor.register(VJEPAConfig, VJEPAVideoProcessor, exist_ok=True)
    by_backend: dict[str, type] = {"torchvision": VJEPAVideoProcessor}
    AutoImageProcessor.register(VJEPAConfig, image_processor_classes=by_backend, exist_ok=True)
    VJEPAVideoProcessor.register_for_auto_class("AutoVideoProcessor")
