"""`nlprobe stats --agreement` and `--objects`, in process."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoints_on_disk import write_checkpoint
from PIL import Image

import nlprobe
from nlprobe.cli import run
from nlprobe.data import Preprocessing

PADDED = Preprocessing(40, 0, longest=72, pad=32)
PICTURES = {"wide": (50, 90), "tall": (90, 50), "broad": (50, 88), "square": (64, 64)}
"""Height and width."""


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures with a few boxes in COCO's layout, one of them a crowd."""
    root = tmp_path_factory.mktemp("coco")
    (root / "val2017").mkdir()
    (root / "annotations").mkdir()
    pictures, annotations = [], []
    for number, (name, (height, width)) in enumerate(PICTURES.items(), 1):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "val2017" / f"{name}.png")
        pictures.append({"id": number, "file_name": f"{name}.png", "width": width, "height": height})
        for category, box in ((3, [4, 5, 12, 10]), (7, [10, 8, 38, 40])):
            one = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": box}
            annotations.append({**one, "iscrowd": int(number == 4 and category == 3), "area": box[2] * box[3]})
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    payload = {"images": pictures, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(payload))
    return root


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A non-local network and one with GC in every block."""
    folder = tmp_path_factory.mktemp("runs")
    names = {"nl": "miniature-imagenet/resnet-nl", "gc": "miniature-imagenet/resnet-gc-all"}
    nl, gc = (
        write_checkpoint(folder / f"{short}.safetensors", name, preprocessing=PADDED.as_dict())
        for short, name in names.items()
    )
    return nl, gc


def stats(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """The command's stdout; on failure its stderr."""
    returned = run(["stats", "--device", "cpu", *map(str, arguments)])
    captured = capsys.readouterr()
    assert returned == code, captured.err
    return captured.err if code else captured.out


def both(checkpoints: tuple[Path, Path]) -> list[object]:
    return ["--ckpt", checkpoints[0], "--ckpt", checkpoints[1], "--label", "NL", "--label", "GC"]


def test_agreement_is_measured_at_matched_sites_and_written(checkpoints, coco, tmp_path, capsys) -> None:
    out = tmp_path / "measured"
    table = stats(capsys, *both(checkpoints), "--data", coco, "--agreement", "--out", out, "--quantity", "att")
    payload = json.loads((out / "results.json").read_text())
    (found,) = payload["agreement"]
    assert (found["first"], found["second"], found["first_site"]) == ("NL", "GC", "layer3.0:after_add")
    assert found["second_site"].startswith("layer3.0:")
    assert found["matched"] in ("the same name", "the same residual block")
    assert found["agreement"]["n"] == found["shuffled"]["n"] == 4
    assert found["agreement"]["low"] <= found["agreement"]["mean"] <= found["agreement"]["high"]
    assert "Agreement of mean attention maps" in table
    assert found["matched"] in " ".join(table.split())
    records = pd.read_csv(out / "records.csv")
    rows = records[records["agreement"].notna()]
    assert set(rows["model"]) == {"GC"}
    assert set(rows["site"]) == {found["second_site"]}
    assert set(rows["quantity"]) == {"att"}
    assert len(rows) == 4
    assert rows["agreement"].mean() == pytest.approx(found["agreement"]["mean"])
    assert rows["agreement_shuffled"].mean() == pytest.approx(found["shuffled"]["mean"])
    assert {f"agreement.{end}" for end in ("txt", "tex", "md", "csv", "json")} <= {path.name for path in out.iterdir()}


