"""`nlprobe intervene`: what replaced attention does to a task, and to networks without one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoints_on_disk import write_checkpoint

from nlprobe.checkpoints import read_checkpoint
from nlprobe.cli import run
from nlprobe.data import (
    Preprocessing,
    open_dataset,
    write_miniature_cityscapes,
    write_miniature_imagenet,
)
from nlprobe.data.cityscapes import CLASSES
from nlprobe.intervention import intervene
from nlprobe.training import recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_imagenet(tmp_path_factory.mktemp("data"), train=10, val=20)


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = open_dataset(data).classes
    return write_checkpoint(tmp_path_factory.mktemp("net") / "best.safetensors", classes=classes)


def found(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run(["intervene", *map(str, arguments), "--format", "json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def test_scores_with_and_without_are_those_of_the_network_image_by_image(data: Path, checkpoint: Path, capsys) -> None:
    payload = found(capsys, "--ckpt", checkpoint, "--data", data, "--kind", "uniform", "--batch-size", "7")
    (one,) = payload["interventions"]
    model, transform = read_checkpoint(checkpoint).model, Preprocessing(64, 64).transform()
    samples = [(transform(sample.image), sample.label) for sample in open_dataset(data)]
    images, labels = torch.stack([image for image, _ in samples]), np.array([label for _, label in samples])
    with torch.no_grad():
        before = model(images)
        with intervene(model, "uniform"):
            after = model(images)
    hits = [(logits.argmax(1).numpy() == labels).astype(float) for logits in (before, after)]
    effect = one["effects"]["top1"]
    assert [effect[name]["mean"] for name in ("before", "after")] == pytest.approx([hit.mean() for hit in hits])
    assert effect["difference"]["mean"] == pytest.approx((hits[1] - hits[0]).mean())
    assert effect["difference"]["low"] <= effect["difference"]["mean"] <= effect["difference"]["high"]
    change = ((after - before).norm(dim=1) / before.norm(dim=1)).mean()
    assert one["network_change"]["mean"] == pytest.approx(float(change), rel=1e-4)
    assert one["same_class"]["mean"] == pytest.approx(float((after.argmax(1) == before.argmax(1)).float().mean()))


def test_the_mean_map_costs_what_stats_says(data: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    flags = ("--ckpt", checkpoint, "--data", data)
    (one,) = found(capsys, *flags, "--kind", "mean", "--out", tmp_path / "out")["interventions"]
    (site,) = one["sites"]
    assert one["output_change"][site]["mean"] == pytest.approx(one["mean_map_error"][site]["mean"], rel=1e-4)
    assert run(["stats", *map(str, flags), "--format", "json", "--quantity", "output", "--device", "cpu"]) == 0
    (measured,) = json.loads(capsys.readouterr().out)["sites"]
    assert one["mean_map_error"][site]["mean"] == pytest.approx(measured["columns"]["mean_map_error"]["mean"], rel=1e-6)
    records = pd.read_csv(tmp_path / "out" / "records.csv")
    assert len(records) == 20
    assert records["output_change"].mean() == pytest.approx(one["output_change"][site]["mean"])
    assert {"table.tex", "results.json", "run.toml"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_segmentation_is_scored_by_its_mean_iou(tmp_path: Path, capsys) -> None:
    data = write_miniature_cityscapes(tmp_path / "data", train=2, val=4)
    trained = recipe("miniature-cityscapes")
    described = {
        "recipe": trained.as_dict(),
        "preprocessing": trained.preprocessing.as_dict(),
        "classes": list(CLASSES),
    }
    path = write_checkpoint(tmp_path / "net.safetensors", "miniature-cityscapes/resnet-gc", **described)
    (mean, off) = found(capsys, "--ckpt", path, "--data", data, "--kind", "mean", "--kind", "off")["interventions"]
    assert run(["eval", "--ckpt", str(path), "--data", str(data), "--format", "json"]) == 0
    (scored,) = json.loads(capsys.readouterr().out)
    assert mean["effects"]["miou"]["before"]["mean"] == pytest.approx(scored["miou"])
    assert mean["effects"]["miou"]["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 4}
    assert off["output_change"]["head.context"]["mean"] is None  # nothing is what the untrained block adds


def test_photographs_without_labels_still_show_what_the_network_gives(checkpoint: Path, photographs, capsys) -> None:
    assert run(["intervene", "--ckpt", str(checkpoint), "--data", str(photographs), "--kind", "off"]) == 0
    out, err = capsys.readouterr()
    assert "not scored, as" in err
    assert "top1" not in out
    assert "same class" in out


def test_every_site_is_tried_by_itself(tmp_path: Path, photographs: Path, capsys) -> None:
    path = write_checkpoint(tmp_path / "net.safetensors", "miniature-imagenet/resnet-gc-all")
    tried = found(capsys, "--ckpt", path, "--data", photographs, "--kind", "off", "--each-site")["interventions"]
    assert [one["sites"] for one in tried] == [[site] for site in read_checkpoint(path).model.sites()]


def test_networks_of_other_libraries_are_intervened_in(photographs: Path, capsys) -> None:
    pytest.importorskip("timm")
    flags = ("--model", "timm:vit_tiny_patch16_224", "--data", photographs, "--site", "blocks.3.attn", "--head", "1")
    (one,) = found(capsys, *flags, "--kind", "mean")["interventions"]
    assert one["heads"] == [1]
    assert 0 < one["output_change"]["blocks.3.attn"]["mean"] < one["mean_map_error"]["blocks.3.attn"]["mean"] * 1.5


def test_what_cannot_be_done_is_refused_with_the_reason(checkpoint: Path, photographs: Path, capsys) -> None:
    flags = ["intervene", "--ckpt", str(checkpoint), "--data", str(photographs)]
    for more, code, words in (
        (["--kind", "means"], 2, "`mean`"),
        (["--site", "layer9*"], 2, "no site is called or matches `layer9*`"),
        (["--kind", "mean", "--head", "4"], 2, "has the heads 0 to 0"),
    ):
        assert run([*flags, *more]) == code
        assert words in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_done(checkpoint: Path, photographs: Path, tmp_path: Path, capsys) -> None:
    flags = ["--data", str(photographs), "--each-site", "--dry-run", "--out", str(tmp_path / "out")]
    assert run(["intervene", "--ckpt", str(checkpoint), *flags]) == 0
    assert "mean, uniform, shuffled, off at each of 1 sites" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
