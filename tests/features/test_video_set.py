import json
import os
import resource
import signal
import sys
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.features.test_extraction import BrokenModel, moving_gradient, open_tiny, write_video
from tests.forked import call_in_process
from tests.other_run import HOST, at_work_in
from vjepa_hub.core.distributed import Processes
from vjepa_hub.core.folder_lock import LOCK_FILE, FolderInUseError
from vjepa_hub.core.run_files import RUN_FILE
from vjepa_hub.features.extraction import ExtractionSettings, load_features
from vjepa_hub.features.pictures import draw_video_picture
from vjepa_hub.features.video_list import find_videos
from vjepa_hub.features.video_set import OutputMismatchError, extract_video_set, extraction_cost
from vjepa_hub.hub.loading import OpenedModel
from vjepa_hub.model import VJEPAVideoProcessor

SETTINGS = ExtractionSettings(window=8)


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    return open_tiny()


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "videos"
    for number, name in enumerate(["a/x.mp4", "a/y.mp4", "b/x.mp4"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, moving_gradient(16 + 8 * number))
    return folder


def run(videos: Path, output: Path, opened: OpenedModel, settings: ExtractionSettings = SETTINGS, **options):
    return extract_video_set(find_videos([videos]), output, opened, settings, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Contents by path, but for the record of the run, which tells its times."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RUN_FILE]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def times(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*.*") if path.is_file() and path.name != RUN_FILE]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def test_cost_counts_the_clips_that_are_encoded(videos, tmp_path, opened):
    reports = run(videos, tmp_path / "out", opened)
    (videos / "a" / "broken.mp4").write_bytes(b"no video")
    cost = extraction_cost(find_videos([videos]), opened, SETTINGS)
    mean = sum(report.num_clips for report in reports) / len(reports)
    assert cost.num_clips == round(4 * mean)
    config = opened.model.config
    assert cost.num_tokens == config.frames_per_clip // config.tubelet_size * (config.crop_size // 16) ** 2


def draw_pictures(opened: OpenedModel):
    return lambda video, features: draw_video_picture(video, features, opened)


def test_tar_gives_the_features_of_its_files_and_frame_folders_are_read(opened, videos, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(videos, ".")
    for number, frame in enumerate(moving_gradient(8)):
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / "frames" / f"{number}.png")
    sources = find_videos([tmp_path / "shard.tar", tmp_path / "frames"])
    options = {"after_each": draw_pictures(opened)}
    reports = extract_video_set(sources, tmp_path / "out", opened, SETTINGS, **options)
    assert [report.error for report in reports] == [None] * 4
    run(videos, tmp_path / "expected", opened)
    for name in ("a/x", "a/y", "b/x"):
        found = load_features(tmp_path / "out" / "shard.tar" / f"{name}.safetensors")
        assert torch.equal(found.dense, load_features(tmp_path / "expected" / f"{name}.safetensors").dense)
    again = extract_video_set(sources, tmp_path / "out", opened, SETTINGS, **options)
    assert [report.is_done_before for report in again] == [True] * 4


def test_outputs_mirror_the_folder_and_reports_come_in_its_order(opened, videos, tmp_path):
    reports = run(videos, tmp_path / "out", opened)
    assert list(contents(tmp_path / "out")) == ["a/x.safetensors", "a/y.safetensors", "b/x.safetensors"]
    assert [report.outputs for report in reports] == [
        (tmp_path / "out" / name,) for name in contents(tmp_path / "out")
    ]
    assert [report.num_clips for report in reports] == [2, 3, 4]


def test_folder_of_another_run_at_work_is_left_alone(opened, videos, tmp_path):
    with at_work_in(tmp_path / "out"), pytest.raises(FolderInUseError, match=HOST):
        run(videos, tmp_path / "out", opened)


def test_second_run_writes_nothing_and_counts_what_was_done_before(opened, videos, tmp_path):
    first = run(videos, tmp_path / "out", opened, after_each=draw_pictures(opened))
    before = times(tmp_path / "out")
    second = run(videos, tmp_path / "out", opened, after_each=draw_pictures(opened))
    assert times(tmp_path / "out") == before
    assert [(report.is_done_before, report.outputs) for report in second] == [(True, ())] * 3
    assert [report.num_clips for report in second] == [report.num_clips for report in first]
    assert not any(report.is_done_before for report in first)


