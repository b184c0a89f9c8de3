"""Videos as files, or as folders of frames: a folder for each class, or a flat folder of video files."""

import os
import re
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

from nlprobe.data.dataset import ImageDataset
from nlprobe.data.folders import class_folders
from nlprobe.data.images import is_image
from nlprobe.data.video import Video, is_video, open_video
from nlprobe.errors import DataError

_NUMBERED = re.compile(r"(.*?)(\d+)\.\w+")


class VideoDataset(ImageDataset):
    """Videos in a fixed order; the `image` of a sample is a handle, of which nothing has been read yet."""

    holds = "videos"

    @abstractmethod
    def path(self, index: int) -> Path:
        """The video's file, or the folder of its frames."""

    def picture(self, index: int) -> Video:
        """The video's handle."""
        return open_video(self.path(index), self.ids[index])

    def size(self, index: int) -> int:
        """Bytes of the file; number of the frames and bytes of the first and the last; -1 if it is gone."""
        path = self.path(index)
        try:
            if not path.is_dir():
                return path.stat().st_size
            names = sorted(name for name in os.listdir(path) if is_image(name))  # noqa: PTH208 (four times as fast)
            return len(names) + sum((path / name).stat().st_size for name in {names[0], names[-1]}) if names else 0
        except OSError:
            return -1


class VideoFolders(VideoDataset):
    """folder/<class>/**/<video>, a video being a file, or a folder of frames; classes in the order of their names.

    Args:
        folder: The folder of class folders.
        root: What the user gave, for messages; `folder` if left out.

    Raises:
        DataError: there is no video in it.
    """

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        self.folder, self.root = folder, root or folder
        folders = class_folders(folder)
        self.classes = [path.name for path in folders]
        found = [(video, label) for label, path in enumerate(folders) for video in sorted(_videos(path))]
        if not found:
            raise DataError(
                f"`{folder}` holds no video: {len(folders)} folders without any",
                "give a folder with one sub-folder of videos for each class",
            )
        frames = all(video.is_dir() for video, _ in found)
        self.kind = "class folders of frames" if frames else "class folders of videos"
        self.ids = [video.relative_to(folder).as_posix() for video, _ in found]
        self.labels = [label for _, label in found]

    def path(self, index: int) -> Path:
        """The video's file, or the folder of its frames."""
        return self.folder / self.ids[index]


class VideoFiles(VideoDataset):
    """A flat folder of video files, or a single one, without labels."""

    kind = "videos"
    classes = None
    labels = None

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root.parent if root.is_file() else root
        self.ids = [root.name] if root.is_file() else [path.name for path in video_files(root)]

    def path(self, index: int) -> Path:
        """The video's file."""
        return self.folder / self.ids[index]


def video_files(folder: Path) -> list[Path]:
    """The video files that lie in the folder itself, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_video(path))


def holds_videos(folder: Path) -> bool:
    """Whether the first image or video that is found below the folder belongs to a video."""
    for path, folders, names in os.walk(folder):
        folders[:] = _shown(folders)
        for name in sorted(names):
            if is_video(name):
                return True
            if is_image(name):
                return Path(path).parent != folder and is_frame_folder(Path(path))
    return False


def is_frame_folder(folder: Path) -> bool:
    """Whether all that a folder holds is images that are numbered without a gap from 0 or 1 on, two or more."""
    numbers = []
    prefixes = set()
    for name in os.listdir(folder):  # noqa: PTH208 (a folder may hold thousands of frames)
        if name.startswith("."):
            continue
        matched = _NUMBERED.fullmatch(name)
        if not is_image(name) or matched is None:
            return False
        prefixes.add(matched[1])
        numbers.append(int(matched[2]))
    first = min(numbers, default=2)
    gapless = sorted(numbers) == [*range(first, first + len(numbers))]
    return len(numbers) > 1 and len(prefixes) == 1 and first <= 1 and gapless


def _videos(folder: Path) -> Iterator[Path]:
    """The videos anywhere below a class's folder."""
    for path, folders, names in os.walk(folder):
        folders[:] = _shown(folders)
        yield from (Path(path) / name for name in names if is_video(name))
        if any(is_image(name) for name in names) and is_frame_folder(Path(path)):
            yield Path(path)


def _shown(folders: list[str]) -> list[str]:
    return [name for name in folders if not name.startswith((".", "__"))]
