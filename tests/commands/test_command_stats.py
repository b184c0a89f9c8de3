"""`nlprobe stats`, in process."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from checkpoints_on_disk import write_checkpoint
from torch import Tensor

from nlprobe import measuring
from nlprobe.cli import run
from nlprobe.models import ResNet
from nlprobe.stats.records import KEY_COLUMNS, QUANTITIES, VALUE_COLUMNS


def stats(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """Run the command and return its stdout; on failure, its stderr."""
    returned = run(["stats", "--device", "cpu", *map(str, arguments)])
    captured = capsys.readouterr()
    assert returned == code, captured.err
    return captured.err if code else captured.out


def test_json_holds_all_six_quantities_with_intervals_and_an_audit_that_passes(checkpoint, photographs, capsys) -> None:
    payload = json.loads(stats(capsys, "--ckpt", checkpoint, "--data", photographs, "--format", "json"))
    assert payload["schema"] == 1
    (site,) = payload["sites"]
    assert (site["site"], site["block"]) == ("layer3.0:after_add", "non_local")
    assert site["settings"]["instantiation"] == "embedded_gaussian"
    assert set(site["quantities"]) == set(QUANTITIES)
    for estimate in site["quantities"].values():
        assert estimate["n"] == 5
        assert estimate["low"] <= estimate["mean"] <= estimate["high"]
    assert math.isclose(sum(site["energy"].values()), 1)
    assert [entry["status"] for entry in payload["audit"]] == ["passed"]
    assert payload["audit"][0]["error"] < payload["audit"][0]["tolerance"]
    assert payload["data"]["images"] == 5
    assert payload["baseline"] == []
    assert payload["not_measured"] == []


def test_a_folder_gets_records_tables_and_results_with_the_results_last(
    checkpoint, photographs, tmp_path, capsys
) -> None:
    out = tmp_path / "measured"
    table = stats(capsys, "--ckpt", checkpoint, "--data", photographs, "--out", out, "--baseline", "init-block")
    names = {"run.toml", "records.csv", "results.json"}
    names |= {f"table.{end}" for end in ("txt", "tex", "md", "csv", "json")}
    names |= {f"distances.{end}" for end in ("png", "pdf", "svg", "csv")}
    assert {path.name for path in out.iterdir()} == names
    records = pd.read_csv(out / "records.csv", keep_default_na=True)
    assert list(records.columns) == ["model", "kind", "draw", *KEY_COLUMNS, *VALUE_COLUMNS]
    assert len(records) == 5 * 6 * (1 + 5)
    assert set(records["image"]) == {path.name for path in photographs.iterdir()}
    payload = json.loads((out / "results.json").read_text())
    assert [site["kind"] for site in payload["baseline"]] == ["init-block"]
    assert "init-block (5 draws)" in table
    trained = records[(records["kind"] == "trained") & (records["quantity"] == "att")]
    assert payload["sites"][0]["quantities"]["att"]["mean"] == pytest.approx(trained["avg_dist"].mean())


def test_a_run_is_replayed_by_its_own_settings(checkpoint, photographs, tmp_path, capsys) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    stats(capsys, "--ckpt", checkpoint, "--data", photographs, "--out", first, "--seed", 3, "--centred")
    stats(capsys, "--config", first / "run.toml", "--out", second)
    assert (first / "records.csv").read_bytes() == (second / "records.csv").read_bytes()
    assert pd.read_csv(second / "records.csv")["centred_dist"].notna().sum() == 5 * 4


def test_several_checkpoints_make_one_table_with_paired_differences(checkpoint, photographs, tmp_path, capsys) -> None:
    other = write_checkpoint(tmp_path / "gc.safetensors", "miniature-imagenet/resnet-gc-all")
    arguments = ["--ckpt", checkpoint, "--ckpt", other, "--label", "NL", "--label", "GC", "--data", photographs]
    payload = json.loads(stats(capsys, *arguments, "--format", "json"))
    assert [site["model"] for site in payload["sites"]] == ["NL"] + ["GC"] * 6
    assert {(one["first"], one["second"]) for one in payload["differences"]} == {("NL", "GC")}
    assert any("no prod" in sentence for sentence in payload["not_measured"])
    table = stats(capsys, *arguments, "--format", "md")
    assert "0 (by construction)" in table
    assert table.count("GC") == 1
    by_site = stats(capsys, *arguments, "--format", "md", "--by-site")
    assert "layer4.1:after" in by_site


def test_the_network_before_training_is_measured_and_its_output_undefined(checkpoint, photographs, capsys) -> None:
    payload = json.loads(
        stats(capsys, "--ckpt", checkpoint, "--data", photographs, "--baseline", "init-all", "--format", "json")
    )
    (initial,) = payload["baseline"]
    assert initial["kind"] == "init-all"
    assert initial["quantities"]["output"]["mean"] is None
    assert initial["quantities"]["att"]["mean"] < 0.1


def test_the_papers_row_is_set_beside(checkpoint, photographs, capsys) -> None:
    table = stats(capsys, "--ckpt", checkpoint, "--data", photographs, "--paper", "--format", "md")
    (row,) = [line for line in table.splitlines() if "paper, " in line]
    for printed in ("0.301", "0.234", "0.156", "0.340", "0.115", "0.074"):
        assert printed in row


def test_every_format_goes_to_stdout_alone(checkpoint, photographs, capsys) -> None:
    for kind, mark in (("tex", "\\toprule"), ("md", "|"), ("csv", "model,"), ("table", "cosine distance")):
        assert mark in stats(capsys, "--ckpt", checkpoint, "--data", photographs, "--limit", 2, "--format", kind)


def test_a_block_whose_forward_is_broken_exits_with_3(
    checkpoint, photographs, broken_forward, tmp_path, capsys
) -> None:
    out = tmp_path / "measured"
    error = stats(capsys, "--ckpt", checkpoint, "--data", photographs, "--out", out, code=3)
    assert "`layer3.0:after_add`" in error
    assert "is off by" in error
    assert not out.exists()


def test_what_is_missing_or_wrong_is_refused_with_its_code(checkpoint, photographs, tmp_path, capsys) -> None:
    assert "is not there" in stats(capsys, "--ckpt", tmp_path / "no.safetensors", "--data", photographs, code=4)
    assert "is not there" in stats(capsys, "--ckpt", checkpoint, "--data", tmp_path / "none", code=4)
    error = stats(capsys, "--ckpt", checkpoint, "--data", photographs, "--site", "layer3.0:after_ad", code=2)
    assert "did you mean `layer3.0:after_add`" in error
    error = stats(capsys, "--ckpt", checkpoint, "--ckpt", checkpoint, "--data", photographs, code=2)
    assert "given twice" in error
    out = tmp_path / "there"
    out.mkdir()
    (out / "precious.txt").write_text("keep me")
    error = stats(capsys, "--ckpt", checkpoint, "--data", photographs, "--out", out, code=2)
    assert "is already there" in error
    assert (out / "precious.txt").read_text() == "keep me"


def test_an_unreadable_photograph_is_named_and_left_out(checkpoint, photographs, tmp_path, capsys) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in photographs.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.jpg").write_bytes((photographs / "china.jpg").read_bytes()[:200])
    payload = json.loads(stats(capsys, "--ckpt", checkpoint, "--data", folder, "--format", "json"))
    assert payload["sites"][0]["quantities"]["att"]["n"] == 5
    assert payload["not_measured"] == ["image broken.jpg could not be read and is left out"]


def test_a_dry_run_tells_the_plan_and_writes_nothing(checkpoint, photographs, tmp_path, capsys) -> None:
    plan = stats(capsys, "--ckpt", checkpoint, "--data", photographs, "--out", tmp_path / "measured", "--dry-run")
    assert "layer3.0:after_add: non_local, 16 queries, 16 keys, 64 channels" in plan
    assert "results.json" in plan
    assert list(tmp_path.iterdir()) == []


def test_chosen_quantities_are_measured_alone(checkpoint, photographs, capsys) -> None:
    arguments = ["--ckpt", checkpoint, "--data", photographs, "--quantity", "att", "--quantity", "output"]
    payload = json.loads(stats(capsys, *arguments, "--format", "json"))
    assert set(payload["sites"][0]["quantities"]) == {"att", "output"}
    assert "key: not asked for" in payload["not_measured"]


def test_the_records_do_not_depend_on_the_batch_size(checkpoint, photographs, tmp_path: Path, capsys) -> None:
    frames = []
    for size in (1, 4):
        out = tmp_path / str(size)
        stats(capsys, "--ckpt", checkpoint, "--data", photographs, "--out", out, "--batch-size", size)
        frames.append(pd.read_csv(out / "records.csv").set_index(["image", "quantity"])["avg_dist"])
    pd.testing.assert_series_equal(frames[0], frames[1].loc[frames[0].index], rtol=1e-4, atol=1e-8)


def test_an_interrupted_measurement_goes_on_to_the_same_records(
    checkpoint, photographs, tmp_path, capsys, monkeypatch
) -> None:
    arguments = ["--ckpt", checkpoint, "--data", photographs, "--batch-size", 1, "--baseline", "init-block"]
    stats(capsys, *arguments, "--out", tmp_path / "whole")
    monkeypatch.setattr(measuring, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(measuring, "SHARE_OF_SAVING", float("inf"))
    forward, calls = ResNet.forward, []

    def interrupted(self: ResNet, images: Tensor) -> Tensor:
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, images)

    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(ResNet, "forward", interrupted)
        stats(capsys, *arguments, "--out", out, code=130)
    assert not out.exists()
    assert "holds an interrupted measurement" in stats(capsys, *arguments, "--out", out, code=2)
    error = stats(capsys, *arguments, "--out", out, "--resume", "--seed", 9, code=2)
    assert "`seed` was 0 and is 9" in error
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(ResNet, "forward", lambda self, images: calls.append(len(images)) or forward(self, images))
        stats(capsys, *arguments, "--out", out, "--resume")
    assert calls == [1, 1]
    assert (out / "records.csv").read_bytes() == (tmp_path / "whole" / "records.csv").read_bytes()
    payloads = [json.loads((folder / "results.json").read_text()) for folder in (out, tmp_path / "whole")]
    assert payloads[0]["sites"] == payloads[1]["sites"]
    assert payloads[0]["baseline"] == payloads[1]["baseline"]
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "parts"}