def other_weights(opened: OpenedModel) -> OpenedModel:
    other = open_tiny()
    with torch.no_grad():
        next(iter(other.model.encoder.parameters())).add_(1e-3)
    return other


def other_crop(opened: OpenedModel) -> OpenedModel:
    return OpenedModel("tiny", opened.model, VJEPAVideoProcessor(crop_size=48), opened.weights, False)


@pytest.mark.parametrize(
    ("options", "change_model", "message"),
    [
        ({"window": 12}, None, "window is 8 there and 12 now; stride is 8 there and 12 now"),
        ({"window": 8, "stride": 4}, None, r"\(stride is 8 there and 4 now\)"),
        ({"window": 8, "dense": False}, None, "dense is model there and false now"),
        ({"window": 8, "dense_dtype": "float16"}, None, "dense is model there and float16 now"),
        ({"window": 8}, other_weights, "encoder_sha256 is .* there"),
        ({"window": 8}, other_crop, "preprocessing is .* there"),
        ({"window": 8}, lambda _: open_tiny(torch.bfloat16), "dtype is float32 there and bfloat16 now"),
    ],
)
def test_outputs_made_in_another_way_are_never_replaced_unasked(
    opened, videos, tmp_path, options, change_model, message
):
    run(videos / "a", tmp_path / "out", opened)
    before, changed = contents(tmp_path / "out"), change_model(opened) if change_model else opened
    settings = ExtractionSettings(**options)
    with pytest.raises(OutputMismatchError, match=f"^2 of 2 outputs .*{message}.*--overwrite"):
        run(videos / "a", tmp_path / "out", changed, settings)
    assert contents(tmp_path / "out") == before
    reports = run(videos / "a", tmp_path / "out", changed, settings, overwrite=True)
    assert not any(report.is_done_before for report in reports)
    run(videos / "a", tmp_path / "fresh", changed, settings)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_overwriting_keeps_what_already_fits(opened, videos, tmp_path):
    run(videos / "a", tmp_path / "out", opened)
    before = times(tmp_path / "out")
    assert all(report.is_done_before for report in run(videos / "a", tmp_path / "out", opened, overwrite=True))
    assert times(tmp_path / "out") == before


@pytest.mark.parametrize("settings", [ExtractionSettings(window=8, clips_per_pass=2, backend="pyav")])
def test_clips_per_pass_decoder_and_name_of_the_model_never_make_features_anew(opened, videos, tmp_path, settings):
    run(videos, tmp_path / "out", opened)
    renamed = OpenedModel("./tiny", opened.model, opened.processor, "from elsewhere", opened.is_trained)
    assert all(report.is_done_before for report in run(videos, tmp_path / "out", renamed, settings))


def test_features_of_a_video_that_has_changed_are_not_taken_for_done(opened, videos, tmp_path):
    run(videos, tmp_path / "out", opened)
    write_video(videos / "b" / "x.mp4", moving_gradient(11))
    with pytest.raises(OutputMismatchError, match=r"^1 of 3 .*source_bytes is "):
        run(videos, tmp_path / "out", opened)
    reports = run(videos, tmp_path / "out", opened, overwrite=True)
    assert [report.is_done_before for report in reports] == [True, True, False]


@pytest.mark.parametrize("kept", [slice(-1), slice(100), slice(0), slice(8, None)], ids=str)
def test_output_that_is_not_whole_is_made_again(opened, videos, tmp_path, kept):
    run(videos, tmp_path / "out", opened)
    whole, broken = contents(tmp_path / "out"), tmp_path / "out" / "a" / "x.safetensors"
    broken.write_bytes(broken.read_bytes()[kept])
    reports = run(videos, tmp_path / "out", opened)
    assert [report.is_done_before for report in reports] == [False, True, True]
    assert contents(tmp_path / "out") == whole


