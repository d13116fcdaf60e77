"""Words of messages."""

import pytest

from vjepa_hub.core.names import counted, nearest


def test_nearest_name_is_the_most_similar_one():
    assert nearest("vjepa-vitl14", ["vjepa-vith16", "vjepa-vitl16", "vjepa-vit-tiny"]) == "vjepa-vitl16"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 videos"), (1, "1 video"), (2, "2 videos"), (9999, "9,999 videos")]
)
def test_one_video_is_not_one_videos(number, text):
    assert counted(number, "video") == text


def test_irregular_plural_is_given():
    assert counted(1, "class", "classes") == "1 class"
    assert counted(3, "class", "classes") == "3 classes"
