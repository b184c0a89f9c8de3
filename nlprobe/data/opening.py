"""Find out what kind of data set a folder holds, and open it."""

from pathlib import Path
from typing import Literal

from nlprobe.data.cityscapes import MAPS, PICTURES, Cityscapes
from nlprobe.data.coco import ANNOTATIONS, Coco, coco_year, holds_pictures
from nlprobe.data.dataset import ImageDataset
from nlprobe.data.folders import ClassFolders, Photographs, class_folders, holds_images, image_files
from nlprobe.data.images import is_image
from nlprobe.data.kinetics import Kinetics, find_csv
from nlprobe.data.small_images import SmallImages, find_small_images
from nlprobe.data.video import is_video
from nlprobe.data.video_folders import VideoFiles, VideoFolders, holds_videos, video_files
from nlprobe.errors import DataError

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

LAYOUTS = (
    "a data set is: train/<class>/ and val/<class>/ (ImageNet), <class>/ (any ImageFolder), leftImg8bit/ and gtFine/ "
    "(Cityscapes), train2017/, val2017/ and annotations/ (COCO), train.csv, val.csv, train/ and val/ (Kinetics), an "
    "unpacked MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100, a folder of photographs or of videos, one photograph, or "
    "one video; in <class>/ may be images, videos or folders of numbered frames"
)


def open_dataset(root: Path | str, split: Split = "val") -> ImageDataset:
    """Open the data set at `root`; what it is follows from what lies there.

    A folder of class folders that is not parted into `train` and `val` is the same for both splits.

    Args:
        root: A data set's root, a flat folder of photographs or videos, a photograph, or a video.
        split: Which part; a flat folder has no parts.

    Raises:
        DataError: nothing is there, it is empty, not understood, or may be understood in two ways.
    """
    root = Path(root).expanduser()
    try:
        return _open(root, split)
    except OSError as error:
        raise DataError(
            f"`{root}` cannot be read: {error.strerror or error}", "check the path and its permissions"
        ) from (error)


def _open(root: Path, split: Split) -> ImageDataset:
    if root.is_file():
        if is_video(root):
            return VideoFiles(root)
        if not is_image(root):
            raise DataError(f"`{root}` is a file, but no image and no video", LAYOUTS)
        return Photographs(root)
    if not root.is_dir():
        raise DataError(f"`{root}` is not there", "check the path" + _nearest_folder(root))
    if (root / PICTURES).is_dir():
        return Cityscapes(root, split)
    if root.name in (PICTURES, MAPS) or (root / MAPS).is_dir():
        raise DataError(
            f"`{root}` is a part of Cityscapes", f"give the folder that holds `{PICTURES}`, and `{MAPS}` for training"
        )
    if year := coco_year(root):
        return Coco(root, split, year)
    if root.name == ANNOTATIONS and any(root.glob("instances_*.json")):
        raise DataError(f"`{root}` is a part of COCO", f"give `{root.parent}`, with the folders of pictures in it")
    if any(find_csv(root, each) for each in SPLITS):
        return Kinetics(root, split)
    if small := find_small_images(root):
        if len(small) > 1:
            raise DataError(
                f"`{root}` holds {' and '.join(chosen.kind for chosen, _ in small)}",
                f"choose one: {', '.join(f'`{root / chosen.own_folder}`' for chosen, _ in small)}",
            )
        return SmallImages(*small[0], root, split)
    if (root / "train").is_dir() or (root / "val").is_dir():
        return _open_split(root, split)
    return _open_flat(root)


def _open_split(root: Path, split: Split) -> ImageDataset:
    folder = root / split
    if not folder.is_dir():
        there = ", ".join(f"`{path.name}`" for path in class_folders(root))
        raise DataError(
            f"`{root}` has no folder `{split}`, only {there}", "a data set with splits has `train` and `val`"
        )
    if not class_folders(folder) and (films := video_files(folder)):
        raise DataError(
            f"`{folder}` holds {len(films)} videos but no class folders, and `{root}` no `{split}.csv`",
            f"put Kinetics' CSVs into `{root}`, or sort the videos into `{split}/<class>/`",
        )
    if not class_folders(folder):
        loose = len(image_files(folder))
        raise DataError(
            f"`{folder}` holds {f'{loose} images but ' if loose else ''}no class folders",
            f"sort its images into `{split}/<class>/`; ImageNet's validation archive needs its valprep script for that"
            if loose
            else "each class needs a folder of images",
        )
    return VideoFolders(folder, root) if holds_videos(folder) else ClassFolders(folder, root, "ImageNet folders")


def _open_flat(root: Path) -> ImageDataset:
    loose = image_files(root)
    folders = [folder for folder in class_folders(root) if holds_images(folder)]
    if loose and folders:
        raise DataError(
            f"`{root}` holds both {len(loose)} images and {len(folders)} folders of them, such as `{folders[0].name}`",
            "move the loose images away if the folders are classes, or the folders if it is a set of photographs",
        )
    if loose:
        return Photographs(root)
    if video_files(root):
        return VideoFiles(root)
    parted = [folder for folder in class_folders(root) if (folder / "train").is_dir() or (folder / "val").is_dir()]
    if parted:
        raise DataError(
            f"`{root}` holds no data set itself, but its folder{'s' if len(parted) > 1 else ''} "
            f"{', '.join(f'`{folder.name}`' for folder in parted)} may be one",
            f"give `{parted[0]}`",
        )
    if holds_videos(root):
        return VideoFolders(root)
    if not folders:
        raise DataError(f"`{root}` holds no image and no video that nlprobe understands", LAYOUTS)
    return ClassFolders(root)


def _nearest_folder(path: Path) -> str:
    """The part of the path that does exist, for a message."""
    existing = next((parent for parent in path.absolute().parents if parent.is_dir()), None)
    return f"; `{existing}` is there" if existing else ""


def open_parts(root: Path | str) -> dict[str, ImageDataset]:
    """Every part of a data set by its name: `train` and `val` where it has both, or `all`.

    Raises:
        DataError: as `open_dataset`.
    """
    root = Path(root).expanduser()
    if (root / PICTURES).is_dir():
        return {split: open_dataset(root, split) for split in SPLITS if (root / PICTURES / split).is_dir()}
    if year := coco_year(root):
        there = [split for split in SPLITS if holds_pictures(root, split, year)]
        return {split: open_dataset(root, split) for split in there or SPLITS}
    if tables := [split for split in SPLITS if find_csv(root, split)]:
        return {split: open_dataset(root, split) for split in tables}
    whole = open_dataset(root, "train" if (root / "train").is_dir() else "val")
    if isinstance(whole, SmallImages):
        return {"train": open_dataset(root, "train"), "val": whole}
    parts = [split for split in SPLITS if (root / split).is_dir()]
    return {split: open_dataset(root, split) for split in parts} or {"all": whole}
