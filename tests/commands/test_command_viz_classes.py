"""`nlprobe viz selectivity` and `nlprobe viz activations`, in process."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from checkpoints_on_disk import write_checkpoint
from PIL import Image

from nlprobe.cli import run

GC, BASELINE = "miniature-imagenet/resnet-gc-all", "miniature-imagenet/resnet"


def viz(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """Run the command and return its stdout; on failure, its stderr."""
    returned = run(["viz", *map(str, arguments)])
    captured = capsys.readouterr()
    assert returned == code, captured.err
    return captured.err if code else captured.out


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A baseline and its twin with GC blocks, as training would leave them."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: write_checkpoint(folder / f"{at}.safetensors", name) for at, name in enumerate((BASELINE, GC))}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of five images of noise in a colour each."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for number, name in enumerate(("blue", "green", "red")):
        (root / "val" / name).mkdir(parents=True)
        for image in range(5):
            pixels = generator.integers(0, 200, (64, 64, 3)).astype(np.uint8)
            pixels[..., number] += 50
            Image.fromarray(pixels).save(root / "val" / name / f"{image}.png")
    return root


def test_selectivity_of_two_networks_side_by_side(checkpoints, data, tmp_path, capsys) -> None:
    networks = [word for path in checkpoints.values() for word in ("--ckpt", path)]
    out = tmp_path / "figure7"
    rows = json.loads(viz(capsys, "selectivity", *networks, "--data", data, "--out", out, "--format", "json"))
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"figure7.{ending}" for ending in ("png", "pdf", "svg", "csv")),
        "figure7_numbers.csv",
    }
    assert [(row["module"], row["model"]) for row in rows] == [
        (module, model) for module in ("layer3.0", "layer3.1") for model in (BASELINE, GC)
    ]
    channels = pd.read_csv(tmp_path / "figure7.csv")
    live = channels[channels["state"] == "live"]
    for row in rows:
        own = live[(live["module"] == row["module"]) & (live["model"] == row["model"])]
        assert row["index"] == pytest.approx(own["index"].mean(), rel=1e-9)
        assert row["index_low"] <= row["index"] <= row["index_high"]
        assert (row["images"], row["classes"]) == (15, 3)
    assert rows[1]["difference"] == pytest.approx(rows[1]["index"] - rows[0]["index"])
    numbers = pd.read_csv(tmp_path / "figure7_numbers.csv")
    assert numbers["index"].tolist() == pytest.approx([row["index"] for row in rows])


def test_stages_and_modules_are_chosen_and_the_batch_size_does_not_matter(checkpoints, data, tmp_path, capsys) -> None:
    base = ["selectivity", "--ckpt", checkpoints[GC], "--data", data, "--format", "json", "--device", "cpu"]
    stages = viz(capsys, *base, "--stage", "c3", "--stage", "c4", "--out", tmp_path / "a.png", "--batch-size", 4)
    modules = viz(capsys, *base, "--at", "layer[23].?", "--out", tmp_path / "b.png", "--batch-size", 15)
    one, other = json.loads(stages), json.loads(modules)
    assert [row["module"] for row in one] == ["layer2.0", "layer2.1", "layer3.0", "layer3.1"]
    assert [row["module"] for row in one] == [row["module"] for row in other]
    assert [row["index"] for row in one] == pytest.approx([row["index"] for row in other], rel=1e-3)


def test_activations_of_every_gc_block_by_class(checkpoints, data, tmp_path, capsys) -> None:
    arguments = ["activations", "--ckpt", checkpoints[GC], "--data", data, "--out", tmp_path / "figure6"]
    rows = json.loads(viz(capsys, *arguments, "--class", "red", "--class", "blue", "--channels", 8, "--format", "json"))
    assert [row["module"] for row in rows] == [f"layer{stage}.{at}:after_1x1" for stage in (2, 3, 4) for at in (0, 1)]
    assert {row["what"] for row in rows} == {"transform"}
    lines = pd.read_csv(tmp_path / "figure6.csv")
    assert lines["class"].unique().tolist() == ["red", "blue", "all classes"]
    assert set(lines[lines["drawn"]].groupby("module")["channel"].nunique()) == {8}
    with np.load(tmp_path / "figure6.npz", allow_pickle=False) as arrays:
        red = lines[(lines["class"] == "red") & (lines["module"] == "layer3.0:after_1x1")]
        np.testing.assert_allclose(red["mean"], arrays["means_2"][2])
    assert (tmp_path / "figure6_numbers.csv").is_file()


def test_what_cannot_be_compared_is_refused_in_words(checkpoints, data, photographs, tmp_path, capsys) -> None:
    out = ("--out", tmp_path / "f")
    gc, plain = ("--ckpt", checkpoints[GC]), ("--ckpt", checkpoints[BASELINE])
    for figure in ("selectivity", "activations"):
        err = viz(capsys, figure, *gc, "--data", photographs, *out, code=4)
        assert "has no class for each image" in err
        assert "is not there" in viz(capsys, figure, *gc, "--data", tmp_path / "nowhere", *out, code=4)
        assert "which network?" in viz(capsys, figure, "--data", data, *out, code=2)
        assert "are of 1 class" in viz(capsys, figure, *gc, "--data", data, "--limit", 1, *out, code=4)
    assert "no transform to read" in viz(capsys, "activations", *plain, "--data", data, *out, code=2)
    assert "did you mean `green`" in viz(capsys, "activations", *gc, "--data", data, "--class", "gren", *out, code=2)
    both = ("--stage", "c4", "--at", "fc")
    assert "both say what is read" in viz(capsys, "selectivity", *gc, "--data", data, *both, *out, code=2)
    assert "no module is called" in viz(capsys, "selectivity", *gc, "--data", data, "--at", "layer9", *out, code=2)
    shared = ("--at", "layer3.0.relu")
    assert "ran twice" in viz(capsys, "selectivity", *gc, "--data", data, *shared, *out, code=3)
    assert not list(tmp_path.iterdir())


def test_figures_that_are_there_stay(checkpoints, data, tmp_path, capsys) -> None:
    (tmp_path / "f_numbers.csv").write_text("mine")
    base = ["selectivity", "--ckpt", checkpoints[GC], "--data", data, "--out", tmp_path / "f.svg"]
    assert "is already there" in viz(capsys, *base, code=2)
    assert (tmp_path / "f_numbers.csv").read_text() == "mine"
    viz(capsys, *base, "--force")
    assert {path.name for path in tmp_path.iterdir()} == {"f.svg", "f.csv", "f_numbers.csv"}


def test_networks_of_other_libraries_are_read_by_the_same_names(data, tmp_path, capsys) -> None:
    base = ["--model", "torchvision:resnet18", "--data", data, "--limit", 6, "--out", tmp_path / "f.png"]
    rows = json.loads(viz(capsys, "selectivity", *base, "--format", "json", "--batch-size", 3))
    assert [row["module"] for row in rows] == ["layer3.0", "layer3.1"]
    vit = ["--model", "python:own_networks:tiny_vit_with_transform", *base[2:], "--force"]
    assert "no residual blocks in `layer3`" in viz(capsys, "selectivity", *vit, code=2)
