import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from vjepa_hub.data.clip_sampling import plan_windows
from vjepa_hub.data.video import open_video
from vjepa_hub.features import extraction
from vjepa_hub.features.extraction import (
    ExtractionSettings,
    FeatureExtractionError,
    FeatureFileWriter,
    VideoFeatures,
    clip_pixels,
    describe_model,
    encode_clips,
    extract_features,
    extract_features_to_file,
    load_features,
    open_frames,
    save_features,
)
from vjepa_hub.features.pictures import draw_video_picture
from vjepa_hub.hub.loading import OpenedModel
from vjepa_hub.hub.quantization import quantize_int8
from vjepa_hub.model import VJEPAConfig, VJEPAModel, VJEPAVideoProcessor

FPS = 10


def write_video(path: Path, frames: np.ndarray, fps: int = FPS) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *frames.shape[1:3], "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def moving_gradient(num_frames: int, height: int = 64, width: int = 80) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    frames = [
        np.stack([rows * 3, columns * 2 + 3 * step, rows + columns], axis=-1) % 256 for step in range(num_frames)
    ]
    return np.stack(frames).astype(np.uint8)


def open_tiny(dtype: torch.dtype = torch.float32) -> OpenedModel:
    torch.manual_seed(0)
    config = VJEPAConfig(
        crop_size=32,
        patch_size=16,
        frames_per_clip=4,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        pred_hidden_size=12,
        pred_num_hidden_layers=1,
        pred_num_attention_heads=2,
    )
    model = VJEPAModel(config).to(dtype).eval()
    return OpenedModel("tiny", model, VJEPAVideoProcessor(crop_size=32), "untrained, seed 0", False)


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    return open_tiny()


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "gradient.mp4", moving_gradient(43))


class BrokenModel(nn.Module):
    """Features that half precision cannot hold."""

    def __init__(self, model: VJEPAModel, factor: float):
        super().__init__()
        self.model, self.factor, self.config = model, factor, model.config

    def get_vision_features(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        return self.model.get_vision_features(pixel_values_videos) * self.factor


def open_broken(factor: float) -> OpenedModel:
    tiny = open_tiny()
    return OpenedModel(tiny.name, BrokenModel(tiny.model, factor), tiny.processor, tiny.weights, tiny.is_trained)


def test_clips_are_the_planned_windows_with_the_times_of_their_frames(opened, video):
    features = extract_features(video, opened, ExtractionSettings(window=12, stride=7))
    planned = np.stack(plan_windows(43, frames_per_clip=4, window=12, stride=7))
    assert torch.equal(features.frame_indices, torch.from_numpy(planned))
    torch.testing.assert_close(features.timestamps, features.frame_indices.double() / FPS, atol=1e-3, rtol=0)


def test_window_defaults_to_four_frames_for_each_frame_of_the_clip_and_stride_to_the_window(opened, video):
    features = extract_features(video, opened, ExtractionSettings())
    assert features.frame_indices[:, 0].tolist() == [0, 16, 27]
    assert (features.metadata["window"], features.metadata["stride"]) == ("16", "16")


def test_dense_features_are_the_encoder_tokens_in_raster_order(opened, video):
    features = extract_features(video, opened, ExtractionSettings(window=12))
    with open_video(video) as frames:
        clips = [frames.read_frames(indices.numpy()) for indices in features.frame_indices]
    pixels = opened.processor(clips, return_tensors="pt")["pixel_values_videos"]
    with torch.no_grad():
        tokens = opened.model.get_vision_features(pixels)
    assert features.dense.shape == (len(clips), 2, 2, 2, 24)
    torch.testing.assert_close(features.dense.reshape(tokens.shape), tokens, atol=1e-5, rtol=1e-5)


def test_pooled_features_are_the_mean_over_tokens(opened, video):
    features = extract_features(video, opened, ExtractionSettings(window=12))
    torch.testing.assert_close(features.pooled, features.dense.flatten(1, 3).mean(1))


@pytest.mark.parametrize("clips_per_pass", [2, 3, 100])
def test_clips_per_pass_never_changes_features(opened, video, clips_per_pass):
    one = extract_features(video, opened, ExtractionSettings(window=8))
    many = extract_features(video, opened, ExtractionSettings(window=8, clips_per_pass=clips_per_pass))
    torch.testing.assert_close(many.dense, one.dense, atol=1e-5, rtol=1e-5)
    assert torch.equal(many.timestamps, one.timestamps)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5])
def test_video_shorter_than_a_clip_gives_one_clip(opened, tmp_path, num_frames):
    short = write_video(tmp_path / "short.mp4", moving_gradient(num_frames))
    features = extract_features(short, opened, ExtractionSettings())
    assert features.dense.shape == (1, 2, 2, 2, 24)
    assert features.frame_indices.max() == num_frames - 1


