"""`nlprobe simplify`: cheap blocks where queries do not matter, and a refusal where they do."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from nlprobe.checkpoints import read_checkpoint, save_checkpoint
from nlprobe.cli import run
from nlprobe.data import Preprocessing, open_dataset, write_miniature_imagenet
from nlprobe.models import build, names
from nlprobe.simplification import block_at

NAME = "miniature-imagenet/resnet-nl"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_imagenet(tmp_path_factory.mktemp("data"), train=20, val=30)


def write_network(path: Path, data: Path, spread: float, gain: float = 1) -> Path:
    """A network whose queries differ by so much."""
    model = build(NAME, seed=0)
    (site,) = model.sites()
    block = block_at(model, site)[1]
    torch.manual_seed(1)
    for name, layer in (("key", block.key), ("value", block.value), ("output", block.output)):
        nn.init.normal_(layer.weight, std={"key": 0.3, "value": 0.3, "output": 0.3}[name])
    nn.init.normal_(block.query.weight, std=spread)
    nn.init.normal_(block.query.bias, std=0.3)
    nn.init.constant_(block.norm.weight, gain)
    transform, dataset = Preprocessing(64, 64).transform(), open_dataset(data)
    with torch.no_grad():  # so that not every image gets the same class
        model.eval().fc.bias.sub_(model(torch.stack([transform(sample.image) for sample in dataset])).mean(0))
    described = {
        "model": NAME,
        "config": model.config.as_dict(),
        "preprocessing": Preprocessing(64, 64).as_dict(),
        "classes": dataset.classes,
        "seed": 0,
    }
    save_checkpoint(path, model, described)
    return path


def test_a_network_that_does_not_depend_on_its_queries_becomes_a_model_of_the_zoo(
    data: Path, tmp_path: Path, capsys
) -> None:
    path = write_network(tmp_path / "nl.safetensors", data, spread=0.0)
    flags = ["--ckpt", str(path), "--data", str(data), "--device", "cpu", "--calibrate", "20", "--format", "json"]
    assert run(["simplify", *flags, "--tolerance", "0.01", "--out", str(tmp_path / "snl")]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert [site["simplified"] for site in payload["sites"]] == [True]
    first, closed, refined = payload["versions"]
    assert closed["block_error"]["layer3.0:after_add"]["mean"] < 1e-3
    assert refined["params"] < first["params"]
    assert closed["effects"]["top1"]["difference"]["mean"] == 0
    found = read_checkpoint(tmp_path / "snl")
    assert found.metadata["model"] == "miniature-imagenet/resnet-snl"
    assert found.metadata["model"] in names()
    assert found.metadata["simplified_from"]["model"] == NAME
    assert run(["eval", "--ckpt", str(tmp_path / "snl"), "--data", str(data), "--format", "json"]) == 0
    (scored,) = json.loads(capsys.readouterr().out)
    assert scored["top1"] == pytest.approx(refined["effects"]["top1"]["after"]["mean"])


def test_a_bottleneck_has_fewer_parameters_and_distillation_comes_nearer_or_is_left_out(
    data: Path, tmp_path: Path, capsys
) -> None:
    path = write_network(tmp_path / "nl.safetensors", data, spread=0.02)
    flags = ["--ckpt", str(path), "--data", str(data), "--device", "cpu", "--calibrate", "20", "--format", "json"]
    more = ["--tolerance", "1", "--reduction", "4", "--distil", "3", "--batch-size", "5"]
    assert run(["simplify", *flags, *more]) == 0
    out, err = capsys.readouterr()
    versions = {version["name"]: version for version in json.loads(out)["versions"]}
    assert versions["bottleneck, r = 4"]["params"] < versions["SNL, closed form"]["params"]
    if "distilled" in versions:
        error = {
            name: version["block_error"]["layer3.0:after_add"]["mean"]
            for name, version in versions.items()
            if version["block_error"]
        }
        assert error["distilled"] < error["bottleneck, r = 4"]
    else:
        assert "came no nearer" in err
    assert "nothing was written; --out keeps the network" in err


def test_a_network_that_depends_on_its_queries_is_not_simplified_and_the_reason_is_given(
    data: Path, tmp_path: Path, capsys
) -> None:
    path = write_network(tmp_path / "nl.safetensors", data, spread=0.5, gain=20)
    flags = ["--ckpt", str(path), "--data", str(data), "--device", "cpu", "--tolerance", "0"]
    assert run(["simplify", *flags, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert "stays as it is: with the mean map, top1 changes by" in err
    assert "no site can be simplified within the tolerance" in err
    assert "stays" in out
    assert not (tmp_path / "out").exists()


def test_networks_without_non_local_blocks_are_refused(data: Path, tmp_path: Path, capsys) -> None:
    model = build("miniature-imagenet/resnet-gc", seed=0)
    described = {
        "model": "miniature-imagenet/resnet-gc",
        "config": model.config.as_dict(),
        "preprocessing": Preprocessing(64, 64).as_dict(),
        "classes": open_dataset(data).classes,
    }
    save_checkpoint(tmp_path / "gc.safetensors", model, described)
    flags = ["--ckpt", str(tmp_path / "gc.safetensors"), "--data", str(data), "--tolerance", "0.01"]
    assert run(["simplify", *flags]) == 2
    assert "the network has no non-local block" in capsys.readouterr().err
