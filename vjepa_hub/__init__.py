"""V-JEPA (Bardes et al. 2024) as an installable model hub. Importing it makes transformers' Auto classes know it."""

from .hub.loading import load
from .model import (
    VJEPAConfig,
    VJEPAForPreTraining,
    VJEPAForVideoClassification,
    VJEPAModel,
    VJEPAVideoProcessor,
    register_auto_classes,
)
from .publishing.pushing import publish_when_pushed

__version__ = "0.1.0"
__all__ = [
    "VJEPAConfig",
    "VJEPAForPreTraining",
    "VJEPAForVideoClassification",
    "VJEPAModel",
    "VJEPAVideoProcessor",
    "load",
]

register_auto_classes()
publish_when_pushed()
