"""`nlprobe viz`, in process."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nlprobe.cli import run


def viz(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """Run the command and return its stdout; on failure, its stderr."""
    returned = run(["viz", *map(str, arguments)])
    captured = capsys.readouterr()
    assert returned == code, captured.err
    return captured.err if code else captured.out


def test_photographs_of_any_shape_give_a_figure_in_three_formats_with_its_data(
    checkpoint, photographs, tmp_path, capsys
) -> None:
    out = tmp_path / "figure2"
    table = viz(capsys, "--ckpt", checkpoint, "--data", photographs, "--out", out, "--device", "cpu")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"figure2.{end}" for end in ("png", "pdf", "svg", "csv", "npz")
    }
    assert "china.jpg" in table
    data = pd.read_csv(tmp_path / "figure2.csv")
    assert data.groupby("image")["map"].nunique().to_dict() == dict.fromkeys(sorted(data["image"].unique()), 4)
    sums = data[data["map"] == "query 1"].groupby("image")["weight"].sum()
    assert np.allclose(sums, 1, atol=1e-4)
    assert data.groupby("image")["scale_limit"].nunique().eq(1).all()


def test_chosen_queries_are_drawn_where_they_were_asked_for(checkpoint, photographs, tmp_path, capsys) -> None:
    arguments = ["--ckpt", checkpoint, "--image", photographs / "china.jpg", "--query", "10,600", "--query", "50%,25%"]
    viz(capsys, "attention", *arguments, "--out", tmp_path / "one.png", "--difference", "--device", "cpu")
    data = pd.read_csv(tmp_path / "one.csv")
    queries = data[data["map"] != "mean"].drop_duplicates("map")
    assert list(zip(queries["query_y"], queries["query_x"], strict=True)) == [(10, 600), (213, 160)]
    assert not (tmp_path / "one.pdf").exists()
    with Image.open(tmp_path / "one.png") as figure:
        assert min(figure.size) > 300


def test_the_network_before_training_is_drawn_beside(checkpoint, photographs, tmp_path, capsys) -> None:
    arguments = ["--ckpt", checkpoint, "--image", photographs / "flower.jpg", "--initial", "--out", tmp_path / "f.png"]
    rows = json.loads(viz(capsys, *arguments, "--format", "json", "--device", "cpu"))
    assert len(rows) == 2


def test_bad_queries_are_refused_in_words(checkpoint, photographs, tmp_path, capsys) -> None:
    base = ["--ckpt", checkpoint, "--image", photographs / "china.jpg", "--out", tmp_path / "f", "--device", "cpu"]
    assert "no position" in viz(capsys, *base, "--query", "middle", code=2)
    assert "lies outside the image" in viz(capsys, *base, "--query", "427,0", code=2)
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_is_there_is_not_overwritten(checkpoint, photographs, tmp_path, capsys) -> None:
    (tmp_path / "f.csv").write_text("mine")
    base = ["--ckpt", checkpoint, "--image", photographs / "china.jpg", "--out", tmp_path / "f", "--device", "cpu"]
    assert "is already there" in viz(capsys, *base, code=2)
    assert (tmp_path / "f.csv").read_text() == "mine"
    viz(capsys, *base, "--force")


def test_the_audit_guards_figures_too(checkpoint, photographs, broken_forward, tmp_path, capsys) -> None:
    base = ["--ckpt", checkpoint, "--image", photographs / "china.jpg", "--out", tmp_path / "f", "--device", "cpu"]
    assert "is off by" in viz(capsys, *base, code=3)
    assert list(tmp_path.iterdir()) == []


VIT = ("--model", "python:own_networks:tiny_vit_with_transform", "--site", "blocks.1.attn")


@pytest.mark.parametrize(("choice", "said"), [((), "mean of 3 heads"), (("--head", 1), "head 1")])
def test_a_network_of_another_library_is_drawn_and_its_label_says_which_head(
    choice, said, photographs, tmp_path, capsys
) -> None:
    arguments = [*VIT, *choice, "--image", photographs / "china.jpg", "--query", "5,20", "--out", tmp_path / "f.png"]
    (row,) = json.loads(viz(capsys, *arguments, "--format", "json", "--device", "cpu"))
    assert row["model"].endswith(f", {said}")
    data = pd.read_csv(tmp_path / "f.csv")
    assert (data["row"].max(), data["column"].max()) == (3, 3)
    # The class token takes its share, and what is left is in units of 1/17.
    assert np.allclose(data["times_uniform"], data["weight"] * 17)


def test_adapters_reach_the_figure_and_what_is_none_is_refused(photographs, tmp_path, capsys) -> None:
    base = [*VIT, "--image", photographs / "china.jpg", "--out", tmp_path / "f.png", "--device", "cpu"]
    viz(capsys, *base, "--adapter", "python:own_networks:ADAPTERS")
    assert "is no adapter" in viz(capsys, *base, "--adapter", "python:own_networks:tiny_vit", "--force", code=2)
    assert "names no adapter" in viz(capsys, *base, "--adapter", "own_networks", "--force", code=2)
    assert "has no `ADAPTER`" in viz(capsys, *base, "--adapter", "python:own_networks:ADAPTER", "--force", code=2)


def test_steps_of_criss_cross_attention_are_drawn_composed_or_one_by_one(photographs, tmp_path, capsys) -> None:
    arguments = ["--model", "python:own_networks:criss_cross_with_transform", "--image", photographs / "china.jpg"]
    arguments += ["--query", "5,20", "--out", tmp_path / "f.png", "--device", "cpu", "--force"]
    reached = {}
    for choice, said in (((), "all steps composed"), (("--call", 0), "call 0"), (("--call", 1), "call 1")):
        (row,) = json.loads(viz(capsys, *arguments, *choice, "--format", "json"))
        assert row["model"].endswith(f", {said}")
        data = pd.read_csv(tmp_path / "f.csv")
        reached[said] = int((data.loc[data["map"] == "query 1", "weight"] > 0).sum())
    assert reached == {"all steps composed": 24, "call 0": 9, "call 1": 9}
    assert "has no call 2: it ran 2 times" in viz(capsys, *arguments, "--call", 2, code=2)
