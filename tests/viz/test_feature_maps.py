import numpy as np
import pytest
import torch

from tests.viz.test_image_grid import pixels_of
from vjepa_hub.viz.feature_maps import FRAME_SIDE, FeatureColours, draw_feature_maps
from vjepa_hub.viz.image_grid import GAP, LABEL, MARGIN


def test_components_are_those_of_a_singular_value_decomposition():
    features = torch.randn(3, 40, 7) * torch.arange(1, 8) + 3
    tokens = features.flatten(0, 1).double()
    _, singular, rows = torch.linalg.svd(tokens - tokens.mean(0), full_matrices=False)
    colours = FeatureColours.fit(features)
    torch.testing.assert_close((colours.components @ rows[:3].T).abs(), torch.eye(3, dtype=torch.float64))
    assert colours.explained_variance == pytest.approx(float((singular[:3] ** 2).sum() / (singular**2).sum()))


def test_sign_of_components_never_depends_on_order_or_sign():
    features = torch.randn(4, 18, 6)
    components = FeatureColours.fit(features).components
    torch.testing.assert_close(FeatureColours.fit(features.flip(0)).components, components)
    torch.testing.assert_close(FeatureColours.fit(-features).components, components)


def test_colours_fill_the_range_and_ignore_outliers():
    features = torch.randn(2, 256, 5)
    features[0, 0] = 1000.0
    colours = FeatureColours.fit(features)(features)
    assert colours.shape == (2, 256, 3)
    assert (colours.min(), colours.max()) == (0, 1)
    assert colours[..., 1].std() > 0.2


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_features_that_only_vary_by_rounding_are_an_even_grey(noise):
    features = torch.full((2, 18, 4), 5.0) + noise * torch.randn(2, 18, 4)
    assert (FeatureColours.fit(features)(features) == 0.5).all()
    position = torch.randn(18, 4)
    moved = features + position
    assert (FeatureColours.fit(moved, position)(moved - position) == 0.5).all()


def test_one_token_among_thousands_is_seen_on_a_blank_ground():
    features = torch.zeros(1, 3200, 4)
    features[0, 1234, 0] = 1.0
    colours = FeatureColours.fit(features)(features)[0, :, 0]
    assert colours.argmax() == 1234
    assert colours.sum() == 1


def test_features_of_one_number_have_a_colour():
    colours = FeatureColours.fit(torch.arange(10.0).view(1, 10, 1))
    assert colours(torch.tensor([9.0]))[0] == 1
    assert colours.explained_variance == pytest.approx(1)


def drawn_rows(colours: np.ndarray, *, is_smooth: bool) -> list[np.ndarray]:
    """Frames, maps and overlay of one moment with black frames."""
    rows, columns = colours.shape[1:3]
    figure = draw_feature_maps(
        np.zeros((1, 32 * rows, 32 * columns, 3), dtype=np.uint8),
        colours,
        [0.5],
        title="video",
        model="model",
        is_trained=True,
        tokens="tokens",
        explained_variance=0.9,
        is_smooth=is_smooth,
    )
    drawn, side = pixels_of(figure), round(FRAME_SIDE / max(rows, columns))
    height, width = rows * side, columns * side
    tops = [len(drawn) - MARGIN - LABEL - GAP - height - row * (height + LABEL + 3 * GAP) for row in (2, 1, 0)]
    return [drawn[top : top + height, MARGIN : MARGIN + width] for top in tops]


def test_map_shows_the_colour_of_each_token_over_its_own_patch():
    colours = np.random.default_rng(0).random((1, 3, 5, 3), dtype=np.float32)
    frame, features, overlay = drawn_rows(colours, is_smooth=False)
    side = len(frame) // 3
    expected = np.round(255 * colours[0]).astype(int).repeat(side, 0).repeat(side, 1)
    assert not frame.any()
    np.testing.assert_array_equal(features, expected)
    np.testing.assert_allclose(overlay, expected / 2, atol=1)


def test_smooth_map_has_the_colours_between_its_cells():
    colours = np.zeros((1, 2, 2, 3), dtype=np.float32)
    colours[:, :, 1] = 1
    assert len(np.unique(drawn_rows(colours, is_smooth=True)[1])) > 50
    assert len(np.unique(drawn_rows(colours, is_smooth=False)[1])) == 2
