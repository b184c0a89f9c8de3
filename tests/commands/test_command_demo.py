"""`nlprobe demo`: the whole way in a few steps."""

import json
from pathlib import Path

import pytest

from nlprobe.cli import run
from nlprobe.data import write_miniature_imagenet

QUICK = ["--epochs", "1", "--images", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo that has run, on a handful of pictures."""
    out = tmp_path_factory.mktemp("demo") / "out"
    write_miniature_imagenet(out / "data", train=128, val=40)
    assert run(["demo", "--out", str(out), *QUICK]) == 0
    return out


@pytest.mark.slow
def test_the_demo_leaves_a_network_tables_and_heatmaps(finished: Path) -> None:
    assert (finished / "run" / "best.safetensors").is_file()
    for end in ("txt", "tex", "md", "csv", "json"):
        assert (finished / "stats" / f"table.{end}").stat().st_size > 0
    for end in ("png", "pdf", "svg", "csv", "npz"):
        assert (finished / "figures" / f"attention.{end}").stat().st_size > 0
    payload = json.loads((finished / "stats" / "results.json").read_text())
    assert {site["kind"] for site in payload["baseline"]} == {"init-block", "init-all"}
    assert len(payload["sites"][0]["quantities"]) == 6


@pytest.mark.slow
def test_the_demo_does_nothing_twice_and_prints_the_table(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = {
        path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.parent.name in ("stats", "figures")
    }
    assert run(["demo", "--out", str(finished), *QUICK]) == 0
    captured = capsys.readouterr()
    assert "at initialisation" in captured.out
    assert "nlprobe stats" not in captured.err
    assert all(path.stat().st_mtime_ns == then for path, then in written.items())


@pytest.mark.slow
def test_another_demo_is_not_mixed_into_the_folder(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--out", str(finished), *QUICK, "--seed", "1"]) == 2
    assert "`seed` was 0 and is 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "model", ["miniature-imagenet/resnet", "miniature-cityscapes/resnet-nl", "imagenet/resnet50-nl"]
)
def test_other_networks_are_refused_before_anything_is_written(model: str, tmp_path: Path, capsys) -> None:
    assert run(["demo", "--out", str(tmp_path / "out"), "--model", model]) == 2
    assert f"`{model}` is no miniature classifier with an attention block" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
