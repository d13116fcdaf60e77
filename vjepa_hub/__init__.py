"""V-JEPA as an installable model hub: load models, compute features, pretrain, evaluate, fine-tune and publish.

Names are imported when they are first used: `import vjepa_hub` alone loads neither torch nor transformers. All the
same transformers' Auto classes and pipelines know the family from then on, whichever was imported first.

    import vjepa_hub
    model = vjepa_hub.load("vjepa-vit-tiny")                  # or a folder, a released file, a name on the Hub
    processor = vjepa_hub.load_processor("vjepa-vit-tiny")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .core.import_hooks import run_after_import

if TYPE_CHECKING:
    from .evaluation.finetuning.run import finetune as finetune
    from .evaluation.probe_run import run_probe as run_probe
    from .features.extraction import extract_features as extract_features
    from .features.extraction import load_features as load_features
    from .hub.conversion import convert_original_checkpoint as convert_original_checkpoint
    from .hub.conversion import convert_original_probe as convert_original_probe
    from .hub.inferred_config import infer_config as infer_config
    from .hub.loading import load as load
    from .hub.loading import load_classifier as load_classifier
    from .hub.loading import load_processor as load_processor
    from .hub.loading import open_model as open_model
    from .model import VJEPAConfig as VJEPAConfig
    from .model import VJEPAForPreTraining as VJEPAForPreTraining
    from .model import VJEPAForVideoClassification as VJEPAForVideoClassification
    from .model import VJEPAModel as VJEPAModel
    from .model import VJEPAPreTrainedModel as VJEPAPreTrainedModel
    from .model import VJEPAVideoProcessor as VJEPAVideoProcessor
    from .pretraining.arguments import VJEPATrainingArguments as VJEPATrainingArguments
    from .pretraining.run import pretrain as pretrain
    from .pretraining.trainer import VJEPATrainer as VJEPATrainer
    from .publishing.publishing import publish as publish

__version__ = "0.1.0"

_HOMES = {
    "VJEPAConfig": "model",
    "VJEPAForPreTraining": "model",
    "VJEPAForVideoClassification": "model",
    "VJEPAModel": "model",
    "VJEPAPreTrainedModel": "model",
    "VJEPATrainer": "pretraining.trainer",
    "VJEPATrainingArguments": "pretraining.arguments",
    "VJEPAVideoProcessor": "model",
    "convert_original_checkpoint": "hub.conversion",
    "convert_original_probe": "hub.conversion",
    "extract_features": "features.extraction",
    "finetune": "evaluation.finetuning.run",
    "infer_config": "hub.inferred_config",
    "load": "hub.loading",
    "load_classifier": "hub.loading",
    "load_features": "features.extraction",
    "load_processor": "hub.loading",
    "open_model": "hub.loading",
    "pretrain": "pretraining.run",
    "publish": "publishing.publishing",
    "run_probe": "evaluation.probe_run",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has: {', '.join(__all__)}")
    globals()[name] = value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _introduce_models() -> None:
    """Make the Auto classes know the models and their names, and `push_to_hub` send what `publish` sends."""
    from .hub.registry import refuse_names_in_transformers
    from .model import register_auto_classes
    from .publishing.pushing import publish_when_pushed

    register_auto_classes()
    refuse_names_in_transformers()
    publish_when_pushed()


run_after_import(f"{__name__}.model", _introduce_models)
run_after_import("transformers.models.auto", lambda: import_module(".model", __name__), within="transformers")
