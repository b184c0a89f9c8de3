"""Which networks a command line asks for, and what they are called."""

from pathlib import Path

import pytest
from torch import nn

from nlprobe.commands import sources
from nlprobe.commands.options import Chosen
from nlprobe.commands.sources import Named, read_networks
from nlprobe.data import Preprocessing
from nlprobe.errors import ConfigError
from nlprobe.libraries import Drawn, Given, Loaded, Network, Settings

Opened = list[tuple[str, Path | None, Settings]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """What is opened, without opening it."""
    asked: Opened = []

    def open_network(source: str, weights: Path | None, settings: Settings) -> Network:
        asked.append((source, weights, settings))
        return Network(source, nn.Identity(), Drawn(settings.seed))

    monkeypatch.setattr(sources, "open_network", open_network)
    return asked


def labels(*models: str, given: tuple[str, ...] = (), checkpoints: tuple[Path, ...] = ()) -> list[str]:
    return [one.label for one in read_networks(Chosen(checkpoints, models, given))]


def test_a_network_is_called_by_its_label_else_its_name_else_all_of_it(opened: Opened) -> None:
    assert labels("timm:a", "hf:some/bert/") == ["a", "bert"]
    assert labels("timm:a", "torchvision:a", "hf:x/b", "hf:y/b", "timm:c") == [
        "timm:a", "torchvision:a", "hf:x/b", "hf:y/b", "c",
    ]  # fmt: skip
    assert labels("timm:a", "timm:a", given=("first", "second")) == ["first", "second"]


def test_checkpoints_come_first_and_share_the_labels(checkpoint: Path, opened: Opened) -> None:
    assert labels("timm:a", checkpoints=(checkpoint,)) == ["miniature-imagenet/resnet-nl", "a"]
    assert labels("timm:a", checkpoints=(checkpoint,), given=("ours", "theirs")) == ["ours", "theirs"]
    with pytest.raises(ConfigError, match="2 networks and 1 labels"):
        labels("timm:a", checkpoints=(checkpoint,), given=("ours",))
    with pytest.raises(ConfigError, match="two networks have the same name"):
        labels("timm:a", checkpoints=(checkpoint,), given=("a", "a"))


def test_weights_go_to_those_that_take_them_in_order(opened: Opened) -> None:
    read_networks(Chosen(models=("timm:a", "hf:b", "python:c:d"), weights=(Path("1"), Path("2"))), seed=4)
    assert [(source, weights) for source, weights, _ in opened] == [
        ("timm:a", Path("1")),
        ("hf:b", None),
        ("python:c:d", Path("2")),
    ]
    assert {settings.seed for *_, settings in opened} == {4}
    with pytest.raises(ConfigError, match="1 --weights and 2 --model that take them"):
        read_networks(Chosen(models=("timm:a", "timm:b"), weights=(Path("1"),)))


def test_preprocessing_goes_to_ones_own_networks_alone(opened: Opened) -> None:
    chosen = Chosen(models=("timm:a", "python:b:c"), size=32, mean="0.5", std="0.1,0.2, 0.3")
    read_networks(chosen)
    expected = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert [settings.preprocessing for *_, settings in opened] == [None, expected]


def test_only_what_can_be_drawn_anew_has_a_network_before_training() -> None:
    twin = nn.Linear(2, 2)

    def named(network: Network) -> Named:
        return Named("n", network)

    loaded = Network("timm:a", nn.Identity(), Loaded("a.pth"), redrawn=lambda: twin)
    assert named(loaded).untrained() is twin
    with pytest.raises(ConfigError, match="has random weights"):
        named(Network("timm:a", nn.Identity(), Drawn(0))).untrained()
    with pytest.raises(ConfigError, match="nobody but `python:a:b` knows"):
        named(Network("python:a:b", nn.Identity(), Given())).untrained()
