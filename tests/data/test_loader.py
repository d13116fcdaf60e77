import pytest
import torch
from torch.utils.data import Dataset, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from vjepa_hub import VJEPAForPreTraining
from vjepa_hub.data.clip_sampling import ClipSpec
from vjepa_hub.data.dataset import VideoClipDataset
from vjepa_hub.data.loader import pretraining_loader
from vjepa_hub.data.masking import MultiBlockMasking, TokenGrid
from vjepa_hub.data.sources import open_source

GRID = TokenGrid(num_frames=4, height=32, width=32, patch_size=8, tubelet_size=2)
KINDS = (MultiBlockMasking(num_blocks=2, spatial_scale=(0.15, 0.15), mask_index=0),)


class NumberedClips(Dataset):
    """The pixels of each clip are its number."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return {"pixel_values_videos": torch.full((4, 3, 32, 32), float(index))}


def numbers(loader) -> list[int]:
    return [int(clip[0, 0, 0, 0]) for batch in loader for clip in batch["pixel_values_videos"]]


def masks(loader) -> list:
    return [[mask.tolist() for mask in batch["target_mask"]] for batch in loader]


def load(**changes):
    return pretraining_loader(NumberedClips(), GRID, **{"batch_size": 4, "mask_kinds": KINDS, "seed": 3} | changes)


@pytest.fixture
def as_rank(monkeypatch):
    """`as_rank(0)`: this process is one of two that torchrun started."""

    def become(rank: int):
        place = {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
        for name, value in place.items():
            monkeypatch.setenv(name, value)

    return become


@pytest.mark.parametrize("num_workers", [0, 1])
def test_model_takes_the_batches_of_videos_as_they_are(write_video, small_config, num_workers):
    dataset = VideoClipDataset(open_source([write_video("loader.mp4")] * 4), ClipSpec(frames_per_clip=4, frame_step=1))
    loader = pretraining_loader(dataset, GRID, batch_size=2, mask_kinds=KINDS, num_workers=num_workers)
    model = VJEPAForPreTraining(small_config)
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    for batch in batches:
        assert batch["pixel_values_videos"].dtype == torch.float32
        assert model(**batch).loss.isfinite()


def test_an_epoch_has_every_clip_once_and_the_next_another_order():
    loader = load()
    first, second = numbers(loader), numbers(loader)
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    loader.sampler.set_epoch(0)
    assert numbers(loader) == first


def test_processes_share_each_step_and_together_take_the_clips_of_one(as_rank):
    alone = numbers(load(batch_size=8))
    shares = []
    for rank in range(2):
        as_rank(rank)
        shares.append(numbers(load()))
    steps = [shares[0][i : i + 4] + shares[1][i : i + 4] for i in range(0, 12, 4)]
    assert [number for step in steps for number in step] == alone


def test_masks_follow_the_seed_and_the_step():
    loader = load()
    first, second = masks(loader), masks(loader)
    assert first == masks(load())
    assert first != second
    assert first != masks(load(seed=4))


def test_accumulated_batches_are_of_one_step():
    sizes = [len(batch["target_mask"][0][0]) for batch in load(accumulated_batches=6)]
    assert len(sizes) == 6
    assert numbers(load(accumulated_batches=6)) == numbers(load(batch_size=24))


def test_sampler_is_one_that_lightning_leaves_alone(as_rank):
    as_rank(1)
    assert isinstance(load().sampler, DistributedSampler)


class Stream(IterableDataset):
    batch_size, rank, num_processes = 4, 0, 1

    def __iter__(self):
        return iter([NumberedClips()[number] | {"position": number} for number in range(8)])


def test_streams_go_in_and_those_of_another_process_are_refused(as_rank):
    assert numbers(pretraining_loader(Stream(), GRID, batch_size=4, mask_kinds=KINDS)) == list(range(8))
    with pytest.raises(ValueError, match=r"batch_size=4.*the run has 2"):
        pretraining_loader(Stream(), GRID, batch_size=2, mask_kinds=KINDS)
    with pytest.raises(ValueError, match=r"steps_per_epoch is 3.*no epochs"):
        pretraining_loader(Stream(), GRID, batch_size=4, mask_kinds=KINDS, steps_per_epoch=3)
    as_rank(1)
    with pytest.raises(ValueError, match=r"rank=0.*the run has 1"):
        pretraining_loader(Stream(), GRID, batch_size=4, mask_kinds=KINDS)
