"""Image files to RGB pictures, whatever their mode, depth and orientation."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nlprobe.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


class UnreadableImageError(DataError):
    """One image cannot be read; a data loader names it, leaves it out and goes on."""

    def __init__(self, image: str, reason: str) -> None:
        super().__init__(f"`{image}` cannot be read: {reason}", "replace or remove the file")
        self.image = image
        self.reason = reason


def is_image(path: Path | str) -> bool:
    """Whether the name is that of an image file; hidden files, such as macOS' `._x.jpg`, are none."""
    name = Path(path).name
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def read_image(path: Path | str, name: str | None = None, *, upright: bool = True) -> Image.Image:
    """The picture as a viewer shows it, in RGB.

    The orientation in the EXIF data is applied, grey and CMYK are converted, 16 bits are scaled to 8 (not clipped),
    what is transparent shows white, and of an animation the first frame is taken.

    Args:
        path: The file.
        name: What to call the image in an error; its path if left out.
        upright: Heed the orientation in the EXIF data.

    Raises:
        UnreadableImageError: the file is not there, no image, or damaged.
    """
    try:
        with Image.open(path) as file:
            file.load()
            return to_rgb(ImageOps.exif_transpose(file) if upright else file)
    except MemoryError:
        raise
    # Pillow's decoders raise nearly anything on damaged files: OSError, SyntaxError, ValueError, struct.error, …
    except (Exception, struct.error) as error:
        raise UnreadableImageError(name or str(path), reason_of(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB; transparent parts are laid on white.

    Raises:
        ValueError: the pixels are floating-point numbers, whose range no one knows.
    """
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) / 257
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def reason_of(error: Exception) -> str:
    """Why a picture could not be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
