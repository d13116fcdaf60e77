"""What a validation sees of a video or an image, and what is drawn for a training step."""

import logging
import os
import pickle
import random
import signal
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from tests.evaluation.finetuning_sets import FramesInMemory, SourceInMemory, labelled_set
from vjepa_hub import VJEPAVideoProcessor
from vjepa_hub.data.augmentation import draw_crop, finish_clips
from vjepa_hub.data.clip_order import ClipRequest
from vjepa_hub.data.clip_sampling import sample_clip_indices
from vjepa_hub.data.crop_spec import CropSpec
from vjepa_hub.data.quarantine import KilledWorkerError
from vjepa_hub.data.random_streams import Stream, generator_at
from vjepa_hub.data.records import ClipSource, VideoContent, VideoRecord
from vjepa_hub.data.synthetic.shapes import SyntheticVideoSettings, make_synthetic_videos
from vjepa_hub.data.video import open_video
from vjepa_hub.evaluation.clips import ClipFormat, EvaluationClips, TrainingClips, drawing_from, naming_killed_workers
from vjepa_hub.evaluation.labelled import LabelledSet, VideoSource, open_labelled
from vjepa_hub.evaluation.protocols import Augmentation, Protocol, find_protocol

SIZE, NUM_FRAMES = 32, 4
FORMAT = ClipFormat(crop_size=SIZE, frames_per_clip=NUM_FRAMES)
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (FORMAT.mean, FORMAT.std))
UNCHANGED = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), auto_augment=None, erase_probability=0.0)
WITHOUT_ERASING = find_protocol("k400").augmentation.with_values(erase_probability=0.0)


def protocol_of(media="video", **fields) -> Protocol:
    return Protocol(**{"name": "test", "description": "", "media": media, "frame_step": 1, **fields})


def noise_video(num_frames=NUM_FRAMES, height=SIZE, width=SIZE, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def smooth_picture(height=40, width=56) -> np.ndarray:
    """Brighter from left to right (red), from top to bottom (green); so that every change shows."""
    across, down = np.meshgrid(np.linspace(20, 235, width), np.linspace(20, 235, height))
    return np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)


def still_video(picture: np.ndarray, num_frames=NUM_FRAMES) -> np.ndarray:
    return np.repeat(picture[None], num_frames, axis=0)


def training(videos, augmentation=UNCHANGED, *, seed=0, clip_format=FORMAT, **fields) -> TrainingClips:
    labelled = labelled_set(videos, [0] * len(videos))
    return TrainingClips(labelled, protocol_of(augmentation=augmentation, **fields), clip_format, seed=seed)


def pixels_at(clips, position, index=0) -> torch.Tensor:
    item = clips[ClipRequest(position, index)]
    assert item["is_readable"]
    return item["pixel_values_videos"]


def normalised(frames: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(frames).movedim(-1, -3).float() / 255 - MEAN) / STD


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory):
    """Three small videos with a list of them, `videos.csv`; the last but one is broken: `0, 1, broken, 2`."""
    folder = tmp_path_factory.mktemp("videos")
    make_synthetic_videos(folder, SyntheticVideoSettings(num_videos=3, size=32, num_frames=12))
    (folder / "broken.mp4").write_bytes(b"no video at all")
    names = [*sorted(path.name for path in folder.glob("*.mp4") if path.name != "broken.mp4")]
    names.insert(2, "broken.mp4")
    (folder / "set.csv").write_text("".join(f"{name} {number}\n" for number, name in enumerate(names)))
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number, (height, width) in enumerate([(70, 50), (48, 90), (20, 21)]):
        path = folder / f"class {number}" / "image.png"
        path.parent.mkdir()
        Image.fromarray(noise_video(1, height, width, seed=number)[0]).save(path)
    (folder / "class 2" / "zz broken.png").write_bytes(b"no image at all")
    return folder


