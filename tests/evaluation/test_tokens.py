"""Tokens of labelled clips: computed, kept in a cache, and read from it."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from vjepa_hub.core.distributed import Processes
from vjepa_hub.data.clip_order import ClipRequest
from vjepa_hub.data.records import VideoRecord
from vjepa_hub.data.synthetic.shapes import SyntheticVideoSettings, make_synthetic_videos
from vjepa_hub.data.video import VideoDecodingError
from vjepa_hub.evaluation.clips import ClipFormat, EvaluationClips, TrainingClips
from vjepa_hub.evaluation.encoders.frozen_encoder import EncoderFacts
from vjepa_hub.evaluation.encoders.opening import FrozenEncoder
from vjepa_hub.evaluation.labelled import open_labelled
from vjepa_hub.evaluation.protocols import Augmentation, Protocol
from vjepa_hub.evaluation.tokens import (
    CachedClips,
    EncodedClips,
    EncodingSettings,
    SubsetTokens,
    cache_key,
)
from vjepa_hub.heads.tokens import TokenBatch

SIZE, NUM_FRAMES, WIDTH = 16, 4, 6
FORMAT = ClipFormat(crop_size=SIZE, frames_per_clip=NUM_FRAMES)
PROTOCOL = Protocol(
    name="test", description="", num_segments=2, num_views=3, frame_step=2, augmentation=Augmentation(scale=(0.5, 1.0))
)
NUM_VIDEOS, BROKEN = 7, 3
NUM_TOKENS = NUM_FRAMES * 4


class Share(Processes):
    """One of several processes, which need not meet here."""

    def wait(self) -> None:
        pass


class TinyEncoder(FrozenEncoder):
    """A token for each quarter of each frame; counts the clips that it sees."""

    def __init__(self, seed: int = 0, factor: float = 1.0, num_heads: int = 2):
        torch.manual_seed(seed)
        super().__init__(
            nn.Linear(3, WIDTH),
            EncoderFacts(
                name="tiny",
                hidden_size=WIDTH,
                num_attention_heads=num_heads,
                crop_size=SIZE,
                frames_per_clip=NUM_FRAMES,
                mean=FORMAT.mean,
                std=FORMAT.std,
                description="for tests",
                is_trained=False,
            ),
        )
        self.factor, self.num_clips, self.largest_pass = factor, 0, 0

    def encode(self, clips: torch.Tensor) -> torch.Tensor:
        self.num_clips += len(clips)
        self.largest_pass = max(self.largest_pass, len(clips))
        quarters = nn.functional.adaptive_avg_pool2d(clips.flatten(0, 1), 2).flatten(2).transpose(1, 2)
        return self.model(quarters).reshape(len(clips), -1, WIDTH) * self.factor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    make_synthetic_videos(folder, SyntheticVideoSettings(num_videos=NUM_VIDEOS, size=32, num_frames=10))
    names = sorted(path.name for path in folder.glob("*.mp4"))
    (folder / names[BROKEN]).write_bytes(b"no video at all")
    (folder / "set.csv").write_text("".join(f"{name} {number % 3}\n" for number, name in enumerate(names)))
    return folder


@pytest.fixture(scope="module")
def labelled(folder):
    return open_labelled(folder / "set.csv")


def encoded(labelled, encoder=None, *, protocol=PROTOCOL, clip_format=FORMAT, **settings) -> EncodedClips:
    clips = EvaluationClips(labelled, protocol, clip_format)
    return EncodedClips(encoder or TinyEncoder(), clips, EncodingSettings(**settings))


def requests_for(*batches):
    return [[ClipRequest(100 + index, index) for index in batch] for batch in batches]


ALL = requests_for([0, 1, 2], [3, 4, 5, 6])


def assert_equal(first: TokenBatch, second: TokenBatch):
    for name in ("tokens", "labels", "indices", "is_readable"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
        assert getattr(first, name).dtype == getattr(second, name).dtype


def filled(path, labelled, encoder=None, **options) -> CachedClips:
    cache = CachedClips(path, encoded(labelled, encoder, **options))
    cache.fill()
    return cache


# --- computed tokens ---


def test_tokens_of_a_video_are_those_of_each_of_its_clips(labelled):
    source = encoded(labelled, clips_per_pass=5)
    batches = list(source.batches(ALL))
    assert [len(batch.tokens) for batch in batches] == [3, 4]
    assert batches[0].tokens.shape == (3, 3, 2, NUM_TOKENS, WIDTH)
    assert batches[0].tokens.dtype == torch.float16
    pixels = source.clips[5]["pixel_values_videos"]
    for view in range(3):
        for segment in range(2):
            wanted = source.encoder(pixels[view, segment][None])[0]
            torch.testing.assert_close(batches[1].tokens[2, view, segment].float(), wanted, atol=2e-3, rtol=2e-3)


def test_labels_places_and_readability_go_with_the_tokens(labelled):
    (batch,) = encoded(labelled).batches(requests_for([6, BROKEN, 1]))
    assert batch.labels.tolist() == [0, 0, 1]
    assert batch.indices.tolist() == [6, BROKEN, 1]
    assert batch.is_readable.tolist() == [True, False, True]


def test_the_encoder_takes_no_more_clips_at_once_than_it_is_told(labelled):
    encoder = TinyEncoder()
    list(encoded(labelled, encoder, clips_per_pass=4).batches(ALL))
    assert (encoder.largest_pass, encoder.num_clips) == (4, NUM_VIDEOS * 6)


def test_an_empty_batch_gives_none_in_its_place(labelled, tmp_path):
    requests = requests_for([0], [], [1])
    for source in (encoded(labelled), filled(tmp_path, labelled)):
        batches = list(source.batches(requests))
        assert batches[1] is None
        assert [batch.indices.tolist() for batch in batches[::2]] == [[0], [1]]
        assert list(source.batches([])) == []


def test_worker_processes_give_the_same_tokens(labelled):
    here, there = (list(encoded(labelled, num_workers=number).batches(ALL)) for number in (0, 2))
    for first, second in zip(here, there, strict=True):
        assert_equal(first, second)


def test_encoding_draws_no_global_random_number(labelled):
    source = encoded(labelled)
    before = torch.get_rng_state()
    list(source.batches(ALL))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_number_format_is_that_of_the_computation(labelled):
    (exact,), (rounded,) = (
        encoded(labelled, dtype=dtype).batches(requests_for([0, 1])) for dtype in ("float32", "bfloat16")
    )
    assert rounded.tokens.dtype == torch.float16
    assert not torch.equal(exact.tokens, rounded.tokens)
    torch.testing.assert_close(rounded.tokens, exact.tokens, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e6])
def test_tokens_that_are_not_finite_stop_the_run(labelled, tmp_path, factor):
    source = encoded(labelled, TinyEncoder(factor=factor))
    with pytest.raises(ValueError, match="encoder tiny gives tokens that are not finite in float16"):
        next(source.batches(ALL))
    with pytest.raises(ValueError, match="not finite"):
        CachedClips(tmp_path, source).fill()
    assert list(tmp_path.iterdir()) == []


def test_training_clips_have_one_view_drawn_from_their_position(labelled):
    clips = TrainingClips(labelled, PROTOCOL, FORMAT)
    source = EncodedClips(TinyEncoder(), clips, EncodingSettings())
    first, again = (next(source.batches([[ClipRequest(4, 0), ClipRequest(5, 0)]])) for _ in range(2))
    assert first.tokens.shape == (2, 1, 2, NUM_TOKENS, WIDTH)
    assert_equal(first, again)
    assert not torch.equal(first.tokens[0], first.tokens[1])


# --- cache ---


def test_a_cache_gives_bit_for_bit_what_the_encoder_gives(labelled, tmp_path):
    cache = filled(tmp_path, labelled)
    computed, read = list(encoded(labelled).batches(ALL)), list(cache.batches(ALL))
    assert len(read) == 2
    for first, second in zip(computed, read, strict=True):
        assert_equal(first, second)


def test_reading_asks_the_encoder_for_nothing(labelled, tmp_path):
    filled(tmp_path, labelled)
    encoder = TinyEncoder()
    again = CachedClips(tmp_path, encoded(labelled, encoder))
    assert len(list(again.batches(ALL))) == 2
    assert encoder.num_clips == 0


def test_filling_again_only_tries_what_could_not_be_read(labelled, tmp_path):
    filled(tmp_path, labelled)
    encoder = TinyEncoder()
    filled(tmp_path, labelled, encoder)
    assert encoder.num_clips == 6
    readable = labelled.subset(np.array([0, 1, 2, 4, 5, 6]), "readable")
    filled(tmp_path, readable)
    encoder = TinyEncoder()
    filled(tmp_path, readable, encoder)
    assert encoder.num_clips == 0


def test_a_video_that_could_not_be_read_for_a_while_is_read_later(labelled, tmp_path, monkeypatch):
    readable = labelled.subset(np.array([0, 1]), "readable")
    source = encoded(readable)

    def fail(record, **options):
        raise VideoDecodingError(record.name, "the disk is away", "try later")

    with monkeypatch.context() as patch:
        patch.setattr(VideoRecord, "open", fail)
        CachedClips(tmp_path, source).fill()
    (batch,) = CachedClips(tmp_path, source).batches(requests_for([0, 1]))
    assert batch.is_readable.tolist() == [False, False]
    (batch,) = filled(tmp_path, readable).batches(requests_for([0, 1]))
    assert batch.is_readable.tolist() == [True, True]
    assert_equal(batch, next(encoded(readable).batches(requests_for([0, 1]))))


class StoppedError(Exception):
    pass


def test_an_interrupted_filling_goes_on_where_it_was(labelled, tmp_path):
    def stop(what, done, total):
        assert total == NUM_VIDEOS
        if done == 2:
            raise StoppedError

    encoder = TinyEncoder()
    with pytest.raises(StoppedError):
        CachedClips(tmp_path, encoded(labelled, encoder)).fill(batch_size=1, progress=stop)
    assert encoder.num_clips == 2 * 6
    cache = CachedClips(tmp_path, encoded(labelled, encoder))
    with pytest.raises(RuntimeError, match="is not complete; fill it first"):
        list(cache.batches(ALL))
    seen = []
    cache.fill(batch_size=2, progress=lambda what, done, total: seen.append(done))
    assert encoder.num_clips == NUM_VIDEOS * 6
    assert seen == [4, 6, 7]
    for first, second in zip(cache.batches(ALL), encoded(labelled).batches(ALL), strict=True):
        assert_equal(first, second)


def test_a_kill_between_tokens_and_their_mark_loses_nothing_else(labelled, tmp_path, monkeypatch):
    cache = CachedClips(tmp_path, encoded(labelled))
    cache.fill(processes=Share(0, 2))
    state = np.load(cache.store.folder / "state.npy")
    tokens = np.load(cache.store.folder / "features.npy", mmap_mode="r+")
    tokens[1] = 7.0  # half written, and not marked
    tokens.flush()
    assert state.tolist() == [1, 0, 1, 0, 1, 0, 1]
    cache.fill(processes=Share(1, 2))
    for first, second in zip(cache.batches(ALL), encoded(labelled).batches(ALL), strict=True):
        assert_equal(first, second)


def test_two_processes_fill_one_cache_without_writing_over_each_other(labelled, tmp_path):
    """Both are at work at the same time: each of them writes a batch in turn."""
    encoders = TinyEncoder(), TinyEncoder()
    first, second = (CachedClips(tmp_path, encoded(labelled, encoder)) for encoder in encoders)
    assert first.store.folder == second.store.folder
    has_begun = []

    def let_the_other(what, done, total):
        if not has_begun:
            has_begun.append(True)
            second.fill(processes=Share(1, 2), batch_size=2)

    first.fill(processes=Share(0, 2), batch_size=1, progress=let_the_other)
    assert [encoder.num_clips for encoder in encoders] == [4 * 6, 3 * 6]
    for read, computed in zip(first.batches(ALL), encoded(labelled).batches(ALL), strict=True):
        assert_equal(read, computed)


def test_processes_that_make_the_files_at_the_same_moment_share_them(labelled, tmp_path):
    rank_of = range(4)
    for trial in range(5):
        caches = [CachedClips(tmp_path / str(trial), encoded(labelled)) for _ in rank_of]
        with ThreadPoolExecutor(len(caches)) as pool:
            list(pool.map(lambda rank, caches=caches: caches[rank].fill(processes=Share(rank, 4)), rank_of))
        assert len(list(caches[0].store.folder.iterdir())) == 3
        for read, computed in zip(caches[0].batches(ALL), encoded(labelled).batches(ALL), strict=True):
            assert_equal(read, computed)


def test_a_share_without_videos_is_nothing_to_do(labelled, tmp_path):
    encoder = TinyEncoder()
    CachedClips(tmp_path, encoded(labelled, encoder)).fill(processes=Share(8, 9))
    assert encoder.num_clips == 0


def test_making_the_files_twice_keeps_what_is_in_them(labelled, tmp_path):
    cache = filled(tmp_path, labelled)
    (cache.store.folder / "key.json").unlink()  # as another process sees it that came before the key was written
    cache.store.write(np.array([0]), cache.store.read(np.array([0])), np.array([True]))
    assert sorted(path.name for path in cache.store.folder.iterdir()) == ["features.npy", "key.json", "state.npy"]
    for first, second in zip(cache.batches(ALL), encoded(labelled).batches(ALL), strict=True):
        assert_equal(first, second)


def test_a_cache_that_is_not_there_is_named(labelled, tmp_path):
    with pytest.raises(RuntimeError, match="is empty; fill it first"):
        next(CachedClips(tmp_path, encoded(labelled)).batches(ALL))


def test_a_folder_that_holds_something_else_is_refused(labelled, tmp_path):
    cache = filled(tmp_path, labelled)
    (cache.store.folder / "key.json").write_text("{}")
    with pytest.raises(ValueError, match="belongs to something else than its name says; delete it"):
        cache.fill()


def test_a_disk_that_is_too_small_is_found_out_before_anything_is_written(labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    cache = CachedClips(tmp_path, encoded(labelled))
    with pytest.raises(OSError, match=r"the features of set.csv take 0.0 GB, but .* has 0.0 GB free"):
        cache.fill()
    assert list(cache.store.folder.iterdir()) == []


def test_training_clips_are_not_cached(labelled, tmp_path):
    source = EncodedClips(TinyEncoder(), TrainingClips(labelled, PROTOCOL, FORMAT), EncodingSettings())
    with pytest.raises(ValueError, match="drawn anew in each epoch, so there is nothing to cache"):
        CachedClips(tmp_path, source)


# --- what a cache depends on ---


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": lambda: TinyEncoder(seed=1)},
        {"encoder": lambda: TinyEncoder(num_heads=3)},
        {"encoder": lambda: TinyEncoder().place(dtype=torch.bfloat16)},
        {"dtype": "bfloat16"},
        {"protocol": PROTOCOL.with_values(num_segments=1)},
        {"protocol": PROTOCOL.with_values(num_views=1)},
        {"protocol": PROTOCOL.with_values(frame_step=1)},
        {"protocol": PROTOCOL.with_values(clip_duration=1.0)},
        {"clip_format": FORMAT.with_values(crop_size=32)},
        {"clip_format": FORMAT.with_values(frames_per_clip=2)},
        {"clip_format": FORMAT.with_values(mean=(0.5, 0.5, 0.5))},
        {"clip_format": FORMAT.with_values(std=(0.5, 0.5, 0.5))},
    ],
)
def test_whatever_changes_the_tokens_gives_another_cache(labelled, tmp_path, changes):
    others = {name: value for name, value in changes.items() if name != "encoder"}
    encoder = changes.get("encoder", TinyEncoder)()
    other = CachedClips(tmp_path, encoded(labelled, encoder, **others))
    assert other.store.folder != CachedClips(tmp_path, encoded(labelled)).store.folder


def test_weights_that_are_changed_in_place_give_another_cache(labelled, tmp_path):
    encoder = TinyEncoder()
    before = CachedClips(tmp_path, encoded(labelled, encoder)).store.folder
    with torch.no_grad():
        encoder.model.bias.add_(1e-3)
    assert CachedClips(tmp_path, encoded(labelled, encoder)).store.folder != before


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": PROTOCOL.with_values(name="other", learning_rate=1.0, num_epochs=1, augmentation=None)},
        {"dtype": "float32"},
        {"clips_per_pass": 3, "num_workers": 2},
    ],
)
def test_whatever_does_not_change_the_tokens_gives_the_same_cache(labelled, tmp_path, changes):
    assert (
        CachedClips(tmp_path, encoded(labelled, **changes)).store.folder
        == CachedClips(tmp_path, encoded(labelled)).store.folder
    )


def test_other_videos_or_another_order_of_them_give_another_cache(labelled):
    keys = [
        cache_key(encoded(labelled.subset(np.array(positions), "a part")))["videos"]
        for positions in ([0, 1], [1, 0], [0, 2], [0, 1, 2])
    ]
    assert len(set(keys)) == 4


def test_other_labels_use_the_same_cache_with_their_own_labels(labelled, tmp_path):
    filled(tmp_path, labelled)
    relabelled = replace(labelled, labels=labelled.labels[::-1].copy())
    cache = CachedClips(tmp_path, encoded(relabelled, TinyEncoder(factor=float("nan"))))
    (batch,) = cache.batches(requests_for([0, 1]))
    assert batch.labels.tolist() == relabelled.labels[:2].tolist() != labelled.labels[:2].tolist()


def test_a_file_that_was_changed_gives_another_cache(folder, tmp_path):
    for path in folder.iterdir():
        shutil.copy(path, tmp_path / path.name)
    copied = open_labelled(tmp_path / "set.csv")
    before = CachedClips(tmp_path / "cache", encoded(copied)).store.folder
    assert CachedClips(tmp_path / "cache", encoded(open_labelled(tmp_path / "set.csv"))).store.folder == before
    os.utime(copied.names[0], ns=(0, 0))
    assert CachedClips(tmp_path / "cache", encoded(copied)).store.folder != before


# --- subsets ---


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_subset_has_the_tokens_of_its_videos_and_its_own_places(labelled, tmp_path, is_cached):
    whole = filled(tmp_path, labelled) if is_cached else encoded(labelled)
    positions = np.array([5, BROKEN, 1])
    part = labelled.subset(positions, "three of them")
    subset = SubsetTokens(whole, positions, part)
    first, empty, second = subset.batches([[ClipRequest(0, 2), ClipRequest(1, 0)], [], [ClipRequest(2, 1)]])
    assert empty is None
    assert (first.indices.tolist(), second.indices.tolist()) == ([2, 0], [1])
    assert (second.is_readable.tolist(), first.is_readable.tolist()) == ([False], [True, True])
    direct = next(encoded(part).batches([[ClipRequest(0, 2), ClipRequest(1, 0)]]))
    assert_equal(first, direct)
