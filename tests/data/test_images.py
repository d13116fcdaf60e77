import os
import zlib

import numpy as np
import pytest
from PIL import Image

from vjepa_hub.data.images import ImageReader, read_image
from vjepa_hub.data.records import FrameFolder, VideoRecord
from vjepa_hub.data.video import VideoDecodingError


def test_image_is_turned_upright(tmp_path):
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:5, :5] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored sideways: a viewer turns it a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(pixels, -1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_grey_and_transparent_files_become_rgb(tmp_path, mode):
    Image.new(mode, (8, 6)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert (image.mode, image.size) == ("RGB", (8, 6))


def png_of(side: int) -> bytes:
    """A PNG that states so many pixels along each side, and holds none of them."""
    chunks = [b"IHDR" + side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0]), b"IDAT" + zlib.compress(b"")]
    framed = [(len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(
    ("content", "cause"),
    [(b"", "empty"), (b"no image", "not a readable image"), (None, "no such file"), (png_of(14000), "exceeds limit")],
)
def test_bad_file_is_named_with_its_cause(tmp_path, content, cause):
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoDecodingError, match=cause) as error:
        read_image(path)
    assert error.value.path == str(path)


def test_truncated_file_is_refused(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(6).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(VideoDecodingError, match=r"cut\.png"):
        read_image(path)


def test_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(VideoDecodingError, match="no regular file"):
        read_image(tmp_path / "pipe.png")


@pytest.fixture(params=["a.png", "a.webp"])
def animation(request, tmp_path):
    """Five frames of grey 0, 40, 80, 120 and 160, for 100, 200, 300, 400 and 500 ms."""
    frames = [Image.new("RGB", (16, 12), (40 * number,) * 3) for number in range(5)]
    options = {"lossless": True} if request.param.endswith("webp") else {}
    path = tmp_path / request.param
    durations = [100, 200, 300, 400, 500]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, **options)
    return path


def test_animation_is_read_as_all_of_its_frames_at_their_times(animation):
    reader = ImageReader(animation)
    assert (reader.num_frames, reader.height, reader.width) == (5, 12, 16)
    assert reader.timestamps.tolist() == [0, 0.1, 0.3, 0.6, 1.0]
    assert reader.average_fps == pytest.approx(4)
    assert reader.read_frames([4, 1, 1, 0])[:, 0, 0, 0].tolist() == [160, 40, 40, 0]
    assert reader.read_frames([2], box=(1, 2, 3, 4)).shape == (1, 3, 4, 3)


def test_animation_is_no_image_of_a_frame_folder(animation):
    with pytest.raises(VideoDecodingError, match="an animation of 5 frames"):
        read_image(animation)
    with pytest.raises(VideoDecodingError, match=rf"{animation.name}: it is an animation"):
        VideoRecord("x", FrameFolder(animation.parent)).open().__enter__()


def test_still_image_is_one_frame_at_time_0(tmp_path):
    second_page = Image.new("L", (3, 3))
    Image.new("RGB", (8, 6), (9, 8, 7)).save(tmp_path / "a.tiff", save_all=True, append_images=[second_page])
    reader = ImageReader(tmp_path / "a.tiff")
    assert (reader.num_frames, reader.timestamps.tolist()) == (1, [0])
    assert reader.read_frames([0, 0])[:, 5, 7].tolist() == [[9, 8, 7]] * 2
