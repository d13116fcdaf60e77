"""Health of a pretraining run: measures that tell a collapse from progress, which the loss does not.

The loss is an error against targets that move: it falls, then rises, in good runs, and falls to nothing where the
target encoder has come to say the same of everything. So the features are measured themselves, on fixed clips and
masks. `measure_health` measures, `diagnose` reads a history of measurements and names what is wrong with it;
`callbacks.HealthCallback` does both in a Trainer.

Everything is measured on the targets as the objective sees them, that is on the target encoder's features after the
layer norm without affine: there a token has the same length in every run and at every step, so that a number means the
same whatever the gains of the encoder's last norm have come to.

Shapes: B clips of N tokens with D features, K context and M target tokens of a clip; n sampled tokens.
"""

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

from ..data.masking import TokenGrid
from ..model.modeling_vjepa import VJEPAForPreTraining, as_mask_list, select_tokens
from .pixel_prediction import VJEPAForPixelPrediction, tubelet_pixels
from .sharding import is_sharded

logger = logging.getLogger(__name__)

# A trial of a few steps has learnt nothing, and is not ill
SHORTEST_WARMUP = 20

PREFIX = "health/"
# Enough to tell a rank of a thousand: several tokens for each feature of the widest model
MAX_RANK_TOKENS = 8192
# Denominators that a complete collapse brings down to rounding
SMALLEST_DENOMINATOR = 1e-6

Batch = Mapping[str, torch.Tensor | Sequence[torch.Tensor]]
Measurement = Mapping[str, float]


# ------------------------------------------------------------------------------------------------ measures


