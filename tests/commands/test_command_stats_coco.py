"""`nlprobe stats` on COCO: its photographs are measured, whatever there is beside them."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from checkpoints_on_disk import write_checkpoint

from nlprobe.cli import run
from nlprobe.data import Preprocessing, write_miniature_coco


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    padded = Preprocessing(40, 0, longest=72, pad=32)
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.safetensors", preprocessing=padded.as_dict())


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_coco(tmp_path_factory.mktemp("data"), train=1, val=6)


def records(checkpoint: Path, data: Path, out: Path, *more: str) -> pd.DataFrame:
    arguments = ["--ckpt", str(checkpoint), "--data", str(data), "--out", str(out), "--quantity", "att", *more]
    assert run(["stats", "--device", "cpu", *arguments]) == 0
    return pd.read_csv(out / "records.csv", keep_default_na=False).sort_values("image", kind="stable")


def test_photographs_are_measured_without_annotations_and_without_pycocotools(
    checkpoint: Path, plates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    known = records(checkpoint, plates, tmp_path / "known")
    assert known["image"].nunique() == 6
    assert known["n_queries"].nunique() > 1
    photographs = records(checkpoint, plates / "val2017", tmp_path / "photographs")
    assert known.equals(photographs)
    (plates / "annotations").rename(plates / "elsewhere")
    without = records(checkpoint, plates, tmp_path / "without")
    (plates / "elsewhere").rename(plates / "annotations")
    assert known.equals(without)
    data = json.loads((tmp_path / "without" / "results.json").read_text())["data"]
    assert (data["kind"], data["images"]) == ("COCO 2017", 6)


def test_a_photographs_numbers_do_not_depend_on_the_others(checkpoint: Path, plates: Path, tmp_path: Path) -> None:
    together = records(checkpoint, plates, tmp_path / "together", "--batch-size", "4")
    path = max((plates / "val2017").iterdir())
    alone = records(checkpoint, path, tmp_path / "alone")
    own = together[together["image"] == path.name]
    assert alone.reset_index(drop=True).equals(own.reset_index(drop=True))