def test_pictures_that_are_missing_or_broken_are_drawn_again(opened, videos, tmp_path):
    run(videos / "a", tmp_path / "out", opened, after_each=draw_pictures(opened))
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "x.png").unlink()
    (tmp_path / "out" / "y.png").write_bytes(b"")
    reports = run(videos / "a", tmp_path / "out", opened, after_each=draw_pictures(opened))
    assert [path.name for report in reports for path in report.outputs] == ["x.png", "y.png"]
    assert contents(tmp_path / "out") == whole


def run_until(moment: str, videos: Path, output: Path) -> None:
    """A run that is killed before it gives an output its name."""
    rename, opened = os.replace, open_tiny()

    def rename_or_die(source, target):
        if Path(target).match(moment):
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = rename_or_die
    run(videos, output, opened, after_each=draw_pictures(opened))


@pytest.mark.parametrize("moment", ["a/y.png", "b/x.safetensors"])
def test_killed_run_that_starts_again_equals_an_uninterrupted_one(opened, videos, tmp_path, moment):
    run(videos, tmp_path / "whole", opened, after_each=draw_pictures(opened))
    output = tmp_path / "out"
    assert call_in_process(run_until, moment, videos, output) == -signal.SIGKILL
    killed, before = contents(output), times(output)
    whole = contents(tmp_path / "whole")
    finished = [name for name in killed if ".partial/" not in name and name != LOCK_FILE]
    assert len(finished) == len(killed) - 2  # a half, and the lock of the killed process
    assert {name: killed[name] for name in finished} == {name: whole[name] for name in finished}
    assert 0 < len(finished) < len(whole)
    run(videos, output, opened, after_each=draw_pictures(opened))
    assert contents(output) == whole
    assert {name: times(output)[name] for name in finished} == {name: before[name] for name in finished}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["x.safetensors", "x.png", "failed.jsonl"])
def test_files_that_others_have_written_are_never_replaced(opened, videos, tmp_path, name, overwrite):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=rf"{name}' would be replaced, but vjepa_hub did not write it; move it"):
        run(videos / "a", tmp_path / "out", opened, after_each=draw_pictures(opened), overwrite=overwrite)
    assert contents(tmp_path / "out") == {name: b"mine"}


def test_picture_is_never_replaced_by_its_own_feature_maps(opened, tmp_path):
    image = Image.fromarray(moving_gradient(1)[0])
    image.save(tmp_path / "photo.png")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"photo\.png' would be replaced, but is read by the same command"):
        run(tmp_path / "photo.png", tmp_path, opened, after_each=draw_pictures(opened))
    assert contents(tmp_path) == before
    (report,) = run(tmp_path / "photo.png", tmp_path, opened)  # without pictures nothing is in the way
    assert report.error is None


def test_bad_files_are_reported_with_their_cause_and_the_others_go_on(opened, videos, tmp_path):
    bad, absent = tmp_path / "bad.mp4", tmp_path / "absent.mp4"
    bad.write_bytes(b"this is no video" * 100)
    good = videos / "b" / "x.mp4"
    reports = extract_video_set([bad, absent, tmp_path, good], tmp_path / "out", opened, SETTINGS)
    assert [report.error is None for report in reports] == [False, False, False, True]
    assert all(str(report.source) in report.error for report in reports[:3])
    assert list(contents(tmp_path / "out")) == ["failed.jsonl", "x.safetensors"]


def test_addresses_in_a_manifest_are_read_as_such_and_listed_so_that_they_can_be_tried_again(opened, videos, tmp_path):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.pipe("/set/x.mp4", (videos / "a" / "x.mp4").read_bytes())
    (tmp_path / "list.txt").write_text("memory://set/x.mp4\nmemory://set/absent.mp4\n")
    reports = run(tmp_path / "list.txt", tmp_path / "out", opened)
    assert [report.error is None for report in reports] == [True, False]
    assert list(failures(tmp_path / "out")) == ["memory://set/absent.mp4"]
    memory.pipe("/set/absent.mp4", (videos / "a" / "y.mp4").read_bytes())
    (report,) = run(tmp_path / "out" / "failed.jsonl", tmp_path / "again", opened)
    assert report.error is None


def failures(output: Path) -> dict[str, str]:
    lines = map(json.loads, (output / "failed.jsonl").read_text().splitlines())
    return {line["video"]: line["error"] for line in lines}


