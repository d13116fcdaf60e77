"""First weights of a run: released files, folders, checkpoints of other runs, registered names, names on the Hub."""

from pathlib import Path

from ..hub.conversion import convert_original_checkpoint
from ..hub.loading import load_folder, open_model, resolve_config
from ..hub.registry import find_bundled
from ..model.configuration_vjepa import VJEPAConfig
from ..model.modeling_vjepa import VJEPAForPreTraining

# Fields of a configuration that weights of other values can start from
_NOT_OF_THE_WEIGHTS = frozenset(
    (
        "weights_origin",
        "num_pooler_layers",
        "num_pooler_heads",
        "pooler_mlp_ratio",
        "pooler_feature_layers",
        "rescale_initial_weights",
        "attention_probs_dropout_prob",
        "drop_path_rate",
        "initializer_range",
        "pred_zero_init_mask_tokens",
        "crop_size",
        "frames_per_clip",
    )
)


def begin_with(model: VJEPAForPreTraining, initial: str) -> None:
    """Give a model the weights of another one. Clip length and crop may differ: position tables stay its own then.

    Args:
        model: Of the run that begins.
        initial: As `open_initial` takes it.

    Raises:
        ValueError: The weights have another architecture.
        KeyError: There are no weights of that name.
    """
    source = open_initial(initial)
    _require_same_architecture(initial, source.config, model.config)
    for part in ("encoder", "target_encoder", "predictor"):
        own, weights = model.get_submodule(part), source.get_submodule(part).state_dict()
        if source.config.token_grid != model.config.token_grid:
            weights |= dict(own.named_buffers())  # the position tables
        own.load_state_dict(weights)
    model.config.weights_origin = f"initialised from {initial}"


def open_initial(initial: str) -> VJEPAForPreTraining:
    """Weights to start from: a released file, a folder, a registered name, or a name on the Hub.

    Features alone start encoder and target encoder alike.
    """
    path = Path(initial)
    if path.is_file():
        return convert_original_checkpoint(path, resolve_config(path, None))
    if path.is_dir():
        return load_folder(VJEPAForPreTraining, path)
    bundled = find_bundled(initial)
    if bundled is not None:
        return load_folder(VJEPAForPreTraining, bundled)
    features = open_model(initial).model
    model = VJEPAForPreTraining(features.config)
    for part in ("encoder", "target_encoder"):
        model.get_submodule(part).load_state_dict(features.encoder.state_dict())
    model.predictor.load_state_dict(features.get_submodule("predictor").state_dict())
    return model


def _require_same_architecture(initial: str, found: VJEPAConfig, wanted: VJEPAConfig) -> None:
    differing = {
        name: (getattr(found, name), getattr(wanted, name))
        for name in VJEPAConfig.__annotations__
        if name not in _NOT_OF_THE_WEIGHTS and getattr(found, name) != getattr(wanted, name)
    }
    if differing:
        named = "; ".join(f"{name} is {there} there and {here} here" for name, (there, here) in differing.items())
        raise ValueError(
            f"the weights of {initial} are of another architecture than the run: {named}; set these fields of the "
            "run's model to those of the weights"
        )
