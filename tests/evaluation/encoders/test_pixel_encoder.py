import pytest
import torch

from vjepa_hub.evaluation.encoders.opening import open_encoder
from vjepa_hub.model.modeling_vjepa import sincos_positions


def test_tokens_are_the_pixels_of_their_tubelet_beside_their_position():
    encoder = open_encoder("pixels:32", frames_per_clip=4)
    clips = torch.randn(2, 4, 3, 32, 32)
    tokens = encoder(clips)
    assert tokens.shape == (2, 2 * 4 * 4, 2 * 3 * 8 * 8 + 48)
    depth, row, column = 1, 2, 3
    found = tokens[1, (depth * 4 + row) * 4 + column]
    wanted = clips[1, 2:4, :, 16:24, 24:32]
    assert torch.equal(found[:384], wanted.reshape(-1))
    assert torch.equal(tokens[0, :, 384:], sincos_positions((2, 4, 4), 48)[0])


def test_its_width_can_be_shared_out_to_the_heads_of_a_probe():
    encoder = open_encoder("pixels:64")
    assert (encoder.crop_size, encoder.frames_per_clip) == (64, 8)
    assert encoder.hidden_size % encoder.num_attention_heads == 0
    assert not encoder.is_trained


def test_caches_of_other_grids_are_told_apart():
    fingerprints = {open_encoder("pixels:64", frames_per_clip=frames).fingerprint() for frames in (8, 16)}
    fingerprints |= {open_encoder("pixels:32", frames_per_clip=8).fingerprint()}
    assert len(fingerprints) == 3
    assert open_encoder("pixels:64", crop_size=32).fingerprint() in fingerprints


@pytest.mark.parametrize(
    ("spec", "sizes", "message"),
    [
        ("pixels:large", {}, "'pixels:large' names no size"),
        ("pixels:0", {}, "'pixels:0' names no size"),
        ("pixels:60", {}, "crop_size"),
        ("pixels:64", {"frames_per_clip": 3}, "frames_per_clip"),
        ("untrained:pixels:64", {}, "pixels have no weights"),
    ],
)
def test_what_makes_no_tokens_is_refused(spec, sizes, message):
    with pytest.raises(ValueError, match=message):
        open_encoder(spec, **sizes)


def test_clips_of_another_size_are_an_error():
    with pytest.raises(ValueError, match="have 64 tubelets, but pixels:32 was opened for 16"):
        open_encoder("pixels:32", frames_per_clip=2)(torch.zeros(1, 2, 3, 64, 64))
