"""Videos as handles: what is known of one, and any of its frames, read when they are asked for."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from nlprobe.data.decoding import FrameIndex, decode_frames, index_frames
from nlprobe.data.images import UnreadableImageError, is_image, read_image
from nlprobe.errors import ConfigError

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".flv", ".3gp", ".ogv", ".wmv",
)  # fmt: skip


class Video(ABC):
    """Frames that are read when they are asked for. Frame number i is the i-th that a player would show, from 0 on.

    A handle holds no open file, so it may be kept and passed between processes.

    Attributes:
        name: What to call it in an error.
    """

    name: str

    @property
    @abstractmethod
    def frame_count(self) -> int:
        """How many frames there are, 1 or more."""

    @property
    @abstractmethod
    def fps(self) -> float | None:
        """Frames per second, on average; None where nobody knows."""

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height of a frame, upright."""
        height, width = self.frames([0]).shape[1:3]
        return width, height

    def frames(self, indices: Sequence[int]) -> UInt8[Tensor, "t h w 3"]:
        """The frames of those numbers in RGB, upright, in the order of the numbers, which may repeat.

        Raises:
            ConfigError: there is no frame of such a number.
            UnreadableImageError: the video is missing or damaged.
        """
        if not indices or min(indices) < 0 or max(indices) >= self.frame_count:
            raise ConfigError(
                f"`{self.name}` has the frames 0 to {self.frame_count - 1}, not {list(indices)}",
                "ask for some of these",
            )
        return torch.from_numpy(self._read(list(indices)))

    def check(self) -> None:
        """Read the first, the middle and the last frame.

        Raises:
            UnreadableImageError: one of them cannot be read, or the file has been cut off.
        """
        self.frames(sorted({0, self.frame_count // 2, self.frame_count - 1}))

    @abstractmethod
    def _read(self, indices: list[int]) -> UInt8[np.ndarray, "t h w 3"]:
        """The frames of numbers that are known to be there."""


class FrameStack(Video):
    """Frames that are in memory.

    Args:
        pixels: The frames in RGB.
        fps: Frames per second.
        name: What to call it.
    """

    def __init__(self, pixels: UInt8[np.ndarray, "t h w 3"], fps: float | None = None, name: str = "frames") -> None:
        self.pixels, self.name = pixels, name
        self._fps = fps

    @property
    def frame_count(self) -> int:
        """How many there are."""
        return len(self.pixels)

    @property
    def fps(self) -> float | None:
        """As it was given."""
        return self._fps

    def _read(self, indices: list[int]) -> UInt8[np.ndarray, "t h w 3"]:
        return self.pixels[indices]


class FrameFolder(Video):
    """A video as a folder of images, one a frame, in the order of the numbers in their names.

    Args:
        path: The folder.
        name: What to call it; its path if left out.

    Raises:
        UnreadableImageError: it holds no image.
    """

    fps = None

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self.name = path, name or str(path)

    @cached_property
    def files(self) -> list[Path]:
        """The images in their order."""
        try:
            found = [each for each in self.path.iterdir() if is_image(each)]
        except OSError as error:
            raise UnreadableImageError(self.name, error.strerror or str(error)) from error
        if not found:
            raise UnreadableImageError(self.name, "the folder holds no frame")
        return sorted(found, key=lambda each: _natural(each.name))

    @property
    def frame_count(self) -> int:
        """How many images there are."""
        return len(self.files)

    def _read(self, indices: list[int]) -> UInt8[np.ndarray, "t h w 3"]:
        read: dict[int, np.ndarray] = {}
        for index in dict.fromkeys(indices):
            file = self.files[index]
            try:
                read[index] = np.asarray(read_image(file))
            except UnreadableImageError as error:
                raise UnreadableImageError(self.name, f"its frame `{file.name}`: {error.reason}") from error
        first = read[indices[0]]
        for index, pixels in read.items():
            if pixels.shape != first.shape:
                raise UnreadableImageError(
                    self.name,
                    f"its frames `{self.files[indices[0]].name}` and `{self.files[index].name}` are of different "
                    f"sizes, {first.shape[1]}x{first.shape[0]} and {pixels.shape[1]}x{pixels.shape[0]}",
                )
        return np.stack([read[index] for index in indices])


class VideoFile(Video):
    """A video file, decoded with PyAV from the keyframe before each frame that is asked for.

    The frames are counted when they are first needed, from the packets of the file and not from its header; that
    decodes nothing. Each call of `frames` opens the file, and closes it.

    Args:
        path: The file.
        name: What to call it; its path if left out.

    Raises:
        MissingExtraError: PyAV is not installed (when frames are counted or read).
        UnreadableImageError: as for frames; a file without a single frame is unreadable.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self.name = path, name or str(path)

    @cached_property
    def index(self) -> FrameIndex:
        """Where the frames lie in the file."""
        return index_frames(self.path, self.name)

    @property
    def frame_count(self) -> int:
        """How many frames the file holds, whatever its header says."""
        return len(self.index)

    @property
    def fps(self) -> float | None:
        """Frames over seconds between the first and the last; None for a single one."""
        return self.index.rate

    def check(self) -> None:
        """As for any video; besides, whether the file ends where its header says."""
        super().check()
        if self.index.cut_off:
            raise UnreadableImageError(self.name, self.index.cut_off)

    def _read(self, indices: list[int]) -> UInt8[np.ndarray, "t h w 3"]:
        frames = decode_frames(self.path, self.name, self.index, sorted(set(indices)))
        return np.stack([frames[index] for index in indices])


def open_video(path: Path | str, name: str | None = None) -> Video:
    """A handle of a video file or of a folder of frames; nothing is read yet."""
    path = Path(path)
    return FrameFolder(path, name) if path.is_dir() else VideoFile(path, name)


def is_video(path: Path | str) -> bool:
    """Whether the name is that of a video file; hidden files are none."""
    name = Path(path).name
    return not name.startswith(".") and name.lower().endswith(VIDEO_SUFFIXES)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which `2.png` comes before `10.png`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
