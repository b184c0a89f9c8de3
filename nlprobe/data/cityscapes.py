"""Cityscapes in its own layout: leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/."""

from pathlib import Path

from PIL import Image
from torchvision import datasets

from nlprobe.data.images import is_image, read_image
from nlprobe.data.label_maps import IGNORED, LabelMapDataset, read_label_map
from nlprobe.errors import DataError

PICTURES, MAPS = "leftImg8bit", "gtFine"

_PICTURE_ENDING = f"_{PICTURES}"
_ID_ENDINGS = (f"_{MAPS}_labelIds.png", f"_{MAPS}_labelTrainIds.png")

# The 34 ids of the data set; torchvision's table has them with the 19 classes that are scored.
_TABLE = [each for each in datasets.Cityscapes.classes if each.id >= 0]
_SCORED = sorted((each for each in _TABLE if 0 <= each.train_id < IGNORED), key=lambda each: each.train_id)
CLASSES = tuple(each.name for each in _SCORED)
PALETTE = tuple(each.color for each in _SCORED)
CLASS_OF_ID = {each.id: each.train_id if 0 <= each.train_id < IGNORED else IGNORED for each in _TABLE}
_CLASS_OF_TRAIN_ID = {**{number: number for number in range(len(CLASSES))}, IGNORED: IGNORED}


class Cityscapes(LabelMapDataset):
    """Street scenes with a class for each pixel: 19 that are scored, the other ids ignored.

    Maps are read from `…_gtFine_labelIds.png`, or where these are missing from `…_gtFine_labelTrainIds.png`. Without a
    folder of maps the pictures alone can be measured. The orientation in a picture's EXIF data is not heeded, as its
    map would not follow.

    Args:
        root: The folder that holds `leftImg8bit` and `gtFine`.
        split: `train` or `val`.

    Raises:
        DataError: a folder is missing or empty, or a picture has no map, or a map no picture.
    """

    kind = "Cityscapes"
    palette = PALETTE

    def __init__(self, root: Path, split: str) -> None:
        self.root, self._folder, self._maps = root, root / PICTURES / split, root / MAPS / split
        self.classes = list(CLASSES)
        if not self._folder.is_dir():
            raise DataError(
                f"`{root}` has no folder `{PICTURES}/{split}`", f"unpack Cityscapes' `{PICTURES}` archive there"
            )
        found = self._folder.glob(f"*/*{_PICTURE_ENDING}.*")
        self.ids = sorted(path.relative_to(self._folder).as_posix() for path in found if is_image(path))
        if not self.ids:
            raise DataError(
                f"`{self._folder}` holds no picture `<city>/…{_PICTURE_ENDING}.png`",
                f"unpack Cityscapes' `{PICTURES}` archive there",
            )
        self.has_maps = self._maps.is_dir()
        if self.has_maps:
            self._check_pairs()

    def picture(self, index: int) -> Image.Image:
        """The picture in RGB."""
        return read_image(self._folder / self.ids[index], self.ids[index], upright=False)

    def label(self, index: int, picture: Image.Image) -> Image.Image:
        """The picture's map of classes."""
        path = self._map(index)
        table = CLASS_OF_ID if path.name.endswith(_ID_ENDINGS[0]) else _CLASS_OF_TRAIN_ID
        return read_label_map(path, self.ids[index], picture.size, table)

    def size(self, index: int) -> int:
        """Bytes of the picture and of its map, -1 if the picture is gone."""
        try:
            size = (self._folder / self.ids[index]).stat().st_size
            return size + (self._map(index).stat().st_size if self.has_maps else 0)
        except OSError:
            return -1

    def _map(self, index: int) -> Path:
        stem = Path(self.ids[index]).stem.removesuffix(_PICTURE_ENDING)
        candidates = [self._maps / Path(self.ids[index]).parent / f"{stem}{ending}" for ending in _ID_ENDINGS]
        return next((path for path in candidates if path.is_file()), candidates[0])

    def _check_pairs(self) -> None:
        """Make sure that every picture has a map and every map a picture."""
        without = [self.ids[index] for index in range(len(self.ids)) if not self._map(index).is_file()]
        if without:
            raise DataError(
                f"{len(without)} of {len(self.ids)} pictures in `{self._folder}` have no label map, such as "
                f"`{without[0]}`",
                f"put `…{_ID_ENDINGS[0]}` into `{self._maps}/<city>`, or take the picture away",
            )
        stems = {name.rpartition(_PICTURE_ENDING)[0] for name in self.ids}
        maps = {
            path.relative_to(self._maps).as_posix().removesuffix(ending)
            for ending in _ID_ENDINGS
            for path in self._maps.glob(f"*/*{ending}")
        }
        if lonely := sorted(maps - stems):
            raise DataError(
                f"{len(lonely)} label maps in `{self._maps}` have no picture, such as `{lonely[0]}`",
                f"put `…{_PICTURE_ENDING}.png` into `{self._folder}/<city>`, or take the map away",
            )
