"""Published weights by name: what they are called, where they are looked for, and what is said without a network."""

from pathlib import Path
from urllib.error import URLError

import huggingface_hub
import pytest
import timm
import torch
import torchvision

from nlprobe.errors import CheckpointError, ConfigError
from nlprobe.libraries.published import is_published, published

V1 = torchvision.models.ResNet50_Weights.IMAGENET1K_V1


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and no network."""

    def no_network(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.parametrize("source", ["torchvision:resnet50.IMAGENET1K_V1", "torchvision:ResNet50_Weights.IMAGENET1K_V1"])
def test_torchvisions_weights_have_two_names(source: str) -> None:
    weights = published(source)
    assert weights.source == "torchvision:ResNet50_Weights.IMAGENET1K_V1"
    assert weights.url == V1.url
    assert weights.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", ["resnet50", "ResNet50_Weights", "ResNet50_Weights.DEFAULT"])
def test_without_a_version_it_is_torchvisions_default(name: str) -> None:
    assert published(f"torchvision:{name}").url == torchvision.models.ResNet50_Weights.DEFAULT.url


def test_a_file_in_torchs_cache_is_taken_without_the_network(caches: Path) -> None:
    weights = published("torchvision:resnet50.IMAGENET1K_V1")
    assert weights.cached() is None
    path = caches / "torch" / "checkpoints" / "resnet50-0676ba61.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    assert weights.cached() == weights.fetch() == path


def test_without_a_network_the_error_says_what_to_fetch_by_hand() -> None:
    with pytest.raises(CheckpointError) as error:
        published("torchvision:resnet50.IMAGENET1K_V1").fetch()
    assert "IMAGENET1K_V1` is not on this machine and cannot be fetched: <urlopen error Name" in error.value.cause
    assert f"fetch {V1.url} by hand and give the file: --pretrained resnet50-0676ba61.pth" in error.value.remedy
    with pytest.raises(CheckpointError) as error:
        published("timm:resnext101_32x4d.gluon_in1k").fetch()
    address = "https://huggingface.co/timm/resnext101_32x4d.gluon_in1k/resolve/main/model.safetensors"
    assert error.value.remedy == f"fetch {address} by hand and give the file: --pretrained model.safetensors"


def test_what_is_fetched_is_checked_against_the_hash_in_its_name(caches: Path, monkeypatch) -> None:
    asked = []

    def download(url: str, target: str, hash_prefix: str | None = None) -> None:
        asked.append((url, hash_prefix))
        Path(target).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert published("torchvision:resnet50.IMAGENET1K_V1").fetch().read_bytes() == b"weights"
    assert asked == [(V1.url, "0676ba61")]


def test_timms_weights_are_those_that_timm_would_take() -> None:
    first = timm.models.get_pretrained_cfg("resnext101_32x4d")
    assert published("timm:resnext101_32x4d").source == f"timm:resnext101_32x4d.{first.tag}"


def test_a_file_in_the_hubs_cache_is_taken_without_the_network(caches: Path) -> None:
    weights = published("timm:resnet101s.gluon_in1k")
    assert weights.cached() is None
    folder = caches / "hub" / "models--timm--resnet101s.gluon_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "model.safetensors").write_bytes(b"weights")
    assert weights.fetch().read_bytes() == b"weights"


@pytest.mark.parametrize(
    "source, words",
    [
        ("torchvision:resnet5", "no network `resnet5`\ndid you mean"),
        ("torchvision:ResNet5_Weights.DEFAULT", "no weights `ResNet5_Weights`\ndid you mean"),
        ("torchvision:ResNet50_Weights.V9", r"no weights `ResNet50_Weights\.V9`\n"),
        ("torchvision:fcn_resnet50", "is no classification network"),
        ("timm:resnext101", "timm has no network `resnext101`"),
        ("timm:resnext101_32x4d.none", "timm has no weights `none`"),
    ],
)
def test_unknown_names_come_with_close_ones(source: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        published(source)


def test_only_the_two_prefixes_make_a_name() -> None:
    assert is_published("torchvision:resnet50")
    assert not is_published("weights/torchvision.pth")
    assert not is_published("C:/weights.pth")
    assert not is_published("torchvision")
