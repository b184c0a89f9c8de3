"""`nlprobe eval` of networks for semantic segmentation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints_on_disk import write_checkpoint
from PIL import Image
from sklearn.metrics import jaccard_score

from nlprobe.checkpoints import read_checkpoint
from nlprobe.cli import run
from nlprobe.data import IGNORED, open_dataset, whole, write_miniature_cityscapes
from nlprobe.data.cityscapes import CLASSES, PALETTE
from nlprobe.training import recipe

RECIPE = recipe("miniature-cityscapes")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_cityscapes(tmp_path_factory.mktemp("data"), train=2, val=5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    described = {"recipe": RECIPE.as_dict(), "preprocessing": RECIPE.preprocessing.as_dict(), "classes": list(CLASSES)}
    return write_checkpoint(
        tmp_path_factory.mktemp("eval") / "best.safetensors", "miniature-cityscapes/resnet-gc", **described
    )


def scored(capsys: pytest.CaptureFixture[str], checkpoint: Path, data: Path, *flags: str) -> list[dict]:
    assert run(["eval", "--ckpt", str(checkpoint), "--data", str(data), "--format", "json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def predictions(checkpoint: Path, data: Path) -> tuple[np.ndarray, np.ndarray]:
    model = read_checkpoint(checkpoint).model
    transform = whole(RECIPE.preprocessing).transform
    guesses, truths = [], []
    for sample in open_dataset(data):
        image, label = transform(sample.image, sample.label)
        with torch.no_grad():
            guesses.append(model(image[None])[0].argmax(0).numpy())
        truths.append(label.numpy())
    return np.stack(guesses), np.stack(truths)


def test_the_iou_is_scikit_learns_on_the_networks_predictions(data: Path, checkpoint: Path, capsys) -> None:
    (row,) = scored(capsys, checkpoint, data)
    guesses, truths = predictions(checkpoint, data)
    counted = truths != IGNORED
    labels = np.union1d(guesses[counted], truths[counted])
    expected = jaccard_score(truths[counted], guesses[counted], average=None, labels=labels, zero_division=0)
    assert row["miou"] == pytest.approx(expected.mean(), rel=1e-9)
    assert row["pixel_accuracy"] == pytest.approx((guesses == truths)[counted].mean(), rel=1e-9)
    assert row["miou_low"] <= row["miou"] <= row["miou_high"]
    assert (row["images"], row["unreadable"], row["miou_n"]) == (5, 0, 5)
    by_class = scored(capsys, checkpoint, data, "--by-class", "--label", "mine")
    assert [line["class"] for line in by_class] == [*CLASSES, "mean"]
    found = {CLASSES.index(line["class"]): line["mine"] for line in by_class[:-1] if line["mine"] is not None}
    assert [found[int(label)] for label in labels] == pytest.approx(expected.tolist(), rel=1e-9)
    assert by_class[-1]["mine"] == row["miou"]


def test_predictions_are_written_in_grey_values_and_colours(
    data: Path, checkpoint: Path, tmp_path: Path, capsys
) -> None:
    scored(capsys, checkpoint, data, "--predictions", str(tmp_path / "predicted"), "--label", "a/b", "--limit", "2")
    guesses, _ = predictions(checkpoint, data)
    names = open_dataset(data).ids
    grey = sorted((tmp_path / "predicted" / "a_b").rglob("*_classes.png"))
    assert [path.name for path in grey] == [Path(names[at]).stem + "_classes.png" for at in (0, 2)]
    with Image.open(grey[1]) as file:
        classes = np.asarray(file)
    np.testing.assert_array_equal(classes, guesses[2])
    with Image.open(grey[1].with_name(grey[1].name.replace("classes", "color"))) as file:
        np.testing.assert_array_equal(np.asarray(file), np.array(PALETTE, np.uint8)[classes])
    arguments = ["eval", "--ckpt", str(checkpoint), "--data", str(data), "--predictions", str(tmp_path / "predicted")]
    assert run(arguments) == 2
    assert "--force" in capsys.readouterr().err


def test_windows_scales_and_flips_are_said_and_change_the_answer(data: Path, checkpoint: Path, capsys) -> None:
    plain = scored(capsys, checkpoint, data)
    for flags, words in (
        (["--window", "96", "--stride", "48"], "sliding windows of 96 every 48"),
        (["--window", "96"], "sliding windows of 96 every 64"),
        (["--scale", "0.75", "--scale", "1", "--flip"], "whole pictures at scales 0.75, 1, and mirrored"),
    ):
        assert run(["eval", "--ckpt", str(checkpoint), "--data", str(data), "--format", "json", *flags]) == 0
        out, err = capsys.readouterr()
        assert words in err
        assert json.loads(out)[0]["loss"] != plain[0]["loss"]


def test_an_unreadable_map_is_named_and_counted(checkpoint: Path, tmp_path: Path, capsys) -> None:
    root = write_miniature_cityscapes(tmp_path, train=1, val=3)
    bad = sorted((root / "gtFine" / "val").glob("*/*_labelIds.png"))[1]
    Image.new("L", (9, 9)).save(bad)
    assert run(["eval", "--ckpt", str(checkpoint), "--data", str(root), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)[0]["images"], json.loads(out)[0]["unreadable"]) == (2, 1)
    assert "its label map is 9x9 pixels, the picture 256x128: they are no pair" in err


def test_flags_of_segmentation_are_refused_for_classifiers(data: Path, tmp_path: Path, capsys) -> None:
    classifier = write_checkpoint(tmp_path / "classifier.safetensors")
    assert run(["eval", "--ckpt", str(classifier), "--data", str(data), "--scale", "0.5"]) == 2
    assert "`--scale` is for segmentation" in capsys.readouterr().err
    assert run(["eval", "--ckpt", str(classifier), "--data", str(data)]) == 4
    assert "without labels for whole images" in capsys.readouterr().err


def test_data_without_maps_and_tasks_that_differ_are_refused(
    checkpoint: Path, photographs: Path, data: Path, tmp_path: Path, capsys
) -> None:
    assert run(["eval", "--ckpt", str(checkpoint), "--data", str(photographs)]) == 4
    assert "has no maps of classes" in capsys.readouterr().err
    classifier = write_checkpoint(tmp_path / "classifier.safetensors")
    assert run(["eval", "--ckpt", str(checkpoint), "--ckpt", str(classifier), "--data", str(data)]) == 2
    assert "several tasks: classification, segmentation" in capsys.readouterr().err
    assert run(["eval", "--ckpt", str(checkpoint), "--data", str(data), "--stride", "8"]) == 2
