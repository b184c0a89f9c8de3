"""`nlprobe stats` of networks that take padded pictures."""

import json
from pathlib import Path

import pandas as pd
import pytest
from checkpoints_on_disk import write_checkpoint

from nlprobe.cli import run
from nlprobe.data import Preprocessing


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    padded = Preprocessing(40, 0, longest=72, pad=32)
    return write_checkpoint(tmp_path / "padded.safetensors", preprocessing=padded.as_dict())


def stats(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    returned = run(["stats", "--device", "cpu", *map(str, arguments)])
    captured = capsys.readouterr()
    assert returned == 0, captured.err
    return captured.out


def test_the_padding_is_left_out_and_the_range_of_positions_reported(checkpoint, photographs, tmp_path, capsys) -> None:
    out = tmp_path / "measured"
    table = stats(capsys, "--ckpt", checkpoint, "--data", photographs, "--out", out, "--baseline", "init-block")
    payload = json.loads((out / "results.json").read_text())
    (site,) = payload["sites"]
    records = pd.read_csv(out / "records.csv")
    att = records[(records["quantity"] == "att") & (records["kind"] == "trained")]
    valid, whole = (att[att["positions"] == positions] for positions in ("valid", "all"))
    assert len(valid) == len(whole) == 5
    assert (valid["n_queries"].to_numpy() < whole["n_queries"].to_numpy()).all()
    assert (valid["n_keys"].to_numpy() == whole["n_keys"].to_numpy()).all()
    assert site["positions"] == payload["baseline"][0]["positions"] == "valid"
    assert site["n_queries"] == [valid["n_queries"].min(), valid["n_queries"].max()]
    assert site["n_queries"][0] < site["n_queries"][1]
    assert site["quantities"]["att"]["mean"] == pytest.approx(valid["avg_dist"].mean())
    assert site["columns"]["padding_mass"]["mean"] == pytest.approx(valid["padding_mass"].mean())
    assert 0 < site["columns"]["padding_mass"]["mean"] < 1
    assert "Queries in the padding of images are left out, keys never." in table
    assert "padding mass" in table
    low, high = site["n_queries"]
    assert f"{low}–{high} queries" in table
    assert payload["audit"][0]["padding"].startswith("by its grid")


def test_the_padding_is_measured_on_request(checkpoint, photographs, capsys) -> None:
    arguments = ("--ckpt", checkpoint, "--data", photographs, "--format", "json", "--quantity", "att")
    (valid,), (whole,) = (
        json.loads(stats(capsys, *arguments, *more))["sites"] for more in ((), ("--positions", "all"))
    )
    assert (valid["positions"], whole["positions"]) == ("valid", "all")
    assert valid["n_queries"][1] < whole["n_queries"][1]
    assert valid["quantities"]["att"]["mean"] != whole["quantities"]["att"]["mean"]
    assert "Queries in the padding" not in stats(capsys, *arguments[:-4], "--positions", "all")
