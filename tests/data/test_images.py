"""Image files of every kind become the RGB picture that a viewer shows."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nlprobe.data import UnreadableImageError, read_image
from nlprobe.data.images import is_image


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.new("L", (2, 2), 90).save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png") == 90).all()


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (200, 200, 200, 255))
    image.convert(mode).save(tmp_path / "a.png", **({"transparency": 0} if mode == "P" else {}))
    shown = pixels(tmp_path / "a.png")
    assert (shown[0, 0] == 255).all()
    assert (shown[0, 1] == 200).all()


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = pixels(tmp_path / "a.jpg")[4, 4]
    assert red > 200
    assert max(green, blue) < 60


def test_the_orientation_in_the_exif_data_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (2, 4)


def test_floating_point_pixels_are_refused_in_words(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImageError, match="floating-point"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0 broken", b"\x89PNG\r\n\x1a\n"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"`cat/a.jpg` cannot be read: \S") as caught:
        read_image(tmp_path / "a.jpg", "cat/a.jpg")
    assert caught.value.image == "cat/a.jpg"
    assert caught.value.exit_code == 4


def test_a_truncated_image_is_not_filled_up_silently(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableImageError):
        read_image(tmp_path / "a.jpg")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="it is not there"):
        read_image(tmp_path / "a.jpg")


def test_hidden_files_and_other_suffixes_are_no_images() -> None:
    assert is_image("a.JPEG")
    assert not is_image("._a.jpg")
    assert not is_image("notes.txt")