# --- validation: videos ---


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(40, 72), (72, 40), (36, 36)])
def test_validation_clips_are_those_of_the_video_processor(num_views, height, width):
    video = noise_video(30, height, width)
    protocol = protocol_of(num_segments=3, num_views=num_views, frame_step=2)
    found = EvaluationClips(labelled_set([video], [1]), protocol, FORMAT)[0]
    processor = VJEPAVideoProcessor(crop_size=SIZE, num_spatial_views=num_views)
    indices = sample_clip_indices(
        30, fps=None, frames_per_clip=NUM_FRAMES, num_clips=3, frame_step=2, allow_clip_overlap=True
    )
    assert found["pixel_values_videos"].shape == (num_views, 3, NUM_FRAMES, 3, SIZE, SIZE)
    for segment, frames in enumerate(indices):
        wanted = processor(video[frames], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
        assert torch.equal(found["pixel_values_videos"][:, segment], wanted)
    assert (found["label"], found["index"], found["is_readable"]) == (1, 0, True)


@pytest.mark.parametrize("is_wide", [True, False])
def test_three_views_lie_from_left_to_right_or_from_top_to_bottom(is_wide):
    shape = (SIZE, 2 * SIZE) if is_wide else (2 * SIZE, SIZE)
    video = noise_video(NUM_FRAMES, *shape)
    clips = EvaluationClips(labelled_set([video], [0]), protocol_of(num_views=3, num_segments=1), FORMAT)
    views = clips[0]["pixel_values_videos"][:, 0]
    frames = video[
        sample_clip_indices(NUM_FRAMES, fps=None, frames_per_clip=4, frame_step=1, allow_clip_overlap=True)[0]
    ]
    for view, start in zip(views, (0, SIZE // 2, SIZE), strict=True):
        part = slice(start, start + SIZE)
        wanted = normalised(frames[:, :, part] if is_wide else frames[:, part])
        torch.testing.assert_close(view, wanted, atol=1e-5, rtol=0)


def test_frames_of_a_file_are_those_of_the_decoder(video_folder):
    labelled = open_labelled(video_folder / "set.csv")
    found = EvaluationClips(labelled, protocol_of(num_segments=2), FORMAT)[1]["pixel_values_videos"]
    with open_video(labelled.names[1]) as reader:
        indices = sample_clip_indices(
            reader.num_frames, fps=None, frames_per_clip=4, num_clips=2, frame_step=1, allow_clip_overlap=True
        )
        clips = [reader.read_frames(frames) for frames in indices]
    processor = VJEPAVideoProcessor(crop_size=SIZE)
    assert torch.equal(found[0], processor(clips, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"])


def test_mean_and_deviation_are_the_encoders():
    grey = np.full((NUM_FRAMES, SIZE, SIZE, 3), 51, dtype=np.uint8)
    clip_format = ClipFormat(crop_size=SIZE, frames_per_clip=NUM_FRAMES, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.1))
    evaluation = EvaluationClips(labelled_set([grey], [0]), protocol_of(), clip_format)[0]["pixel_values_videos"]
    drawn = pixels_at(training([grey], clip_format=clip_format), 0)
    for pixels in (evaluation, drawn):
        means = pixels.movedim(-3, 0).flatten(1).mean(1)
        torch.testing.assert_close(means, torch.tensor([0.2, 0.0, -1.0]), atol=1e-5, rtol=0)


def test_a_validation_is_the_same_each_time_and_at_each_position():
    clips = EvaluationClips(labelled_set([noise_video(40)], [0]), protocol_of(num_segments=2), FORMAT)
    first = clips[0]["pixel_values_videos"]
    torch.manual_seed(1)
    assert torch.equal(clips[ClipRequest(7, 0)]["pixel_values_videos"], first)


# --- validation: images ---


@pytest.mark.parametrize("index", [0, 1, 2])
def test_validation_images_are_those_of_torchvision(image_folder, index):
    labelled = open_labelled(image_folder, media="image")
    found = EvaluationClips(labelled, protocol_of("image"), FORMAT)[index]
    transform = transforms.Compose(
        [
            transforms.Resize(int(SIZE * 256 / 224)),
            transforms.CenterCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize(FORMAT.mean, FORMAT.std),
        ]
    )
    wanted = transform(Image.open(labelled.names[index]))
    pixels = found["pixel_values_videos"]
    assert pixels.shape == (1, 1, 1, 3, SIZE, SIZE)  # a video encoder repeats it to a clip
    assert torch.equal(pixels[0, 0, 0], wanted)
    assert (found["label"], found["is_readable"]) == (index, True)


# --- training: a function of seed and position ---


@pytest.fixture(scope="module")
def drawn_videos(video_folder):
    protocol = protocol_of(num_segments=2, augmentation=WITHOUT_ERASING.with_values(erase_probability=0.5))
    return TrainingClips(open_labelled(video_folder / "set.csv"), protocol, FORMAT, seed=3)


@pytest.fixture(scope="module")
def drawn_images(image_folder):
    protocol = protocol_of("image", augmentation=find_protocol("in1k").augmentation)
    return TrainingClips(open_labelled(image_folder, media="image"), protocol, FORMAT, seed=3)


@pytest.fixture(params=["drawn_videos", "drawn_images"])
def drawn(request):
    return request.getfixturevalue(request.param)


def test_a_position_gives_the_same_clip_whatever_was_drawn_before(drawn):
    first = pixels_at(drawn, 5)
    pixels_at(drawn, 6, index=1)
    for module in (random, np.random):
        module.seed(11)
    torch.manual_seed(11)
    assert torch.equal(pixels_at(drawn, 5), first)


def test_another_position_or_seed_gives_another_clip(drawn):
    other_seed = TrainingClips(drawn.labelled, drawn.protocol, FORMAT, seed=4)
    seen = [pixels_at(drawn, position) for position in range(6)] + [pixels_at(other_seed, 0)]
    assert not any(torch.equal(seen[a], seen[b]) for a in range(7) for b in range(a))


def test_global_random_numbers_are_left_as_they_were(drawn):
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for position in range(4):
        pixels_at(drawn, position)
    after = random.getstate(), np.random.get_state(), torch.get_rng_state()
    assert after[0] == before[0]
    assert all(np.array_equal(a, b) for a, b in zip(after[1], before[1], strict=True))
    assert torch.equal(after[2], before[2])


def test_random_numbers_are_put_back_after_an_error():
    before = random.getstate(), torch.get_rng_state()
    with pytest.raises(KeyError):
        draw_and_fail()
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def draw_and_fail():
    with drawing_from(1):
        random.random()
        torch.rand(1)
        raise KeyError


def test_worker_processes_give_the_same_clips(drawn_videos):
    requests = [ClipRequest(10 + number, number % 4) for number in range(8)]
    loader = DataLoader(drawn_videos, batch_sampler=[requests[:3], requests[3:5], requests[5:]], num_workers=2)
    batches = list(loader)
    pixels = torch.cat([batch["pixel_values_videos"] for batch in batches])
    assert torch.equal(pixels, torch.stack([drawn_videos[request]["pixel_values_videos"] for request in requests]))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == [0, 1, 2, 3] * 2
    assert torch.cat([batch["is_readable"] for batch in batches]).tolist() == [True, True, False, True] * 2


def test_a_process_that_is_sent_the_clips_gives_the_same(drawn):
    sent = pickle.loads(pickle.dumps(drawn))
    assert torch.equal(pixels_at(sent, 5), pixels_at(drawn, 5))


def test_a_place_alone_is_its_own_position(drawn):
    assert torch.equal(drawn[1]["pixel_values_videos"], pixels_at(drawn, 1, index=1))


# --- training: what is drawn for a clip ---


@pytest.mark.parametrize("position", range(5))
def test_colours_and_shapes_change_alike_in_all_frames(position):
    video = noise_video(NUM_FRAMES, 40, 56)
    moving = pixels_at(training([video], WITHOUT_ERASING, num_segments=1), position)[0]
    read = sample_clip_indices(
        NUM_FRAMES,
        fps=None,
        frames_per_clip=NUM_FRAMES,
        frame_step=1,
        allow_clip_overlap=True,
    )[0]
    for place, frame in enumerate(read):
        still = pixels_at(training([still_video(video[frame])], WITHOUT_ERASING, num_segments=1), position)[0]
        assert torch.equal(moving[place], still[0])
        assert (still == still[:1]).all()


def test_the_policy_changes_colours():
    clips = training([still_video(smooth_picture())], UNCHANGED.with_values(auto_augment="rand-m7-n4-mstd0.5-inc1"))
    plain = pixels_at(training([still_video(smooth_picture())]), 0)
    changed = [not torch.equal(pixels_at(clips, position), plain) for position in range(10)]
    assert sum(changed) >= 8


def test_a_clip_is_the_drawn_box_resized_without_antialiasing():
    video = noise_video(NUM_FRAMES, 60, 80)
    augmentation = UNCHANGED.with_values(scale=(0.1, 0.9), ratio=(0.5, 2.0), flip_probability=0.5)
    clips = training([still_video(video[0])], augmentation, num_segments=2, seed=5)
    settings = CropSpec(scale=(0.1, 0.9), ratio=(0.5, 2.0), flip_probability=0.5)
    flips = set()
    for position in range(8):
        for segment, pixels in enumerate(pixels_at(clips, position)):
            crop = draw_crop(settings, height=60, width=80, seed=5, position=2 * position + segment)
            cutout = torch.from_numpy(still_video(video[0][crop.rows, crop.columns]))
            wanted = finish_clips([cutout], torch.tensor([crop.is_flipped]), crop_size=SIZE)[0]
            torch.testing.assert_close(pixels, wanted, atol=1e-4, rtol=0)
            flips.add(crop.is_flipped)
    assert flips == {True, False}


def test_segments_are_placed_at_random_in_their_part_of_the_video():
    video = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None, None], (60, SIZE, SIZE, 3))
    clips = training([video], num_segments=2, frame_step=2, seed=9)
    starts = set()
    for position in range(6):
        grey = (pixels_at(clips, position) * STD + MEAN)[..., 0, 0, 0] * 255
        wanted = sample_clip_indices(
            60,
            fps=None,
            frames_per_clip=NUM_FRAMES,
            num_clips=2,
            frame_step=2,
            allow_clip_overlap=True,
            generator=generator_at(9, position, stream=Stream.CLIP),
        )
        assert grey.round().long().tolist() == np.stack(wanted).tolist()
        starts.add(int(wanted[0][0]))
    assert len(starts) > 3


def test_segments_of_a_clip_are_drawn_apart():
    clips = training([still_video(smooth_picture())], WITHOUT_ERASING, num_segments=3)
    first, second, third = pixels_at(clips, 0)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_one_segment_is_seen_in_training_where_each_is_classified_by_itself():
    clips = training([noise_video(40)], num_segments=4, attends_across_segments=False)
    assert pixels_at(clips, 0).shape == clips.shape == (1, NUM_FRAMES, 3, SIZE, SIZE)


@pytest.mark.parametrize("name", ["k400", "ssv2", "plain"])
def test_no_clip_of_a_video_protocol_is_mirrored(name):
    augmentation = find_protocol(name).augmentation.with_values(auto_augment=None, erase_probability=0.0)
    video = still_video(smooth_picture())
    assert not any(mirrored_clips(training([video], augmentation, num_segments=1)))
    assert any(mirrored_clips(training([video], augmentation.with_values(flip_probability=0.5), num_segments=1)))


def mirrored_clips(clips) -> list[bool]:
    """Which of some clips of `smooth_picture` are darker on the right than on the left."""
    found = [pixels_at(clips, position)[0, 0, 0] for position in range(30)]
    return [bool(red[:, 0].mean() > red[:, -1].mean()) for red in found]


def test_one_box_is_erased_in_all_frames_with_noise_of_its_own_in_each():
    grey = np.full((NUM_FRAMES, SIZE, SIZE, 3), 90, dtype=np.uint8)
    clips = training([grey], UNCHANGED.with_values(erase_probability=1.0), num_segments=2)
    plain = pixels_at(training([grey], num_segments=2), 0)
    boxes = []
    for position in range(4):
        for pixels in pixels_at(clips, position):
            is_erased = (pixels != plain[0]).any(1)  # (T, H, W)
            assert (is_erased == is_erased[0]).all()
            rows, columns = is_erased[0].any(1), is_erased[0].any(0)
            assert torch.equal(is_erased[0], rows[:, None] & columns)
            assert 0 < is_erased[0].float().mean() < 0.5
            assert not torch.equal(pixels[0], pixels[1])
            boxes.append(is_erased[0])
    assert not torch.equal(boxes[0], boxes[1])
    assert not torch.equal(boxes[0], boxes[2])


def test_a_quarter_of_the_clips_is_erased():
    grey = np.full((NUM_FRAMES, 8, 8, 3), 90, dtype=np.uint8)
    clip_format = ClipFormat(crop_size=8, frames_per_clip=NUM_FRAMES)
    augmentation = UNCHANGED.with_values(erase_probability=0.25)
    clips = training([grey], augmentation, num_segments=1, clip_format=clip_format)
    plain = pixels_at(training([grey], num_segments=1, clip_format=clip_format), 0)
    erased = sum(not torch.equal(pixels_at(clips, position), plain) for position in range(400))
    assert 70 < erased < 130


def test_images_without_a_policy_keep_their_colours(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (50, 40), (200, 100, 50)).save(tmp_path / "a" / "1.png")
    augmentation = Augmentation(auto_augment=None, erase_probability=0.0)
    clips = TrainingClips(
        open_labelled(tmp_path, media="image"), protocol_of("image", augmentation=augmentation), FORMAT
    )
    colour = normalised(np.array([[[200, 100, 50]]], dtype=np.uint8))
    for position in range(5):
        torch.testing.assert_close(pixels_at(clips, position), colour.expand(1, 1, 3, SIZE, SIZE), atol=1e-5, rtol=0)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_images_are_mirrored_as_often_as_the_protocol_says(tmp_path, probability):
    (tmp_path / "a").mkdir()
    Image.fromarray(smooth_picture()).save(tmp_path / "a" / "1.png")
    augmentation = Augmentation(flip_probability=probability, auto_augment=None, erase_probability=0.0)
    protocol = protocol_of("image", augmentation=augmentation)
    clips = TrainingClips(open_labelled(tmp_path, media="image"), protocol, FORMAT)
    assert mirrored_clips(clips) == [probability == 1] * 30


def test_an_image_travels_as_one_frame(drawn_images):
    assert pixels_at(drawn_images, 2).shape == (1, 1, 3, SIZE, SIZE)


# --- what cannot be read ---


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("media", ["video", "image"])
def test_what_cannot_be_read_comes_as_zeros_and_is_logged(request, caplog, media, is_training):
    folder = request.getfixturevalue(f"{media}_folder")
    labelled = open_labelled(folder / "set.csv" if media == "video" else folder, media=media)
    place = next(place for place, name in enumerate(labelled.names) if "broken" in name)
    kind = TrainingClips if is_training else EvaluationClips
    clips = kind(labelled, find_protocol("plain" if media == "video" else "plain-image"), FORMAT)
    with caplog.at_level(logging.WARNING, logger="vjepa_hub.evaluation.clips"):
        item = clips[place]
    assert (item["is_readable"], item["label"], item["index"]) == (False, labelled.labels[place], place)
    assert item["pixel_values_videos"].shape == clips.shape == clips[0]["pixel_values_videos"].shape
    assert not item["pixel_values_videos"].any()
    assert labelled.names[place] in caplog.text


class ReaderAtRate(VideoContent):
    def __init__(self, fps):
        self.fps = fps

    @contextmanager
    def open(self, *, backend):
        reader = FramesInMemory(noise_video(50))
        reader.average_fps = self.fps
        yield reader


class SourceAtRates(ClipSource):
    has_labels = True

    def __init__(self, rates):
        self.rates = rates

    def __len__(self) -> int:
        return len(self.rates)

    def record(self, index: int) -> VideoRecord:
        return VideoRecord(f"video {index}", ReaderAtRate(self.rates[index]), 0)


def clips_at_rates(*rates):
    zeros = np.zeros(len(rates), dtype=np.int64)
    labelled = LabelledSet(
        source=VideoSource(SourceAtRates(rates)), indices=np.arange(len(rates)), labels=zeros, num_classes=1
    )
    return EvaluationClips(labelled, protocol_of(clip_duration=0.5), FORMAT)


def test_a_video_that_is_too_slow_for_the_duration_counts_as_unreadable():
    clips = clips_at_rates(30.0, 5.0)
    assert [clips[index]["is_readable"] for index in range(2)] == [True, False]


def test_videos_that_state_no_rate_stop_a_run_that_needs_one():
    with pytest.raises(ValueError, match=r"fps is None, but clip_duration needs"):
        clips_at_rates(None)[0]


# --- construction ---


@pytest.mark.parametrize("policy", ["bogus", "rand-q5", "rand-m9xx", "random", "original"])
def test_an_unknown_policy_for_videos_is_refused_at_once(policy):
    with pytest.raises(ValueError, match=f"auto_augment is '{policy}'"):
        training([noise_video()], UNCHANGED.with_values(auto_augment=policy))


@pytest.mark.parametrize("policy", ["bogus", "rand-q5", "rand-m9xx", "original-x5"])
def test_an_unknown_policy_for_images_is_refused_at_once(image_folder, policy):
    protocol = protocol_of("image", augmentation=UNCHANGED.with_values(auto_augment=policy))
    with pytest.raises(ValueError, match=f"auto_augment is '{policy}', which timm does not know"):
        TrainingClips(open_labelled(image_folder, media="image"), protocol, FORMAT)


def test_training_clips_without_augmentation_are_refused():
    with pytest.raises(ValueError, match="has no augmentation; take EvaluationClips"):
        training([noise_video()], None)


@pytest.mark.parametrize("kind", [TrainingClips, EvaluationClips])
def test_a_protocol_for_another_kind_of_media_is_refused(image_folder, kind):
    images, videos = open_labelled(image_folder, media="image"), labelled_set([noise_video()], [0])
    with pytest.raises(ValueError, match="the set holds images, but the protocol 'plain' is for videos"):
        kind(images, find_protocol("plain"), FORMAT)
    with pytest.raises(ValueError, match="the set holds videos, but the protocol 'in1k' is for images"):
        kind(videos, find_protocol("in1k"), FORMAT)


class KillsItsReader(VideoContent):
    """A video that ends the process which opens it."""

    @contextmanager
    def open(self, *, backend):
        os.kill(os.getpid(), signal.SIGKILL)
        yield


class KillingSource(SourceInMemory):
    def record(self, index: int) -> VideoRecord:
        return VideoRecord("bad.mp4", KillsItsReader(), 0) if index == 1 else super().record(index)


def test_killed_worker_is_named_with_its_video_and_the_setting_for_no_workers():
    source = VideoSource(KillingSource([noise_video()] * 3, np.zeros(3, dtype=np.int64)))
    labelled = replace(labelled_set([noise_video()] * 3, [0] * 3), source=source)
    clips = EvaluationClips(labelled, protocol_of(), FORMAT)
    with pytest.raises(KilledWorkerError, match=r"read bad\.mp4 .*num_workers=0"), naming_killed_workers([clips]):
        list(DataLoader(clips, batch_size=None, num_workers=1))


def test_other_errors_of_a_run_pass_as_they_are():
    with pytest.raises(RuntimeError, match="size mismatch"), naming_killed_workers([]):
        raise RuntimeError("size mismatch")
