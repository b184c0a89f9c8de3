"""Kinetics: a CSV of labelled parts of videos, and the videos as files or as folders of frames."""

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nlprobe.data.video import is_video
from nlprobe.data.video_folders import VideoDataset
from nlprobe.errors import DataError

_NAMES = {"train": ("train",), "val": ("val", "validate", "validation")}
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
_CSV_FOLDERS = ("", "annotations")
_FOLDERS = ("{}", "videos_{}", "rawframes_{}", "{}_256", "videos", "rawframes")


@dataclass(frozen=True)
class Row:
    """A line of the CSV: a class, and the part of a video that shows it, in seconds."""

    label: str
    youtube_id: str
    start: int
    end: int

    @property
    def names(self) -> tuple[str, str]:
        """What its file may be called, without the suffix."""
        return f"{self.youtube_id}_{self.start:06d}_{self.end:06d}", self.youtube_id


class Kinetics(VideoDataset):
    """The videos of `train.csv` or `val.csv` that are there, in the order of its lines.

    A video is called `<id>_<start>_<end>`, with times of six digits, or `<id>`, and lies anywhere below `train` or
    `val` (also `videos_train`, `rawframes_train`, `train_256`, `videos`, or the root itself): a file of any kind, or a
    folder of frames. Its class is what the CSV says. Videos come and go, so that nobody's copy is whole: those
    that are not there are `missing`.

    Args:
        root: The folder that holds the CSVs, or their folder `annotations`.
        split: `train` or `val`.

    Raises:
        DataError: the CSV is missing or not understood, or none of its videos is there.
    """

    kind = "Kinetics"

    def __init__(self, root: Path, split: str) -> None:
        self.root = root
        table = find_csv(root, split)
        if table is None:
            raise DataError(
                f"`{root}` has no `{split}.csv`", f"put Kinetics' `{split}.csv` there, beside the folder `{split}`"
            )
        rows = _rows(table)
        self.folder = _folder(root, split)
        self.classes = _classes(root, rows)
        found = _found(self.folder, rows)
        self.missing = [row.names[0] for row, path in zip(rows, found, strict=True) if path is None]
        if len(self.missing) == len(rows):
            raise DataError(
                f"`{self.folder}` holds none of the {len(rows)} videos of `{table.name}`, such as `{self.missing[0]}`",
                "call them `<youtube_id>_<time_start>_<time_end>.mp4`, times in six digits, or `<youtube_id>.mp4`",
            )
        there = [(row, path) for row, path in zip(rows, found, strict=True) if path is not None]
        self.ids = [path.relative_to(self.folder).as_posix() for _, path in there]
        number = {name: label for label, name in enumerate(self.classes)}
        self.labels = [number[row.label] for row, _ in there]

    def notes(self) -> list[str]:
        """How many of the videos that the CSV lists are not there, in a sentence."""
        if not self.missing:
            return []
        listed = len(self.missing) + len(self)
        return [f"{len(self.missing)} of {listed} videos are not there, such as `{self.missing[0]}`"]

    def path(self, index: int) -> Path:
        """The video's file, or the folder of its frames."""
        return self.folder / self.ids[index]


def find_csv(root: Path, split: str) -> Path | None:
    """The CSV of a part of Kinetics below `root`, told by its columns; None if there is none."""
    for folder in _CSV_FOLDERS:
        for name in _NAMES[split]:
            path = root / folder / f"{name}.csv"
            if path.is_file() and "youtube_id" in _header(path):
                return path
    return None


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return next(csv.reader(file), [])


def _rows(path: Path) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            if lacking := [name for name in _COLUMNS if name not in (table.fieldnames or ())]:
                raise DataError(
                    f"`{path}` has no column {', '.join(f'`{name}`' for name in lacking)}",
                    f"Kinetics' own has `{','.join(_COLUMNS)},split`",
                )
            rows = [_row(path, table.line_num, line) for line in table]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"`{path}` is no CSV in UTF-8: {error}", "unpack it once more") from error
    if not rows:
        raise DataError(f"`{path}` lists no video", "unpack it once more")
    return rows


def _row(path: Path, number: int, line: dict[str, str]) -> Row:
    try:
        label, video = line["label"].strip(), line["youtube_id"].strip()
        start, end = (round(float(line[name])) for name in ("time_start", "time_end"))
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"line {number} of `{path}` is not understood", f"Kinetics' own has `{','.join(_COLUMNS)},split`"
        ) from error
    if not label or not video:
        raise DataError(f"line {number} of `{path}` has no label or no id", "mend it or take it away")
    return Row(label, video, start, end)


def _classes(root: Path, rows: list[Row]) -> list[str]:
    """All labels of both parts, sorted, so that a class has one number even where a part lacks some of them."""
    labels = {row.label for row in rows}
    for split in _NAMES:
        other = find_csv(root, split)
        if other is not None and "label" in _header(other):
            labels |= {row.label for row in _rows(other)}
    return sorted(labels)


def _folder(root: Path, split: str) -> Path:
    """Where the videos of a part lie."""
    candidates = [root / pattern.format(name) for pattern in _FOLDERS for name in _NAMES[split]]
    return next((path for path in candidates if path.is_dir()), root)


def _found(folder: Path, rows: list[Row]) -> list[Path | None]:
    """The video of each row; of several of the same name, that in the folder of the row's class."""
    wanted = {name for row in rows for name in row.names}
    by_name: dict[str, list[Path]] = {}
    for path in sorted(_candidates(folder, wanted)):
        by_name.setdefault(path.stem if is_video(path) else path.name, []).append(path)
    return [_chosen(by_name, row) for row in rows]


def _candidates(folder: Path, wanted: set[str]) -> Iterator[Path]:
    for path, folders, names in os.walk(folder):
        yield from (Path(path) / name for name in names if is_video(name) and Path(name).stem in wanted)
        yield from (Path(path) / name for name in folders if name in wanted)
        folders[:] = [name for name in folders if name not in wanted]


def _chosen(by_name: dict[str, list[Path]], row: Row) -> Path | None:
    found: Iterable[Path] = next((by_name[name] for name in row.names if name in by_name), ())
    same = [path for path in found if _plain(path.parent.name) == _plain(row.label)]
    return next(iter([*same, *found]), None)


def _plain(label: str) -> str:
    return "".join(letter for letter in label.lower() if letter.isalnum())
