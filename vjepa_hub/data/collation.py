"""Samples to batches: clips are stacked, and get the masks of pretraining."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch

from ..core.settings import require_at_least
from .augmentation import finish_clips, resize_cutouts
from .masking import (
    LONG_RANGE,
    SHORT_RANGE,
    Cut,
    MaskKind,
    MaskPair,
    TokenGrid,
    cut_to_batch_minimum,
    require_possible,
    sample_masks_at,
)

Sample = Mapping[str, Any]

CLIP_KEYS = ("frames", "pixel_values_videos")
MASK_KEYS = ("context_mask", "target_mask")
MODEL_INPUTS = ("pixel_values_videos", *MASK_KEYS)
# Keys of a sample whose values become one tensor, with that tensor's name in the batch and its type.
VECTORS = {
    "is_flipped": ("is_flipped", torch.bool),
    "position": ("positions", torch.int64),
    "num_failures": ("num_failures", torch.int64),
    "label": ("labels", torch.int64),
}
KNOWN_KEYS = CLIP_KEYS + MASK_KEYS + tuple(VECTORS)


@dataclass(frozen=True)
class MaskCollator:
    """Makes a batch of samples, and draws its masks: one context and one target mask for each kind.

    The masks follow from the seed and the samples' positions in the global order of the run. So they are the same in
    any worker and process, and after a resume. The size of the blocks follows from the optimiser step alone, which is
    that of the positions: all samples of a batch have to belong to the same step.

    Samples are mappings with the keys

    - `frames`: the cut-out of a clip, uint8 `(num_frames, height, width, 3)`; or `pixel_values_videos`: a finished
      clip, float `(num_frames, num_channels, height, width)`, as other data sets may give;
    - `position`: place in the global order (`ClipOrder` hands it out with the index);
    - `is_flipped`, `num_failures`, `label`, where the data set gives them;
    - `context_mask`, `target_mask`: masks of the data set's own, instead of drawn ones: int64 `(num_kept,)`, or a
      list of these, one for each kind. Only then a sample needs no position.

    Args:
        grid: The tokens of a clip, after it is resized.
        mask_kinds: The kinds of masks, in the order of their mask indices.
        seed: Seed of the run.
        clips_per_step: Clips of one optimiser step, of all processes and accumulation steps together, as in
            `ClipOrder`.
        cut: Chooses which tokens remain where a clip has more than another: `cut_to_batch_minimum` as the release
            does, or `cut_at_random`, or a function of one's own (`Cut`). To be used in workers that are started anew
            (not forked) it has to be picklable.
        resize_to: Resizes cut-outs to this side here, in the worker, in pixels; it has to be the grid's. None leaves
            them as they are.

    Raises:
        ValueError: If the masks cannot be drawn on this grid (`require_possible`), if there is no kind or the kinds
            are not in the order of their mask indices, if `clips_per_step` is no positive integer, or if `resize_to`
            is not the grid's side.
    """

    grid: TokenGrid
    mask_kinds: Sequence[MaskKind] = (SHORT_RANGE, LONG_RANGE)
    _: KW_ONLY
    seed: int
    clips_per_step: int
    cut: Cut = cut_to_batch_minimum
    resize_to: int | None = None

    def __post_init__(self) -> None:
        require_at_least(1, clips_per_step=self.clips_per_step)
        _require_order(self.mask_kinds)
        for kind in self.mask_kinds:
            require_possible(kind, self.grid)
        if self.resize_to is not None and (self.resize_to, self.resize_to) != (self.grid.height, self.grid.width):
            raise ValueError(
                f"resize_to is {self.resize_to}, but the grid's clips are {self.grid.height} x {self.grid.width} "
                "pixels; give the grid's side, or a grid of that size"
            )

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Makes the batch.

        Args:
            samples: Those of one batch, at least one, all with the same keys.

        Returns:
            `frames`: uint8 `(batch_size, num_frames, 3, resize_to, resize_to)`, or a list of the cut-outs without
            `resize_to`, which `model_inputs` makes the model's; or `pixel_values_videos`: the finished clips of other
            data sets, stacked. `context_mask` and `target_mask`: lists of int64 `(batch_size, num_kept)`, one for each
            kind. `is_flipped`, `positions`, `num_failures`, `labels`: `(batch_size,)`, those that the samples have.

        Raises:
            TypeError: If a sample is no mapping.
            ValueError: If the samples have different or unknown keys, no clip, no position to draw masks for, a clip
                that does not fit the grid, or if they belong to different steps.
        """
        keys = _common_keys(samples)
        batch: dict[str, Any] = self._stack_clips(samples, keys)
        for key, (name, dtype) in VECTORS.items():
            if key in keys:
                batch[name] = torch.tensor([sample[key] for sample in samples], dtype=dtype)
        pairs = self._own_masks(samples) if keys & set(MASK_KEYS) else self._draw_masks(batch.get("positions"))
        batch["context_mask"] = [pair.context_mask for pair in pairs]
        batch["target_mask"] = [pair.target_mask for pair in pairs]
        return batch

    def _stack_clips(self, samples: Sequence[Sample], keys: set[str]) -> dict[str, Any]:
        if "frames" not in keys:
            clips = [torch.as_tensor(sample["pixel_values_videos"]) for sample in samples]
            for clip in clips:
                self._require_fit(clip)
            return {"pixel_values_videos": torch.stack(clips)}
        cutouts = [sample["frames"] for sample in samples]
        for cutout in cutouts:
            self._require_num_frames(cutout)
        return {"frames": cutouts if self.resize_to is None else resize_cutouts(cutouts, self.resize_to)}

    def _require_num_frames(self, clip: torch.Tensor) -> None:
        if len(clip) != self.grid.num_frames:
            raise ValueError(
                f"a clip has {len(clip)} frames, but the grid's clips have {self.grid.num_frames}; set the data set's "
                "frames_per_clip to that"
            )

    def _require_fit(self, clip: torch.Tensor) -> None:
        """Checks a finished clip: its tokens have to be those that the masks count."""
        self._require_num_frames(clip)
        if not clip.is_floating_point():
            raise ValueError(
                f"pixel_values_videos of a sample has type {clip.dtype}, but a finished clip is normalised floating "
                "point; normalise it, or give unfinished clips as `frames` (channels last) with `is_flipped`"
            )
        if clip.ndim != 4 or tuple(clip.shape[2:]) != (self.grid.height, self.grid.width):
            raise ValueError(
                f"pixel_values_videos of a sample has shape {tuple(clip.shape)}, but must be (num_frames, "
                f"num_channels, height, width) with {self.grid.height} x {self.grid.width} pixels, the grid's; resize "
                "or crop the clip, or give a grid of its size"
            )

    def _draw_masks(self, positions: torch.Tensor | None) -> list[MaskPair]:
        if positions is None:
            raise ValueError(
                "the samples have neither `position` nor masks of their own, but masks are drawn for positions of the "
                "global order; take the batches from vjepa_hub.data.loader.pretraining_loader, or give the samples "
                "context_mask and target_mask"
            )
        step = self._step_of(positions)
        return [
            sample_masks_at(kind, self.grid, positions, seed=self.seed, step=step, cut=self.cut)
            for kind in self.mask_kinds
        ]

    def _own_masks(self, samples: Sequence[Sample]) -> list[MaskPair]:
        """Stacks the masks that samples bring along, and checks them as drawn ones are."""
        if missing := [key for key in MASK_KEYS if key not in samples[0]]:
            raise ValueError(f"the samples have masks of their own, but no {missing[0]}; give both masks, or none")
        context_masks, target_masks = (_stack_masks(samples, key) for key in MASK_KEYS)
        if len(context_masks) != len(target_masks):
            raise ValueError(
                f"the samples have {len(context_masks)} context masks and {len(target_masks)} target masks, but the "
                "two go in pairs; give one of each for each kind of masks"
            )
        pairs = [MaskPair(*masks, index) for index, masks in enumerate(zip(context_masks, target_masks, strict=True))]
        last = max(int(mask.max()) for mask in context_masks + target_masks)
        if last >= self.grid.num_tokens:
            raise ValueError(
                f"a mask of a sample holds token {last}, but the grid has {self.grid.num_tokens} tokens, counted from "
                "0; make the masks for the same grid as the collator's"
            )
        return pairs

    def _step_of(self, positions: torch.Tensor) -> int:
        steps = positions // self.clips_per_step
        if not (steps == steps[0]).all():
            raise ValueError(
                f"a batch of {len(positions)} clips has positions {int(positions.min())} to {int(positions.max())}, "
                f"of steps {int(steps.min())} to {int(steps.max())} at clips_per_step={self.clips_per_step}, but "
                "blocks have one size in each step; take the batches from vjepa_hub.data.loader.pretraining_loader, "
                "not from DataLoader(shuffle=True), or in an order of your own a batch size that divides "
                "clips_per_step"
            )
        return int(steps[0])


