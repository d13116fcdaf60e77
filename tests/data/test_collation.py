import pickle

import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader, Dataset

from vjepa_hub.data.augmentation import resize_cutouts
from vjepa_hub.data.clip_order import ClipOrder
from vjepa_hub.data.collation import MaskCollator
from vjepa_hub.data.masking import (
    CAUSAL,
    LONG_RANGE,
    RANDOM_TUBE,
    SHORT_RANGE,
    TokenGrid,
    cut_at_random,
    mask_future,
    sample_masks_at,
)

GRID = TokenGrid(num_frames=8, height=64, width=64)  # 4 x 4 x 4 tokens
SEED, CLIPS_PER_STEP, BATCH_SIZE = 5, 12, 3


def build(**changes):
    return MaskCollator(**({"grid": GRID, "seed": SEED, "clips_per_step": CLIPS_PER_STEP} | changes))


def sample_at(position, *, height=40, width=50, **extra):
    """A sample of a VideoClipDataset: a cut-out of its own size."""
    frames = torch.full((GRID.num_frames, height, width, 3), position % 256, dtype=torch.uint8)
    return {"frames": frames, "is_flipped": position % 2 == 1, "position": position, "num_failures": 0} | extra


def finished_at(position, **extra):
    """A sample of somebody's own data set."""
    clip = torch.full((GRID.num_frames, 3, GRID.height, GRID.width), float(position))
    return {"pixel_values_videos": clip, "position": position} | extra


def masks_of(batch):
    return [[mask.tolist() for mask in batch[key]] for key in ("context_mask", "target_mask")]


class Clips(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, request):
        return finished_at(request.position, label=request.index)


def load(epochs=range(2), *, num_processes=1, num_workers=0, skip=0, **changes):
    """The batches of all processes, in the order of their positions."""
    batches = []
    for process in range(num_processes):
        order = ClipOrder(40, clips_per_step=CLIPS_PER_STEP, steps_per_epoch=3, seed=SEED)
        loader = DataLoader(Clips(), BATCH_SIZE, sampler=order, num_workers=num_workers, collate_fn=build(**changes))
        loader = prepare_data_loader(loader, num_processes=num_processes, process_index=process, put_on_device=False)
        for epoch in epochs:
            skipped = skip_first_batches(loader, skip) if skip else loader
            skipped.set_epoch(epoch)
            order.set_epoch(epoch)
            batches += list(skipped)
    return sorted(batches, key=lambda batch: int(batch["positions"][0]))


