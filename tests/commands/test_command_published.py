"""Another project's file, from the command line: what it is, what is measured, and what is refused."""

import csv
import hashlib
import io
import json
import sys
from pathlib import Path

import pytest
import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoints"))

from lively import lively
from mmaction_twin import Recogniser
from mmseg_twin import Segmentor
from videos_on_disk import write_video

from nlprobe.checkpoints.registry import Entry, entries
from nlprobe.cli import run
from nlprobe.data import write_miniature_cityscapes

LIKE = ("--set", "like=nonlocal_r50-d8_512x1024_40k_cityscapes", "--set", "resize=64")


def called(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    returned = run([str(one) for one in arguments])
    captured = capsys.readouterr()
    assert returned == code, captured.err
    return captured.out, captured.err


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network in mmsegmentation's layout."""
    path = tmp_path_factory.mktemp("published") / "iter_40000.pth"
    network = lively(Segmentor("NL", classes=19))
    torch.save({"meta": {"mmcv_version": "1.0", "CLASSES": ["road"] * 19}, "state_dict": network.state_dict()}, path)
    return path


@pytest.fixture
def registered(file: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """The registry knows the file's hash."""
    real = entries()["mmseg/nonlocal_r50-d8_512x1024_40k_cityscapes"]
    settings = {**real.settings, "resize": "64"}
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = Entry(**{**real.__dict__, "sha256": digest[:8], "settings": settings, "flaw": "is a small one"})
    monkeypatch.setattr("nlprobe.checkpoints.registry.entries", lambda: {entry.name: entry})
    return entry


def test_inspect_says_what_a_file_is_and_what_would_be_measured(
    file: Path, registered: Entry, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = called(capsys, "inspect", file)
    assert "a file of torch.save" in err
    assert "meta: CLASSES, mmcv_version" in err
    assert "project: mmsegmentation: NLHead on a ResNet of 4 blocks, 19 classes" in err
    assert f"registry: {registered.name}, trained on Cityscapes, published mIoU 78.24" in err
    assert "FLAWED: is a small one" in err
    assert "head.context" in out
    assert "scale=inv_sqrt" in out
    held = json.loads(called(capsys, "inspect", file, "--format", "json")[0])
    assert held["file"]["registry"] == registered.name
    assert [site["site"] for site in held["sites"]] == ["head.context"]


def test_inspect_says_what_an_unknown_file_leaves_open(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = called(capsys, "inspect", file, code=2)
    assert "its weights do not tell: mode, scale, align_corners, order, mean, std, resize" in err
    assert "`mode=embedded_gaussian|dot_product`" in err
    assert "--set KEY=VALUE" in err
    out, _ = called(capsys, "inspect", file, *LIKE)
    assert "head.context" in out


def test_stats_measures_it_with_the_entrys_preprocessing(
    file: Path, registered: Entry, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--data", photographs, "--limit", 1, "--device", "cpu", "--format", "json")
    out, err = called(
        capsys, "stats", "--ckpt", file, *flags, "--baseline", "init-all", "--baseline", "init-block", "--draws", 1
    )
    held = json.loads(out)
    (site,) = held["sites"]
    assert (site["site"], site["model"]) == ("head.context", registered.name)
    assert set(site["quantities"]) == {"input", "key", "query", "prod", "att", "output"}
    assert [entry["status"] for entry in held["audit"]] == ["passed"]
    assert "mmsegmentation, mmseg/nonlocal_r50-d8_512x1024_40k_cityscapes, published mIoU 78.24; FLAWED" in err
    assert "shorter side 64" in err
    by_hand = json.loads(called(capsys, "stats", "--ckpt", file, *flags, "--set", "scale=none")[0])
    assert by_hand["sites"][0]["quantities"]["att"]["mean"] != site["quantities"]["att"]["mean"]
    assert by_hand["sites"][0]["quantities"]["prod"]["mean"] == site["quantities"]["prod"]["mean"]


def test_viz_draws_it(
    file: Path, registered: Entry, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph = photographs / "china.jpg"
    called(capsys, "viz", "--ckpt", file, "--image", photograph, "--out", tmp_path / "figure", "--device", "cpu")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_file_of_timm_is_opened_by_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gcresnext26ts_256-e414378b.pth"
    torch.save(timm.create_model("gcresnext26ts").state_dict(), path)
    real = entries()["timm/gcresnext26ts.ch_in1k"]
    entry = Entry(**{**real.__dict__, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:8]})
    monkeypatch.setattr("nlprobe.checkpoints.registry.entries", lambda: {entry.name: entry})
    out, err = called(capsys, "inspect", path, "--format", "csv")
    assert "registry: timm/gcresnext26ts.ch_in1k, trained on ImageNet, published top-1 78.44" in err
    assert "timm's data configuration, input 256x256" in err
    assert len(out.splitlines()) == 1 + 8  # a context in every residual block
    assert "score it with that library" in called(capsys, "eval", "--ckpt", path, "--data", tmp_path, code=2)[1]


def test_networks_for_clips_measure_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, videos = tmp_path / "epoch_150.pth", tmp_path / "videos"
    torch.save({"meta": {}, "state_dict": lively(Recogniser("slowonly")).state_dict()}, path)
    videos.mkdir()
    write_video(videos / "a.mp4", count=9)
    like = "mmaction2/slowonly_nl_embedded_gaussian_r50_4x16x1_150e_kinetics400_rgb"
    chosen = [text for one in (f"like={like}", "resize=32", "crop=32", "interval=2") for text in ("--set", one)]
    out, err = called(capsys, "stats", "--ckpt", path, *chosen, "--data", videos, "--device", "cpu", "--format", "json")
    assert "4 frames, stride 2; shorter side 32" in err
    held = json.loads(out)
    sites = ["layer2.0", "layer2.2", "layer3.0", "layer3.2", "layer3.4"]
    assert [site["site"] for site in held["sites"]] == [f"{site}:after_block" for site in sites]
    assert all(set(site["quantities"]) >= {"input", "key", "query", "prod", "att", "output"} for site in held["sites"])
    assert {entry["status"] for entry in held["audit"]} == {"passed"}
    assert (
        "scores no networks for video" in called(capsys, "eval", "--ckpt", path, *chosen, "--data", videos, code=2)[1]
    )


CITYSCAPES = (
    "road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain sky person rider car truck "
    "bus train motorcycle bicycle"
)


@pytest.mark.slow
def test_eval_scores_it_as_its_published_score_was_got(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_miniature_cityscapes(tmp_path / "data", train=1, val=2)
    path = tmp_path / "iter_80000.pth"
    names = [name.replace("_", " ") for name in CITYSCAPES.split()]
    torch.save({"meta": {"CLASSES": names}, "state_dict": lively(Segmentor("GC", classes=19)).state_dict()}, path)
    chosen = ("--set", "like=gcnet_r50-d8_769x769_40k_cityscapes", "--set", "window=64", "--set", "stride=43")
    arguments = ("eval", "--ckpt", path, *chosen, "--data", data, "--device", "cpu", "--format", "json")
    out, err = called(capsys, *arguments)
    assert "windows of 64" in err
    whole, _ = called(capsys, *arguments, "--window", 0)
    (one,), (other,) = json.loads(out), json.loads(whole)
    assert 0 < one["miou"] != other["miou"]
    torch.save({"meta": {"CLASSES": names[::-1]}, "state_dict": torch.load(path)["state_dict"]}, path)
    assert "they differ, for one in `their order`" in called(capsys, *arguments, code=4)[1]


def test_answers_that_nobody_asks_for_are_refused(
    file: Path, checkpoint: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = called(capsys, "inspect", file, *LIKE, "--set", "recurrence=2", code=2)[1]
    assert "does not ask for `recurrence`" in err
    err = called(capsys, "stats", "--ckpt", checkpoint, "--set", "scale=none", "--data", photographs, code=2)[1]
    assert "--set is for checkpoints of other projects" in err
    err = called(capsys, "inspect", file, "--set", "scale", code=2)[1]
    assert "`--set scale` sets nothing" in err


def test_a_file_of_nobody_is_refused_with_the_names_that_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"some.weight": torch.ones(2)}, tmp_path / "x.pth")
    err = called(capsys, "inspect", tmp_path / "x.pth", code=4)[1]
    assert "project: none that nlprobe reads" in err
    assert "names its weights as no project does that nlprobe reads: `some.weight`" in err


def test_the_published_checkpoints_are_listed_and_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = called(capsys, "zoo", "--published", "--project", "mmseg", "--block", "NL", "--data", "city", "*r101*769*")
    assert "2 checkpoints" in out
    assert "mIoU 79.40" in out
    rows = list(csv.DictReader(io.StringIO(called(capsys, "zoo", "--published", "--format", "csv")[0])))
    assert len(rows) == len(entries())
    assert rows[0]["settings"].startswith("align_corners=false")
    assert "add --published" in called(capsys, "zoo", "--data", "COCO", code=2)[1]
    assert "leave them out" in called(capsys, "zoo", "--published", "--table", "4", code=2)[1]
    assert "did you mean `Cityscapes`" in called(capsys, "zoo", "--published", "--data", "citiscapes", code=2)[1]