def model_inputs(batch: Mapping[str, Any], *, crop_size: int) -> dict[str, Any]:
    """The arguments of the model in a batch; `frames` are resized, flipped and normalised, on the device they are on.

    Args:
        batch: Of a `MaskCollator`, or any that has these arguments; what else it has is left out.
        crop_size: Pixels of the model's clips.

    Raises:
        ValueError: There is no clip, or no masks.
    """
    found = dict(batch)
    if "frames" in found:
        found["pixel_values_videos"] = finish_clips(found["frames"], found["is_flipped"], crop_size=crop_size)
    if missing := [name for name in MODEL_INPUTS if name not in found]:
        raise ValueError(f"the batch has {', '.join(batch)}, but pretraining needs {', '.join(missing)} too")
    return {name: found[name] for name in MODEL_INPUTS}


def _require_order(mask_kinds: Sequence[MaskKind]) -> None:
    indices = [kind.mask_index for kind in mask_kinds]
    if not indices or indices != list(range(len(indices))):
        raise ValueError(
            f"mask_kinds have the mask indices {indices}, but the i-th kind belongs to the i-th of the predictor's "
            "mask tokens; give at least one kind, and set mask_index to 0, 1, ... in the order of the kinds "
            "(kind.with_values(mask_index=0))"
        )