def assert_same_batches(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert masks_of(batch) == masks_of(other)
        for key in ("positions", "labels", "pixel_values_videos"):
            assert torch.equal(batch[key], other[key])


# Batches


def test_a_batch_holds_the_contract_of_the_trainer():
    batch = build()([sample_at(position, label=position + 1, num_failures=position) for position in range(3)])
    assert set(batch) == {
        *("frames", "is_flipped", "context_mask", "target_mask"),
        *("positions", "num_failures", "labels"),
    }
    for key, values in {"positions": [0, 1, 2], "num_failures": [0, 1, 2], "labels": [1, 2, 3]}.items():
        assert (batch[key].dtype, batch[key].tolist()) == (torch.int64, values)
    assert (batch["is_flipped"].dtype, batch["is_flipped"].tolist()) == (torch.bool, [False, True, False])
    for key in ("context_mask", "target_mask"):
        assert [(mask.dtype, mask.shape[0]) for mask in batch[key]] == [(torch.int64, 3)] * 2


def test_cutouts_stay_as_they_are_or_are_resized_in_the_worker():
    samples = [sample_at(position, height=30 + position) for position in range(3)]
    cutouts = [sample["frames"] for sample in samples]
    kept = build()(samples)["frames"]
    assert all(clip is cutout for clip, cutout in zip(kept, cutouts, strict=True))
    resized = build(resize_to=64)(samples)["frames"]
    assert (resized.dtype, resized.shape) == (torch.uint8, (3, 8, 3, 64, 64))
    assert torch.equal(resized, resize_cutouts(cutouts, 64))


@pytest.mark.parametrize("resize_to", [None, 64])
def test_finished_clips_of_other_data_sets_are_stacked_unchanged(resize_to):
    batch = build(resize_to=resize_to)([finished_at(0), finished_at(1)])
    assert torch.equal(
        batch["pixel_values_videos"], torch.stack([finished_at(i)["pixel_values_videos"] for i in (0, 1)])
    )
    assert set(batch) == {"pixel_values_videos", "positions", "context_mask", "target_mask"}


@pytest.mark.parametrize(
    "mask_kinds",
    [
        (SHORT_RANGE, LONG_RANGE),
        (RANDOM_TUBE,),
        (CAUSAL, LONG_RANGE.with_values(max_temporal_keep=0.5), SHORT_RANGE.with_values(num_blocks=2, mask_index=2)),
    ],
)
def test_masks_are_those_of_the_kinds_in_their_order_at_the_positions_and_their_step(mask_kinds):
    positions = [25, 27, 30]  # of step 2
    mask_kinds = tuple(kind.with_values(ratio=0.8) if kind is RANDOM_TUBE else kind for kind in mask_kinds)
    batch = build(mask_kinds=mask_kinds)([sample_at(position) for position in positions])
    pairs = [sample_masks_at(kind, GRID, positions, seed=SEED, step=2) for kind in mask_kinds]
    assert masks_of(batch) == [
        [pair.context_mask.tolist() for pair in pairs],
        [pair.target_mask.tolist() for pair in pairs],
    ]


def test_no_target_token_is_in_the_context():
    for first in range(0, 10 * CLIPS_PER_STEP, CLIPS_PER_STEP):
        batch = build()([finished_at(first + i) for i in range(CLIPS_PER_STEP)])
        for context_mask, target_mask in zip(batch["context_mask"], batch["target_mask"], strict=True):
            assert not (context_mask[:, :, None] == target_mask[:, None, :]).any()


def test_the_cut_can_be_replaced():
    samples = [sample_at(position) for position in range(6)]
    drawn = build(cut=cut_at_random)(samples)
    pair = sample_masks_at(LONG_RANGE, GRID, range(6), seed=SEED, step=0, cut=cut_at_random)
    assert torch.equal(drawn["target_mask"][1], pair.target_mask)
    assert masks_of(drawn) != masks_of(build()(samples))


# The same masks whoever draws them


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 2), (2, 0), (2, 2)])
def test_batches_do_not_depend_on_the_number_of_processes_and_workers(num_processes, num_workers):
    assert_same_batches(load(num_processes=num_processes, num_workers=num_workers), load())


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_resumed_run_draws_the_masks_of_an_uninterrupted_one(num_processes):
    expected = [batch for batch in load() if batch["positions"][0] >= 36 + 2 * num_processes * BATCH_SIZE]
    assert_same_batches(load([1], num_processes=num_processes, skip=2), expected)


def test_a_collator_travels_to_a_worker_that_is_started_anew():
    samples = [sample_at(position) for position in range(4)]
    for collator in (build(), build(cut=cut_at_random, resize_to=64)):
        assert masks_of(pickle.loads(pickle.dumps(collator))(samples)) == masks_of(collator(samples))


def test_the_global_generator_has_no_say():
    samples = [sample_at(position) for position in range(4)]
    torch.manual_seed(0)
    expected = masks_of(build()(samples))
    torch.manual_seed(1)
    assert masks_of(build()(samples)) == expected
    assert masks_of(build(seed=SEED + 1)(samples)) != expected


# Masks that the samples bring along


def own_masks(first=4, last=8):
    return {"context_mask": torch.arange(first), "target_mask": torch.arange(first, last)}


def test_masks_of_the_samples_are_used_as_they_are():
    samples = [finished_at(position, **own_masks()) for position in range(2)]
    assert masks_of(build()(samples)) == [[[[0, 1, 2, 3]] * 2], [[[4, 5, 6, 7]] * 2]]
    pair = mask_future(GRID, 4)
    several = {"context_mask": [torch.arange(2), pair.context_mask[0]], "target_mask": [[5, 6], pair.target_mask[0]]}
    batch = build()([finished_at(position, **several) for position in range(2)])
    assert [mask.shape for mask in batch["context_mask"]] == [(2, 2), (2, pair.context_mask.shape[1])]
    assert batch["target_mask"][0].tolist() == [[5, 6], [5, 6]]