def test_image_file_is_a_video_of_one_frame(opened, tmp_path):
    picture = moving_gradient(1)[0]
    Image.fromarray(picture).save(tmp_path / "picture.png")
    features = extract_features(tmp_path / "picture.png", opened, ExtractionSettings())
    expected = encode_clips([np.repeat(picture[None], 4, axis=0)], opened)
    torch.testing.assert_close(features.dense, expected)
    assert features.timestamps.tolist() == [[0.0] * 4]


def open_family(config: VJEPAConfig) -> OpenedModel:
    torch.manual_seed(0)
    processor = VJEPAVideoProcessor(crop_size=32, num_frames=4)
    return OpenedModel("small", VJEPAModel(config).eval(), processor, "untrained, seed 0", False)


def test_image_goes_through_the_image_tokenizer_where_there_is_one(family_config, tmp_path):
    Image.fromarray(moving_gradient(1)[0]).save(tmp_path / "picture.png")
    family = open_family(family_config)
    settings = ExtractionSettings(levels=True)
    features = extract_features_to_file(tmp_path / "picture.png", tmp_path / "picture.safetensors", family, settings)
    depth, num_frames = (1, 1) if family_config.image_tokenizer else (2, 4)
    assert features.dense.shape == (1, depth, 4, 4, 48)
    assert features.levels.shape == (1, family_config.num_feature_levels, depth, 4, 4, 48)
    assert features.frame_indices.tolist() == [[0] * num_frames]
    (picture,) = draw_video_picture(tmp_path / "picture.png", tmp_path / "picture.safetensors", family)
    assert picture == tmp_path / "picture.png"


def test_levels_are_those_of_the_model_and_the_last_are_the_dense_features(family_config, video, tmp_path):
    family = open_family(family_config)
    settings = ExtractionSettings(window=12, levels=True)
    features = extract_features_to_file(video, tmp_path / "f.safetensors", family, settings)
    with open_video(video) as reader:
        clip = reader.read_frames(features.frame_indices[1].numpy())
    with torch.no_grad():
        output = family.model(clip_pixels([clip], family), output_feature_levels=True)
    assert features.levels.shape[1] == len(output.feature_levels)
    for number, level in enumerate(output.feature_levels):
        torch.testing.assert_close(features.levels[1, number].flatten(0, 2), level[0])
    assert torch.equal(features.dense, features.levels[:, -1])
    assert torch.equal(extract_features(video, family, settings).levels, features.levels)
    assert extract_features(video, family, ExtractionSettings(window=12)).levels is None


def test_settings_that_weights_do_not_tell_change_the_description(family_config):
    opened = open_family(family_config)
    changed = {**family_config.to_diff_dict(), "position_embedding": "rotary", "rotary_reference_grid": 7}
    other = open_family(VJEPAConfig(**changed))
    assert describe_model(opened)["encoder_details"] != describe_model(other)["encoder_details"]