def _common_keys(samples: Sequence[Sample]) -> set[str]:
    if not samples:
        raise ValueError("the batch has no samples, but needs at least one; check the sampler")
    for sample in samples:
        if not isinstance(sample, Mapping):
            raise TypeError(
                f"a sample is a {type(sample).__name__}, but has to be a mapping; let the data set return "
                '{"pixel_values_videos": clip}, and for a class "label" beside it'
            )
    keys = set(samples[0])
    for sample in samples:
        if different := keys ^ set(sample):
            raise ValueError(
                f"some samples of a batch have {', '.join(sorted(different))} and others do not, but a batch is made "
                "of all or none; let the data set give every sample the same keys"
            )
    if unknown := keys - set(KNOWN_KEYS):
        raise ValueError(
            f"the samples have {', '.join(sorted(unknown))}, but a batch is made of {', '.join(KNOWN_KEYS)} alone; "
            "correct the spelling, or leave it out of the samples"
        )
    if len(clips := keys & set(CLIP_KEYS)) != 1:
        raise ValueError(
            f"the samples have {' and '.join(sorted(clips)) or 'no clip'}, but need either `frames` (a cut-out, "
            "uint8) or `pixel_values_videos` (a finished clip, float); let the data set give one of them"
        )
    return keys


def _stack_masks(samples: Sequence[Sample], key: str) -> list[torch.Tensor]:
    """One (B, num_kept) for each kind of masks."""
    given = [sample[key] if isinstance(sample[key], list | tuple) else [sample[key]] for sample in samples]
    masks = [[torch.as_tensor(mask) for mask in of_sample] for of_sample in given]
    shapes = [[tuple(mask.shape) for mask in of_sample] for of_sample in masks]
    if any(of_sample != shapes[0] for of_sample in shapes):
        raise ValueError(
            f"{key} has the shapes {shapes[0]} in one sample of a batch and others elsewhere, but a batch is one "
            "tensor for each kind of masks; cut the masks of all clips to one length"
        )
    return [torch.stack(of_kind) for of_kind in zip(*masks, strict=True)]
