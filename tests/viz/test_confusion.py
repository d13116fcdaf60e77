import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from vjepa_hub.viz.confusion import draw_confusion, write_confusion_picture

SOME = np.array([[2, 1, 0], [1, 1, 0], [0, 0, 0]])


def random_confusion(num_classes: int) -> np.ndarray:
    generator = np.random.default_rng(num_classes)
    return generator.poisson(0.3, size=(num_classes,) * 2) + np.diag(generator.integers(5, 60, size=num_classes))


def texts_of(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible()]


@pytest.mark.parametrize("num_classes", [1, 40, 400])
def test_picture_of_any_number_of_classes_has_a_readable_size(tmp_path, num_classes):
    names = [f"doing something long with a thing {place}, $x_1$" for place in range(num_classes)]
    path = write_confusion_picture(tmp_path / "new" / "c.png", random_confusion(num_classes), names)
    with Image.open(path) as picture:
        assert 500 < picture.width < 1800
        assert 500 < picture.height < 1800
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_every_class_has_the_same_number_of_pixels(tmp_path):
    """A dark diagonal on white: the widths of its steps."""
    path = write_confusion_picture(tmp_path / "c.png", np.eye(60, dtype=np.int64))
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    is_full = (np.abs(pixels - [0x0B, 0x25, 0x45]).max(axis=2) < 3).sum(axis=1)
    widths = is_full[is_full > 10]
    assert set(widths[20:-20].tolist()) == {15}


def test_title_counts_videos_without_a_prediction_as_wrong():
    texts = "\n".join(texts_of(draw_confusion(SOME, num_without_prediction=1)))
    assert "Top-1 50.0 %" in texts
    assert "6 videos, 1 of them without a prediction" in texts
    assert "grey: none" in texts
    assert "Top-1 0.0 %" in texts_of(draw_confusion(0 * SOME, num_without_prediction=4))
    assert "grey" not in "".join(texts_of(draw_confusion(random_confusion(3))))


@pytest.mark.parametrize(
    ("num_classes", "has_names", "has_counts"), [(14, True, True), (15, True, False), (41, False, False)]
)
def test_names_and_counts_are_left_out_where_they_would_not_be_readable(num_classes, has_names, has_counts):
    names = [f"name-{place}" for place in range(num_classes)]
    texts = texts_of(draw_confusion(777 * np.eye(num_classes, dtype=np.int64), names))
    assert texts.count("name-3") == (2 if has_names else 0)
    assert texts.count("777") == (num_classes if has_counts else 0)


def test_long_names_are_cut_and_stand_in_one_line():
    names = ["pretending to turn something upside down", "b\nc"]
    texts = texts_of(draw_confusion(random_confusion(2), names))
    assert texts.count("pretending to turn somethin…") == texts.count("b c") == 2


@pytest.mark.parametrize(
    "confusion",
    [np.zeros((2, 3), dtype=int), np.zeros((0, 0), dtype=int), np.array([[1, -1], [0, 1]]), np.eye(2)],
)
def test_matrix_that_counts_no_videos_is_refused(confusion):
    with pytest.raises(ValueError, match="compute_metrics"):
        draw_confusion(confusion)


def test_wrong_number_of_names_is_refused():
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        draw_confusion(SOME, ["a", "b"])