def test_failed_videos_are_listed_until_a_later_run_succeeds(opened, videos, tmp_path):
    bad, other = videos / "a" / "bad.mp4", tmp_path / "other.mp4"
    bad.write_bytes(b"no video" * 100)
    other.write_bytes(b"no video" * 100)
    reports = run(videos, tmp_path / "out", opened)
    assert failures(tmp_path / "out") == {str(bad): reports[0].error}
    extract_video_set([other], tmp_path / "out", opened, SETTINGS)
    assert list(failures(tmp_path / "out")) == [str(bad), str(other)]
    write_video(bad, moving_gradient(9))
    assert [report.is_done_before for report in run(videos, tmp_path / "out", opened)] == [False, True, True, True]
    assert list(failures(tmp_path / "out")) == [str(other)]
    write_video(other, moving_gradient(9))
    extract_video_set([other], tmp_path / "out", opened, SETTINGS)
    assert not (tmp_path / "out" / "failed.jsonl").exists()


def test_failing_model_stops_the_run(opened, videos, tmp_path):
    class Failing(BrokenModel):
        def get_vision_features(self, pixel_values_videos):
            raise RuntimeError("out of memory")

    failing = OpenedModel("tiny", Failing(opened.model, 1.0), opened.processor, "", False)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(videos, tmp_path / "out", failing)


def test_window_shorter_than_a_clip_is_refused_before_any_output(opened, videos, tmp_path):
    with pytest.raises(ValueError, match="window is 3 frames, but a clip of this model has 4"):
        run(videos, tmp_path / "out", opened, ExtractionSettings(window=3))
    assert not (tmp_path / "out").exists()


class OneOfThree(Processes):
    """A process whose companions have gathered nothing."""

    def from_first(self, make):
        return make()

    def gather(self, items):
        return list(items)


def test_processes_share_the_videos_out_and_write_what_one_would(opened, videos, tmp_path):
    run(videos, tmp_path / "one", opened)
    shared = [run(videos, tmp_path / "three", opened, processes=OneOfThree(rank, 3, rank)) for rank in (2, 1, 0)]
    assert contents(tmp_path / "three") == contents(tmp_path / "one")
    assert [len([each for each in reports if not each.is_done_before]) for reports in shared] == [1, 1, 1]


def write_long_video(path: Path, seconds: int) -> Path:
    """5 frames a second, of 320 x 240: 1.2 MB of pixels in a second."""
    rows, columns = np.mgrid[:240, :320]
    ground = np.stack([rows, columns, rows + columns], axis=-1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 240, 320, "yuv420p", 50
        for step in range(5 * seconds):
            frame = ((ground + step) % 256).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_peaks(output: Path, videos: list[Path]) -> None:
    """Number of clips of each video, and the highest memory of this process so far in megabytes."""
    opened, peaks, unit = open_tiny(), {}, 1 if sys.platform == "darwin" else 1024
    for video in videos:
        (report,) = extract_video_set([video], output, opened, ExtractionSettings(window=4))
        peaks[report.num_clips] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    (output / "peaks.json").write_text(json.dumps(list(peaks.items())))


def peak_megabytes(output: Path, videos: list[Path]) -> dict[int, float]:
    assert call_in_process(write_peaks, output, videos) == 0
    return dict(json.loads((output / "peaks.json").read_text()))


def test_memory_never_grows_with_the_length_of_the_video(tmp_path):
    videos = [write_long_video(tmp_path / f"{seconds}.mp4", seconds) for seconds in (8, 120)]
    peaks = peak_megabytes(tmp_path / "out", videos)
    assert list(peaks) == [10, 150]
    assert peaks[150] - peaks[10] < 60  # the pixels of the longer one are 138 MB


@pytest.mark.slow
def test_memory_never_grows_on_an_hour_of_video(tmp_path):
    videos = [write_long_video(tmp_path / f"{seconds}.mp4", seconds) for seconds in (200, 3600)]
    peaks = peak_megabytes(tmp_path / "out", videos)
    assert list(peaks) == [250, 4500]
    assert peaks[4500] - peaks[250] < 60  # the pixels of the longer one are 4.1 GB