def _described(label: str, meaning: str) -> float:
    """A field of `HealthMeasurement` with its name and its meaning in words, for reports."""
    return field(metadata={"label": label, "meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class HealthMeasurement:
    """Measurement at one step. A target is a token's features from the target encoder, layer-normed.

    Attributes:
        target_std: Standard deviation of a feature over all tokens of all clips, averaged over features; at most
            about 1, since a token's features have variance 1, and 0 where all tokens are alike. (The regulariser of
            VICReg, Bardes et al. 2022, watches the same.)
        target_content_std: Standard deviation over clips of the feature at one place, root mean square over places and
            features. It is 0 where features tell the place of a token and nothing of what is seen there, which is
            easily predicted too, and which neither `target_std` nor the rank shows.
        target_effective_rank: RankMe (Garrido et al. 2023, equation 1) of at most `MAX_RANK_TOKENS` targets, see
            `effective_rank`; from 1 to `hidden_size`.
        token_cosine: Mean cosine of two different tokens of a clip; 1 where a clip's tokens are alike.
        prediction_norm_ratio: Mean length of the predictions over that of their targets. Where the predictor knows
            nothing it is small, and it comes near 1 with certainty.
        encoder_target_distance: Length of the difference between the parameters of encoder and target encoder, over
            the length of the target encoder's. It is 0 at momentum 0.
        fixed_loss: The objective on the fixed clips and masks.
        fixed_loss_over_mean_target: `fixed_loss` over the loss of predicting the mean of the target tokens everywhere;
            1 where the predictor is of no use.
        fixed_loss_over_nearest_token: `fixed_loss` over the loss of copying the target feature of the nearest context
            token (in steps of the token grid, the first of equally near ones). A hard rival, since the target encoder
            has seen the hidden tokens as well: a good run may stay near 1.
    """

    target_std: float = _described(
        "Spread of the targets", "standard deviation of a target feature over all tokens; 0 when all are alike"
    )
    target_content_std: float = _described(
        "Spread between clips", "standard deviation at one place, over clips; 0 when features ignore the content"
    )
    target_effective_rank: float = _described(
        "Effective rank of the targets", "how many directions the target features use (RankMe); falls in a collapse"
    )
    token_cosine: float = _described(
        "Cosine between tokens", "mean cosine of two tokens of a clip; 1 when a clip's tokens are alike"
    )
    prediction_norm_ratio: float = _described(
        "Length of predictions", "mean length of predictions over that of their targets; small when nothing is known"
    )
    encoder_target_distance: float = _described(
        "Encoder to target encoder", "relative distance of their parameters; 0 when the target copies the encoder"
    )
    fixed_loss: float = _described("Loss on fixed clips", "the objective, always on the same clips and masks")
    fixed_loss_over_mean_target: float = _described(
        "Against the mean target", "that loss over the loss of always predicting the mean; below 1 is learning"
    )
    fixed_loss_over_nearest_token: float = _described(
        "Against the nearest token", "that loss over the loss of copying the nearest visible token; a hard rival"
    )

    def to_logs(self, prefix: str = PREFIX) -> dict[str, float]:
        """The measures under `prefix` and their names, as a Trainer logs them."""
        return {prefix + name: value for name, value in asdict(self).items()}


def effective_rank(features: torch.Tensor) -> float:
    """RankMe (Garrido et al. 2023, equation 1): exp of the entropy of the singular values, normalised to sum 1.

    The features are not centred, as in the paper: in a complete collapse the mean is all that is left, and what little
    remains beside it can be of full rank. In a run without stop-gradient (width 64) the rank fell from 20 to 1.3, and
    that of the centred and standardised features stayed at 30. Singular values are roots of the eigenvalues of the
    smaller Gram matrix, in float64 on the CPU, so that the number does not depend on the device.

    Args:
        features: `(num_tokens, hidden_size)`; more than `MAX_RANK_TOKENS` are thinned to as many, always the same.

    Returns:
        From 1 (all tokens are multiples of one) to the smaller of the two sizes; nan where a feature is not finite.
    """
    if len(features) > MAX_RANK_TOKENS:
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
        features = features[order[:MAX_RANK_TOKENS].to(features.device)]
    matrix = features.cpu().double()  # (n, D)
    if not matrix.isfinite().all():
        return math.nan
    gram = matrix.T @ matrix if len(matrix) > matrix.shape[1] else matrix @ matrix.T
    singular_values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = singular_values / singular_values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return math.exp(torch.special.entr(shares).sum().item())


def measure_health(model: VJEPAForPreTraining, batch: Batch) -> HealthMeasurement:
    """Measure a model on fixed clips and masks: one pass of the objective in eval mode, in float32, without gradients.

    Costs one forward pass, with one of the target encoder in it, and the eigenvalues of a matrix of `hidden_size`.
    Draws no random numbers and leaves modes and gradients as they were. Where parameters are sharded every process has
    to take part, and the pass has the number format of the sharding.

    Args:
        model: The model itself, not what wraps it for several processes.
        batch: `pixel_values_videos` float `(batch_size, num_frames, num_channels, height, width)` of at least 2 clips,
            `context_mask` and `target_mask` as the model takes them, on any device.

    Raises:
        TypeError: `model` is no `VJEPAForPreTraining`.
        ValueError: The batch has one clip only, or does not fit the model.
        KeyError: The batch lacks an entry.
    """
    if not isinstance(model, VJEPAForPreTraining):
        raise TypeError(
            f"model is a {type(model).__name__}, but health is measured on a VJEPAForPreTraining; unwrap it first"
        )
    device = next(model.parameters()).device
    clips = cast(torch.Tensor, batch["pixel_values_videos"]).to(device)
    context_masks, target_masks = (
        [mask.to(device) for mask in as_mask_list(name, batch[name])] for name in ("context_mask", "target_mask")
    )
    if len(clips) < 2:
        raise ValueError(f"the batch has {len(clips)} clip, but the spread between clips needs 2; give more clips")
    with torch.no_grad(), eval_mode(model):
        result = _run(model, clips, context_masks, target_masks)
        return HealthMeasurement(
            **_spread(result.targets),
            **_prediction(result),
            **_trivial_ratios(result, _token_coordinates(model, clips), context_masks, target_masks),
            encoder_target_distance=_parameter_distance(model),
        )


@dataclass(frozen=True, kw_only=True)
class _FixedPass:
    """One pass of the objective: its loss, what was predicted of each mask kind (B, M, D), what was hidden there, what
    could be hidden anywhere (B, N, D), and the layer-normed features of the target encoder (B, N, D). The last two are
    the same, except for the baseline that predicts pixels.
    """

    loss: torch.Tensor
    predictions: list[torch.Tensor]
    hidden: list[torch.Tensor]
    hidden_anywhere: torch.Tensor
    targets: torch.Tensor


def _spread(targets: torch.Tensor) -> dict[str, float]:
    tokens = targets.flatten(0, 1)  # (B * N, D)
    return {
        "target_std": tokens.std(0, correction=0).mean().item(),
        "target_content_std": targets.var(0).mean().sqrt().item(),
        "target_effective_rank": effective_rank(tokens),
        "token_cosine": _mean_cosine(targets),
    }


def _mean_cosine(targets: torch.Tensor) -> float:
    """Mean over clips and pairs of different tokens, from the length of the sum of the directions."""
    num_tokens = targets.shape[1]
    squared_sum = F.normalize(targets, dim=-1).sum(1).square().sum(-1)  # (B,)
    return ((squared_sum - num_tokens) / (num_tokens * (num_tokens - 1))).mean().item()


def _prediction(result: _FixedPass) -> dict[str, float]:
    predicted, hidden = (
        torch.stack([tokens.float().norm(dim=-1).mean() for tokens in kinds]).mean()
        for kinds in (result.predictions, result.hidden)
    )
    return {
        "fixed_loss": result.loss.item(),
        "prediction_norm_ratio": (predicted / hidden.clamp_min(SMALLEST_DENOMINATOR)).item(),
    }


def _trivial_ratios(
    result: _FixedPass,
    coordinates: torch.Tensor,
    context_masks: Sequence[torch.Tensor],
    target_masks: Sequence[torch.Tensor],
) -> dict[str, float]:
    """The loss over that of the two trivial predictors, each averaged over mask kinds like the loss itself."""
    mean_losses = [F.l1_loss(hidden.mean((0, 1)).expand_as(hidden), hidden) for hidden in result.hidden]
    nearest_losses = []
    for hidden, context_mask, target_mask in zip(result.hidden, context_masks, target_masks, strict=True):
        nearest = nearest_context(coordinates, context_mask, target_mask).expand(len(hidden), -1)  # (B, M)
        nearest_losses.append(F.l1_loss(select_tokens(result.hidden_anywhere, nearest), hidden))
    mean_loss, nearest_loss = (torch.stack(losses).mean().item() for losses in (mean_losses, nearest_losses))
    return {
        "fixed_loss_over_mean_target": result.loss.item() / max(mean_loss, SMALLEST_DENOMINATOR),
        "fixed_loss_over_nearest_token": result.loss.item() / max(nearest_loss, SMALLEST_DENOMINATOR),
    }


def nearest_context(coordinates: torch.Tensor, context_mask: torch.Tensor, target_mask: torch.Tensor) -> torch.Tensor:
    """The context token that lies nearest to each target token.

    Args:
        coordinates: Depth, row and column of each token of a clip, `(num_tokens, 3)`.
        context_mask: `(batch_size or 1, num_context)`.
        target_mask: `(batch_size or 1, num_targets)`.

    Returns:
        Token indices, `(batch_size or 1, num_targets)`; of equally near tokens the first in the mask.
    """
    # Exact for whole coordinates, so that equal distances compare equal
    distances = torch.cdist(
        coordinates[target_mask], coordinates[context_mask], compute_mode="donot_use_mm_for_euclid_dist"
    )  # (B, M, K)
    nearest = distances.argmin(dim=-1)
    return context_mask.expand(len(nearest), -1).gather(1, nearest)


def _token_coordinates(model: VJEPAForPreTraining, clips: torch.Tensor) -> torch.Tensor:
    _, num_frames, _, height, width = clips.shape
    grid = TokenGrid.from_config(model.config, num_frames=num_frames, height=height, width=width)
    axes = [torch.arange(n, dtype=torch.float32, device=clips.device) for n in (grid.depth, grid.rows, grid.columns)]
    return torch.cartesian_prod(*axes)  # (N, 3)


def _parameter_distance(model: VJEPAForPreTraining) -> float:
    differences, lengths = [], []
    for source, target in zip(model.encoder.parameters(), model.target_encoder.parameters(), strict=True):
        differences.append(_squared_length(source.float() - target.float()))
        lengths.append(_squared_length(target.float()))
    return (torch.stack(differences).sum() / torch.stack(lengths).sum()).sqrt().item()


def _squared_length(tensor: torch.Tensor) -> torch.Tensor:
    total = tensor.square().sum()
    return total.full_tensor() if isinstance(total, DTensor) else total


def _run(
    model: VJEPAForPreTraining,
    clips: torch.Tensor,
    context_masks: Sequence[torch.Tensor],
    target_masks: Sequence[torch.Tensor],
) -> _FixedPass:
    features: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple, output: BaseModelOutput) -> None:
        features.append(cast(torch.Tensor, output.last_hidden_state))

    # The class's own forward runs in float32 where a Trainer has put autocast round the model's; a sharded model is
    # gathered by hooks that only a call of the model sets off
    forward = model if is_sharded(model) else partial(type(model).forward, model)
    hook = model.target_encoder.register_forward_hook(keep)
    try:
        outputs = forward(clips, context_masks, target_masks, return_dict=True)
        if isinstance(model, VJEPAForPixelPrediction):  # its objective does without the target encoder
            model.target_encoder(clips, return_dict=True)
    finally:
        hook.remove()
    targets = F.layer_norm(features[0].float(), features[0].shape[-1:])
    anywhere = tubelet_pixels(clips, model.config) if isinstance(model, VJEPAForPixelPrediction) else targets
    return _FixedPass(
        loss=outputs.loss,
        predictions=outputs.predictions,
        hidden=outputs.targets,
        hidden_anywhere=anywhere,
        targets=targets,
    )


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, afterwards each as it was.

    Unlike `model.eval()` and `model.train()`, which also freeze the target encoder, this leaves `requires_grad` alone.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


# ------------------------------------------------------------------------------------------------ diagnosis


@dataclass(frozen=True, kw_only=True)
class HealthWarning:
    """One thing that is wrong with a run.

    Attributes:
        name: Of the rule, such as "collapsed-targets".
        rule: The rule in words.
        value: The measure that the rule is about, when it first held.
        message: What was found and when, and what to do.
        step: Measured step at which the rule first held.
        last_step: Last measured step at which it held; where the run was measured after it, this is over.
    """

    name: str
    rule: str
    value: float
    message: str
    step: int
    last_step: int


@dataclass(frozen=True, kw_only=True)
class HealthRule:
    """A rule of `diagnose`.

    Attributes:
        name: Under which it warns.
        rule: In words.
        finding: What is said of a measurement: a format string over `first` and `now`.
        remedy: What to do.
        measure: The field of `HealthMeasurement` that it is about.
        holds: Whether it holds, of the first measurement, the last one of the first half of the steps so far, and the
            present one.
        num_in_a_row: Measurements in a row at which it has to hold, so that a passing dip is no finding.
        is_after_warmup: Whether it is asked only after the warm-up.
    """

    name: str
    rule: str
    finding: str
    remedy: str
    measure: str
    holds: Callable[[Measurement, Measurement, Measurement], bool]
    num_in_a_row: int = 2
    is_after_warmup: bool = False


LESS_SPEED = (
    "lower the learning rate or lengthen its warm-up, raise the EMA momentum, see that targets get no gradient"
)

# The thresholds lie between runs of tiny models on moving blobs (tests/pretraining/test_health.py trains such) and of
# a pilot of width 128 on videos. Rank, over its first value: healthy runs stay above 0.47, mediocre ones come down to
# 0.36, collapsing ones to 0.22 and less. Standard deviation, over its first value: healthy runs, which dip before they
# rise, stay above 0.65, mediocre ones above 0.4, collapsed ones come down to 0.2 and less. Cosine: up to 0.96 in runs
# that learn, 0.99 and more where they collapsed. Spread between clips, over that of all tokens: 0.45 and more.
RULES = (
    HealthRule(
        name="not-finite",
        rule="a measure of health is not a finite number",
        finding="the loss on the fixed clips is {now[fixed_loss]:.3g}",
        remedy="go back to a checkpoint before it, lower the learning rate, clip gradients; in float16 use bfloat16",
        measure="fixed_loss",
        holds=lambda first, halfway, now: not all(math.isfinite(value) for value in now.values()),
        num_in_a_row=1,
    ),
    HealthRule(
        name="collapsed-targets",
        rule="the effective rank of the targets is below a quarter of its first value, or the mean cosine between a "
        "clip's tokens above 0.99, at two measurements in a row",
        finding="the effective rank is {now[target_effective_rank]:.1f} (at first "
        "{first[target_effective_rank]:.1f}), the cosine between tokens {now[token_cosine]:.3f}",
        remedy=f"the features say little, whatever the loss: start again; {LESS_SPEED}",
        measure="target_effective_rank",
        holds=lambda first, halfway, now: (
            now["target_effective_rank"] < first["target_effective_rank"] / 4 or now["token_cosine"] > 0.99
        ),
    ),
    HealthRule(
        name="shrinking-rank",
        rule="the effective rank of the targets is below 0.4 of its first value at two measurements in a row",
        finding="the effective rank is {now[target_effective_rank]:.1f} (at first {first[target_effective_rank]:.1f})",
        remedy=f"the run may go on, but other settings are likely to give better features: {LESS_SPEED}",
        measure="target_effective_rank",
        holds=lambda first, halfway, now: now["target_effective_rank"] < 0.4 * first["target_effective_rank"],
    ),
    HealthRule(
        name="dying-variance",
        rule="the standard deviation of the target features is below a third of its first value at two measurements "
        "in a row",
        finding="the standard deviation is {now[target_std]:.3f} (at first {first[target_std]:.3f})",
        remedy=f"all tokens are becoming alike; {LESS_SPEED}",
        measure="target_std",
        holds=lambda first, halfway, now: now["target_std"] < first["target_std"] / 3,
    ),
    HealthRule(
        name="content-blind-targets",
        rule="the standard deviation between clips at one place is below a quarter of that over all tokens, at two "
        "measurements in a row",
        finding="the standard deviation between clips is {now[target_content_std]:.3f}, over all tokens "
        "{now[target_std]:.3f}",
        remedy=f"features tell where a token is and not what is there; see that the clips differ; {LESS_SPEED}",
        measure="target_content_std",
        holds=lambda first, halfway, now: now["target_content_std"] < now["target_std"] / 4,
    ),
    HealthRule(
        name="trivial-prediction",
        rule="after the warm-up, the loss on the fixed clips is no lower than that of always predicting the mean "
        "target, and not 5 % lower against it than after half as many steps, at two measurements in a row",
        finding="the loss is {now[fixed_loss_over_mean_target]:.2f} times that of always predicting the mean target",
        remedy="the predictor learns nothing: see that its parameters get gradients and are in the optimiser, that "
        "masks and clips belong together; raise the learning rate if it is very low, lower it if the loss jumps",
        measure="fixed_loss_over_mean_target",
        holds=lambda first, halfway, now: (
            now["fixed_loss_over_mean_target"] >= max(1.0, 0.95 * halfway["fixed_loss_over_mean_target"])
        ),
        is_after_warmup=True,
    ),
    HealthRule(
        name="frozen-target",
        rule="the targets are what they were at first although the encoder has moved, at two measurements in a row",
        finding="the encoder is {now[encoder_target_distance]:.3g} away",
        remedy="the target encoder does not follow: call update_target_encoder after each optimiser step, with a "
        "momentum below 1",
        measure="encoder_target_distance",
        holds=lambda first, halfway, now: (
            now["encoder_target_distance"] > first["encoder_target_distance"]
            and all(now[name] == first[name] for name in ("target_std", "target_content_std", "token_cosine"))
        ),
    ),
)


def diagnose(history: Sequence[Mapping], *, warmup_steps: int = 0) -> list[HealthWarning]:
    """Faults of a run, by `RULES`; none where it is healthy.

    A function of the history alone: the same for a resumed run as for an uninterrupted one, live or afterwards.

    Args:
        history: Logged rows in the order of steps, such as `trainer.state.log_history`; those with all measures of
            health and a "step" are read.
        warmup_steps: Steps in which the loss may still be that of a trivial predictor.

    Returns:
        One warning for each rule that ever held, in the order in which they came.
    """
    measurements = [row for row in map(measures_of, history) if row is not None]
    steps = [measurement["step"] for measurement in measurements]
    halfway = [measurements[max(bisect_right(steps, step / 2) - 1, 0)] for step in steps]
    warnings = [_apply(rule, measurements, halfway, warmup_steps) for rule in RULES]
    return sorted((warning for warning in warnings if warning), key=lambda warning: warning.step)


def measures_of(row: Mapping) -> dict[str, float] | None:
    """A row's measures under their own names, with its step; None where the row has no measurement."""
    names = [entry.name for entry in fields(HealthMeasurement)]
    if "step" not in row or any(PREFIX + name not in row for name in names):
        return None
    return {"step": row["step"]} | {name: row[PREFIX + name] for name in names}


def _apply(
    rule: HealthRule, measurements: Sequence[Measurement], halfway: Sequence[Measurement], warmup_steps: int
) -> HealthWarning | None:
    found: list[Measurement] = []
    num_in_a_row = 0
    for before, now in zip(halfway, measurements, strict=True):
        is_asked = now["step"] > warmup_steps or not rule.is_after_warmup
        num_in_a_row = num_in_a_row + 1 if is_asked and rule.holds(measurements[0], before, now) else 0
        if num_in_a_row >= rule.num_in_a_row:
            found.append(now)
    if not found:
        return None
    now, step = found[0], int(found[0]["step"])
    finding = rule.finding.format(first=measurements[0], now=now)
    return HealthWarning(
        name=rule.name,
        rule=rule.rule,
        value=now[rule.measure],
        message=f"{rule.name} at step {step}: {finding}. What to do: {rule.remedy}.",
        step=step,
        last_step=int(found[-1]["step"]),
    )