def test_samples_with_masks_need_no_position():
    clip = finished_at(0)["pixel_values_videos"]
    batch = build()([{"pixel_values_videos": clip, **own_masks()}] * 2)
    assert set(batch) == {"pixel_values_videos", "context_mask", "target_mask"}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([finished_at(0, **own_masks()), finished_at(1)], "some samples .* have context_mask, target_mask"),
        ([finished_at(0, context_mask=torch.arange(4))], "no target_mask; give both"),
        ([finished_at(0, **own_masks()), finished_at(1, **own_masks(3))], "context_mask has the shapes .*one length"),
        ([finished_at(0, context_mask=torch.arange(4), target_mask=torch.arange(3, 6))], "token 3 of clip 0"),
        ([finished_at(0, **own_masks(4, 65))], "holds token 64.*64 tokens"),
        (
            [finished_at(0, context_mask=[torch.arange(4)] * 2, target_mask=[torch.arange(4, 6)])],
            "2 context masks and 1 target masks",
        ),
    ],
)
def test_impossible_masks_of_samples_are_named_in_the_error(samples, message):
    with pytest.raises(ValueError, match=message):
        build()(samples)


# Errors


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no samples"),
        ([sample_at(0), sample_at(1, label=3)], "some samples of a batch have label"),
        ([sample_at(0, contxt_mask=torch.arange(3))], "have contxt_mask, but.*correct the spelling"),
        ([{"position": 0}], "have no clip, but need either `frames`"),
        ([finished_at(0) | sample_at(0)], "have frames and pixel_values_videos"),
        (
            [sample_at(11), sample_at(12)],
            "positions 11 to 12, of steps 0 to 1.*pretraining_loader.*divides clips_per_step",
        ),
        (
            [{"pixel_values_videos": finished_at(0)["pixel_values_videos"]}],
            "nor masks.*pretraining_loader",
        ),
        ([finished_at(0, pixel_values_videos=torch.zeros(16, 3, 64, 64))], "16 frames.*have 8.*frames_per_clip"),
        ([sample_at(0, frames=torch.zeros(4, 9, 9, 3, dtype=torch.uint8))], "a clip has 4 frames"),
        ([finished_at(0, pixel_values_videos=torch.zeros(8, 3, 64, 80))], "shape \\(8, 3, 64, 80\\).*64 x 64 pixels"),
        ([finished_at(0, pixel_values_videos=torch.zeros(8, 3, 64, 64, dtype=torch.uint8))], "type torch.uint8"),
    ],
)
def test_impossible_batches_are_named_in_the_error(samples, message):
    with pytest.raises(ValueError, match=message):
        build()(samples)


@pytest.mark.parametrize("sample", [(torch.zeros(8, 3, 64, 64), 0), torch.zeros(8, 3, 64, 64)])
def test_samples_that_are_no_mappings_are_refused_with_the_form(sample):
    with pytest.raises(TypeError, match=f"a sample is a {type(sample).__name__}.*pixel_values_videos"):
        build()([sample, sample])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_kinds": (LONG_RANGE, SHORT_RANGE)}, r"mask indices \[1, 0\].*mask tokens"),
        ({"mask_kinds": (LONG_RANGE,)}, r"mask indices \[1\].*with_values"),
        ({"mask_kinds": ()}, r"mask indices \[\]"),
        ({"mask_kinds": (SHORT_RANGE.with_values(spatial_scale=(0.9, 1.0)),)}, "without context in .* draws"),
        ({"mask_kinds": (RANDOM_TUBE.with_values(ratio=0.99),)}, "ratio 0.99 keeps none of the 16 patches"),
        ({"clips_per_step": 0}, "clips_per_step is 0"),
        ({"resize_to": 224}, "resize_to is 224.*64 x 64"),
    ],
)
def test_impossible_settings_raise_when_the_collator_is_built(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
