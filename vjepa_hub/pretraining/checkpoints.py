"""Checkpoints that are whole or not there, and the form in which a pretrained model is published."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch

from ..core.checkpoints import newest_checkpoint
from ..model.configuration_vjepa import VJEPAConfig
from ..model.modeling_vjepa import VJEPAForPreTraining, VJEPAModel, VJEPAPreTrainedModel

Model = TypeVar("Model", bound=VJEPAPreTrainedModel)

# The underscore keeps it out of uploads, and the name out of the search for the last checkpoint
INCOMPLETE = "_incomplete"


def find_checkpoint(output_dir: str | Path) -> Path:
    """The newest checkpoint below the output folder of a run.

    Raises:
        CheckpointError: It lacks a part.
        FileNotFoundError: There is none.
    """
    found = newest_checkpoint(output_dir)
    if found is None:
        raise FileNotFoundError(
            f"there is no checkpoint in '{output_dir}' to resume from; start the run without resuming"
        )
    return found


def published_state(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights that are published: the target encoder as encoder, and the predictor."""
    published = {}
    for key, tensor in state_dict.items():
        part = key.split(".", 1)[0]
        if part == "target_encoder":
            published[key.removeprefix("target_")] = tensor
        elif part == "predictor":
            published[key] = tensor
    return published


def trained_origin(num_steps: int) -> str:
    """Origin of trained weights for the configuration (`VJEPAConfig.weights_origin`)."""
    return f"pretrained by vjepa_hub, {num_steps} steps"


def save_published(folder: str | Path, config: VJEPAConfig, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Write a features model, as `AutoModel` loads it and the Hub shows it.

    Args:
        folder: Made if it is not there.
        config: The configuration of the pretraining model.
        state_dict: Its weights, whole.
    """
    _empty_model(VJEPAModel, config).save_pretrained(folder, state_dict=published_state(state_dict))


def save_both_encoders(folder: str | Path, config: VJEPAConfig, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Write a pretraining model, which a training can start from, without what belongs to the objective alone.

    Args:
        folder: Made if it is not there.
        config: The configuration of the pretraining model.
        state_dict: Its weights, whole.
    """
    model = _empty_model(VJEPAForPreTraining, config)
    model.save_pretrained(folder, state_dict={key: state_dict[key] for key in model.state_dict()})


def _empty_model(model_class: type[Model], config: VJEPAConfig) -> Model:
    """A model without memory for weights, with a configuration of its own, to write given weights as its own."""
    with torch.device("meta"):
        return model_class(VJEPAConfig.from_dict(config.to_dict()))