def test_agreement_is_the_cosine_of_what_a_reader_finds(checkpoints, coco, capsys) -> None:
    payload = json.loads(
        stats(capsys, *both(checkpoints), "--data", coco, "--agreement", "--format", "json", "--quantity", "att")
    )
    (found,) = payload["agreement"]
    cosines = []
    for name in PICTURES:
        with Image.open(coco / "val2017" / f"{name}.png") as picture:
            image = PADDED.transform()(picture.convert("RGB"))
        size = (image.shape[1], image.shape[2])
        image = torch.nn.functional.pad(image, (0, -size[1] % 32, 0, -size[0] % 32))
        maps = []
        for path, site in zip(checkpoints, (found["first_site"], found["second_site"]), strict=True):
            reader = nlprobe.probe.MeanMaps([site])
            model = nlprobe.load(path).eval()
            with nlprobe.probe(model, readers=[reader]) as probe, probe.images(["x"], sizes=[size]), torch.no_grad():
                model(image.unsqueeze(0))
            values = reader.maps[site]["x", 0].values
            assert values.shape == (image.shape[1] // 16, image.shape[2] // 16)
            rows, columns = (  # centres of cells of 16 pixels within the picture
                (np.arange(count) + 0.5) * 16 < pixels for count, pixels in zip(values.shape, size, strict=True)
            )
            maps.append(values[rows][:, columns].astype(float).ravel())
        cosines.append(maps[0] @ maps[1] / np.sqrt(maps[0] @ maps[0] * (maps[1] @ maps[1])))
    assert found["agreement"]["mean"] == pytest.approx(np.mean(cosines), rel=1e-5)


def test_sites_are_named_and_a_plan_says_what_would_be_compared(checkpoints, coco, capsys) -> None:
    arguments = [*both(checkpoints), "--data", coco, "--agreement"]
    plan = stats(capsys, *arguments, "--dry-run")
    assert "would compare layer3.0:after_add of NL with layer3.0:" in plan
    match = "layer3.0:after_add=layer2.0:after_1x1"
    plan = stats(capsys, *arguments, "--match", match, "--dry-run")
    assert "would compare layer3.0:after_add of NL with layer2.0:after_1x1 of GC: named by --match" in plan
    payload = json.loads(stats(capsys, *arguments, "--match", match, "--format", "json", "--quantity", "att"))
    assert payload["agreement"][0]["second_site"] == "layer2.0:after_1x1"
    assert "did you mean" in stats(capsys, *arguments, "--match", "layer3.0:after_ad", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agreement"], "--agreement compares networks, and there is one"),
        (["--match", "layer3.0"], "--match is given without --agreement"),
    ],
)
def test_what_cannot_be_compared_is_refused(checkpoints, coco, capsys, arguments: list[str], message: str) -> None:
    assert message in stats(capsys, "--ckpt", checkpoints[0], "--data", coco, *arguments, code=2)


def test_attention_on_objects_is_measured_by_size_and_class(checkpoints, coco, tmp_path, capsys) -> None:
    out = tmp_path / "measured"
    table = stats(
        capsys,
        "--ckpt",
        checkpoints[0],
        "--data",
        coco,
        "--objects",
        "--out",
        out,
        "--quantity",
        "att",
        "--batch-size",
        2,
    )
    payload = json.loads((out / "results.json").read_text())
    found = {(one["group"], one["name"]): one for one in payload["objects"]}
    assert set(found) == {("all", ""), ("size", "small"), ("size", "medium"), ("class", "cat"), ("class", "dog")}
    assert found["all", ""]["objects"] == 7  # the crowd is left out
    assert (found["class", "cat"]["objects"], found["class", "cat"]["mass"]["n"]) == (3, 3)
    assert found["size", "small"] == found["class", "cat"] | {"group": "size", "name": "small"}
    lines = pd.read_csv(out / "object_records.csv")
    assert len(lines) == 7
    cats = lines[lines["class"] == "cat"]
    assert found["class", "cat"]["mass"]["mean"] == pytest.approx((cats["mass"] / cats["area"]).mean())
    assert cats["area"].tolist() == pytest.approx([120 / (50 * 90), 120 / (50 * 90), 120 / (50 * 88)])
    assert "Attention on objects" in table
    assert "medium" in table
    assert (out / "object_classes.csv").is_file()


def test_objects_need_labels_and_whole_pictures(checkpoints, coco, photographs, tmp_path, capsys) -> None:
    error = stats(capsys, "--ckpt", checkpoints[0], "--data", photographs, "--objects", code=2)
    assert "--objects needs boxes or outlines of objects" in error
    cropped = write_checkpoint(tmp_path / "cropped.safetensors")
    error = stats(capsys, "--ckpt", cropped, "--data", coco, "--objects", code=2)
    assert "--objects needs whole pictures" in error
