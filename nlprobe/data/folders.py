"""Images as files: a folder for each class, or a flat folder of photographs."""

from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import make_dataset

from nlprobe.data.dataset import ImageDataset
from nlprobe.data.images import is_image, read_image
from nlprobe.errors import DataError


class _Files(ImageDataset):
    """Images that are files below one folder."""

    folder: Path

    def picture(self, index: int) -> Image.Image:
        """The picture in RGB."""
        return read_image(self.folder / self.ids[index], self.ids[index])

    def size(self, index: int) -> int:
        """Bytes of the file, -1 if it is gone."""
        try:
            return (self.folder / self.ids[index]).stat().st_size
        except OSError:
            return -1


class ClassFolders(_Files):
    """`torchvision.datasets.ImageFolder`'s layout: folder/<class>/**/<image>; classes in the order of their names.

    Args:
        folder: The folder of class folders.
        root: What the user gave, for messages; `folder` if left out.
        kind: What to call it.
    """

    def __init__(self, folder: Path, root: Path | None = None, kind: str = "class folders") -> None:
        self.kind, self.folder, self.root = kind, folder, root or folder
        self.classes = [path.name for path in class_folders(folder)]
        labels = {name: label for label, name in enumerate(self.classes)}
        found = make_dataset(folder, labels, is_valid_file=is_image, allow_empty=True) if labels else []
        self.ids = [Path(path).relative_to(folder).as_posix() for path, _ in found]
        self.labels = [label for _, label in found]
        if not found:
            raise DataError(
                f"`{folder}` holds no image: {len(labels)} folders, all empty",
                "give a folder with one sub-folder of images for each class",
            )


class Photographs(_Files):
    """A flat folder of photographs, or a single one, without labels."""

    kind = "photographs"
    classes = None
    labels = None

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root.parent if root.is_file() else root
        self.ids = [root.name] if root.is_file() else [path.name for path in image_files(root)]


def class_folders(folder: Path) -> list[Path]:
    """The sub-folders that may be classes, hidden ones left out, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def image_files(folder: Path) -> list[Path]:
    """The images that lie in the folder itself, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_image(path))


def holds_images(folder: Path) -> bool:
    """Whether an image lies anywhere below the folder; stops at the first."""
    return any(is_image(path) for path in folder.rglob("*") if path.is_file())