def assert_identical(first: VideoFeatures, second: VideoFeatures) -> None:
    assert first.metadata == second.metadata
    assert first.tensors().keys() == second.tensors().keys()
    for name, tensor in first.tensors().items():
        assert tensor.dtype == second.tensors()[name].dtype
        assert torch.equal(tensor, second.tensors()[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("pooled", "dense"), [(True, True), (True, False), (False, True)])
def test_saved_features_come_back_bit_by_bit(tmp_path, dtype, pooled, dense):
    features = VideoFeatures(
        pooled=torch.randn(3, 5) if pooled else None,
        dense=torch.randn(3, 1, 2, 1, 5).to(dtype) if dense else None,
        frame_indices=torch.arange(6).reshape(3, 2),
        timestamps=torch.rand(3, 2, dtype=torch.float64),
        metadata={"format": extraction.FORMAT, "file": "straße 街.mp4"},
    )
    save_features(features, tmp_path / "features.safetensors")
    assert_identical(load_features(tmp_path / "features.safetensors"), features)
    assert [path.name for path in tmp_path.iterdir()] == ["features.safetensors"]


@pytest.mark.parametrize("settings", [ExtractionSettings(window=12), ExtractionSettings(window=12, clips_per_pass=3)])
def test_streamed_file_equals_features_in_memory(opened, video, tmp_path, settings):
    output = tmp_path / "features.safetensors"
    streamed = extract_features_to_file(video, output, opened, settings)
    assert_identical(streamed, extract_features(video, opened, settings))
    assert torch.equal(load_file(output)["dense"], streamed.dense)


def test_same_run_writes_the_same_bytes(opened, video, tmp_path):
    for name in ("first", "second"):
        extract_features_to_file(video, tmp_path / name, opened, ExtractionSettings())
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_dense_features_have_the_dtype_of_the_model_or_half_precision(video):
    opened = open_tiny(torch.bfloat16)
    assert extract_features(video, opened, ExtractionSettings()).dense.dtype == torch.bfloat16
    half = extract_features(video, opened, ExtractionSettings(dense_dtype="float16"))
    assert (half.dense.dtype, half.pooled.dtype) == (torch.float16, torch.float32)
    assert half.metadata["dtype"] == "bfloat16"


def test_interrupted_extraction_leaves_the_earlier_file_alone(opened, video, tmp_path):
    output = tmp_path / "features.safetensors"
    output.write_bytes(b"earlier")

    def interrupt(what: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features_to_file(video, output, opened, ExtractionSettings(window=8), progress=interrupt)
    assert output.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [output]


def test_file_says_which_model_weights_and_settings_made_it(opened, video, tmp_path):
    metadata = extract_features_to_file(video, tmp_path / "f", opened, ExtractionSettings(window=20)).metadata
    assert metadata["model"] == "tiny"
    assert metadata["weights"] == "untrained, seed 0"
    assert metadata["is_trained"] == "false"
    assert metadata["file"] == "gradient.mp4"
    assert (metadata["window"], metadata["patch_size"], metadata["tubelet_size"]) == ("20", "16", "2")
    assert (metadata["crop"], float(metadata["fps"])) == ("32x32", FPS)
    preprocessing = json.loads(metadata["preprocessing"])
    assert preprocessing["size"] == {"shortest_edge": 36}
    assert preprocessing["crop_size"] == {"height": 32, "width": 32}


def test_digest_tells_weights_apart_and_nothing_else():
    first, again = open_tiny(), open_tiny()
    assert describe_model(first) == describe_model(again)
    with torch.no_grad():
        next(iter(again.model.predictor.parameters())).add_(1)
    assert describe_model(first) == describe_model(again)
    with torch.no_grad():
        next(iter(again.model.encoder.parameters())).view(-1)[-1] += 1e-6
    assert describe_model(first)["encoder_sha256"] != describe_model(again)["encoder_sha256"]


@pytest.mark.skipif(torch.backends.quantized.engine == "none", reason="no int8 kernels here")
def test_features_of_a_quantised_model_say_that_they_are_others(video, tmp_path):
    quantised = open_tiny()
    whole = describe_model(quantised)
    quantize_int8(quantised.model)
    features = extract_features_to_file(video, tmp_path / "f", quantised, ExtractionSettings())
    assert features.metadata["encoder_sha256"] == describe_model(quantised)["encoder_sha256"]
    assert features.metadata["encoder_sha256"] != whole["encoder_sha256"]


def test_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"pooled": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="format 'none'"):
        load_features(tmp_path / "other.safetensors")


def test_progress_counts_every_clip_once(opened, video):
    seen = []
    extract_features(
        video,
        opened,
        ExtractionSettings(window=8, clips_per_pass=4),
        progress=lambda *shown: seen.append(shown),
    )
    assert seen == [(video.name, done, 6) for done in (0, 4, 6)]


def test_no_more_than_one_clip_is_decoded_at_once(opened, video, monkeypatch):
    reads = []

    class CountingVideo:
        def __init__(self, *arguments):
            self.video = open_frames(*arguments)

        def __enter__(self):
            self.opened = self.video.__enter__()
            return self

        def __exit__(self, *error):
            return self.video.__exit__(*error)

        def __getattr__(self, name):
            return getattr(self.opened, name)

        def read_frames(self, indices):
            reads.append(len(indices))
            return self.opened.read_frames(indices)

    monkeypatch.setattr(extraction, "open_frames", CountingVideo)
    extract_features(video, opened, ExtractionSettings(window=8))
    assert reads == [4] * 6


def test_features_that_are_not_finite_are_an_error(video):
    with pytest.raises(FeatureExtractionError, match="not finite in float32"):
        extract_features(video, open_broken(float("nan")), ExtractionSettings())


def test_features_beyond_half_precision_are_an_error_where_they_are_stored_so(video):
    extract_features(video, open_broken(1e6), ExtractionSettings())
    with pytest.raises(FeatureExtractionError, match="not finite in float16"):
        extract_features(video, open_broken(1e6), ExtractionSettings(dense_dtype="float16"))


def test_processor_with_several_views_is_refused(opened, video):
    views = VJEPAVideoProcessor(crop_size=32, num_spatial_views=3)
    with pytest.raises(ValueError, match="num_spatial_views"):
        extract_features(video, OpenedModel("tiny", opened.model, views, "", False), ExtractionSettings())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride is 0"),
        ({"pooled": False, "dense": False}, "all off"),
        ({"backend": "decorb"}, "'decorb' cannot be used"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ExtractionSettings(**options)


def test_writer_never_takes_rows_that_do_not_fit(tmp_path):
    writer = FeatureFileWriter(tmp_path / "f", {"x": (torch.float32, (3, 2))}, {})
    with writer:
        writer.write_rows("x", 0, torch.zeros(3, 2))
        for rows, first in [(torch.zeros(2, 2), 2), (torch.zeros(1, 3), 0), (torch.zeros(1, 2).half(), 0)]:
            with pytest.raises(ValueError, match="do not fit 'x'"):
                writer.write_rows("x", first, rows)
