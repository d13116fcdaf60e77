import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import REFERENCE
from vjepa_hub import VJEPAVideoProcessor

ONE_GREY_LEVEL = 0.02


@pytest.fixture(scope="module")
def case():
    return load_file(REFERENCE / "preprocessing.safetensors")


@pytest.fixture(scope="module")
def frames(case) -> np.ndarray:
    return case["frames_uint8"].numpy()


def _pixels(processor, videos, **options) -> torch.Tensor:
    return processor(videos, return_tensors="pt", **options)["pixel_values_videos"]


@pytest.mark.parametrize("crop", [72, 48])
def test_centre_crop_equals_the_release(case, frames, crop):
    pixels = _pixels(VJEPAVideoProcessor(crop_size=crop), frames)
    assert pixels.shape == (1, 4, 3, crop, crop)
    assert pixels.dtype == torch.float32
    assert (pixels[0].transpose(0, 1) - case[f"center_crop_{crop}"]).abs().max() < ONE_GREY_LEVEL


@pytest.mark.parametrize(("name", "crop"), [("three_views_72", 72), ("tall_three_views_48", 48)])
def test_three_views_equal_the_release(case, frames, name, crop):
    clip = frames.transpose(0, 2, 1, 3) if name.startswith("tall") else frames
    pixels = _pixels(VJEPAVideoProcessor(crop_size=crop, num_spatial_views=3), [clip, clip])
    assert pixels.shape == (6, 4, 3, crop, crop)
    for row in range(6):  # the views of one clip follow each other
        assert (pixels[row].transpose(0, 1) - case[f"{name}.{row % 3}"]).abs().max() < ONE_GREY_LEVEL


def _as_pil(frames: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in frames]


@pytest.mark.parametrize(
    "make",
    [
        lambda f: f,
        torch.from_numpy,
        _as_pil,
        lambda f: f.transpose(0, 3, 1, 2),
        lambda f: [f],
        lambda f: f[None],
        lambda f: torch.from_numpy(f)[None],
        lambda f: [torch.from_numpy(f).permute(0, 3, 1, 2)],
        lambda f: [_as_pil(f)],
    ],
    ids=["numpy", "torch", "pil", "channels-first", "list", "5-D", "5-D torch", "list of torch", "list of pil"],
)
def test_every_form_of_a_clip_gives_the_same_tensor(frames, make):
    processor = VJEPAVideoProcessor(crop_size=48)
    assert torch.equal(_pixels(processor, make(frames)), _pixels(processor, frames))


def test_a_batch_is_its_clips_one_by_one(frames):
    processor = VJEPAVideoProcessor(crop_size=48)
    other = frames[:, ::-1].copy()
    for batch in ([frames, other], np.stack([frames, other]), [_as_pil(frames), _as_pil(other)]):
        pixels = _pixels(processor, batch)
        assert torch.equal(pixels[:1], _pixels(processor, frames))
        assert torch.equal(pixels[1:], _pixels(processor, other))


def test_clips_of_other_sizes_share_a_batch(frames):
    processor = VJEPAVideoProcessor(crop_size=48)
    tall = frames.transpose(0, 2, 1, 3).copy()
    pixels = _pixels(processor, [frames, tall])
    assert torch.equal(pixels[1:], _pixels(processor, tall))


@pytest.mark.parametrize("make", [lambda f: f[0], lambda f: Image.fromarray(f[0]), lambda f: f[:1]])
def test_one_image_is_a_clip_of_one_frame(frames, make):
    processor = VJEPAVideoProcessor(crop_size=48)
    assert torch.equal(_pixels(processor, make(frames)), _pixels(processor, frames)[:, :1])


def test_crop_size_brings_its_size_and_an_explicit_size_wins(frames, tmp_path):
    assert VJEPAVideoProcessor().size["shortest_edge"] == 256
    assert VJEPAVideoProcessor(crop_size=384).size["shortest_edge"] == 438
    assert VJEPAVideoProcessor(crop_size=48, size={"shortest_edge": 96}).size["shortest_edge"] == 96
    VJEPAVideoProcessor(crop_size=48).save_pretrained(tmp_path)
    assert VJEPAVideoProcessor.from_pretrained(tmp_path).size["shortest_edge"] == 54
    assert VJEPAVideoProcessor.from_pretrained(tmp_path, crop_size=96).size["shortest_edge"] == 109
    at_call = _pixels(VJEPAVideoProcessor(crop_size=96), frames, crop_size=48)
    assert torch.equal(at_call, _pixels(VJEPAVideoProcessor(crop_size=48), frames))


def test_saved_processor_computes_the_same(frames, tmp_path):
    processor = VJEPAVideoProcessor(crop_size=48, num_spatial_views=3)
    processor.save_pretrained(tmp_path)
    loaded = VJEPAVideoProcessor.from_pretrained(tmp_path)
    assert torch.equal(_pixels(loaded, frames), _pixels(processor, frames))


def test_options_that_cannot_be_meant_raise(frames):
    with pytest.raises(TypeError, match="crop_sise"):
        VJEPAVideoProcessor(crop_sise=48)
    with pytest.raises(TypeError, match=r"no option 'crop_sise'.*'crop_size'"):
        VJEPAVideoProcessor()(frames, crop_sise=48)
    with pytest.raises(ValueError, match="num_spatial_views is 2"):
        VJEPAVideoProcessor(num_spatial_views=2)
    with pytest.raises(ValueError, match="square"):
        VJEPAVideoProcessor(crop_size={"height": 48, "width": 64})
