"""The flags that commands share."""

from pathlib import Path

import click
import pytest
import torch

from nlprobe.commands.options import Chosen, DeviceType, format_option, network_options, resolve_device
from nlprobe.errors import ConfigError


def test_auto_takes_a_device_that_is_there() -> None:
    device = resolve_device("auto")
    assert torch.zeros(1, device=device).device.type == device.type


def test_the_named_device_is_taken() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("count", "name", "cause", "remedy"),
    [
        (0, "cuda", "there is no CUDA device", "use `--device cpu`"),
        (1, "cuda:1", "there is 1 CUDA device here", "use `cuda:0`;"),
        (4, "cuda:7", "there are 4 CUDA devices here", "use `cuda:0` to `cuda:3`"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, count: int, name: str, cause: str, remedy: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ConfigError) as caught:
        resolve_device(name)
    assert f"`--device {name}`" in caught.value.cause
    assert cause in caught.value.cause
    assert remedy in caught.value.remedy


def test_a_missing_mps_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no MPS device"):
        resolve_device("mps")


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:3", "mps", "CPU"])
def test_device_names_are_understood(name: str) -> None:
    assert DeviceType().convert(name, None, None) == name.lower()


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:a", "0", ""])
def test_other_device_names_are_not(name: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a device"):
        DeviceType().convert(name, None, None)


def test_a_command_may_narrow_its_formats() -> None:
    @click.command()
    @format_option("json", ("json", "csv"))
    def command(format: str) -> None: ...

    (option,) = command.params
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == ("json", "csv")
    assert option.default == "json"


def test_the_networks_come_as_one_argument() -> None:
    taken: list[tuple[Chosen, int]] = []

    @click.command()
    @network_options()
    @click.option("--other", default=3)
    def command(chosen: Chosen, other: int) -> None:
        """Words of help."""
        taken.append((chosen, other))

    arguments = ["--model", "timm:a", "--ckpt", "run", "--model", "hf:b", "--weights", "w.pth", "--size", "32"]
    command.main(arguments, standalone_mode=False)
    expected = Chosen((Path("run"),), ("timm:a", "hf:b"), (), (Path("w.pth"),), size=32)
    assert taken == [(expected, 3)]
    assert command.help == "Words of help."
    assert {parameter.name for parameter in command.params} > {"checkpoints", "models", "labels", "weights", "other"}


def test_a_command_may_do_without_some_of_their_flags() -> None:
    @click.command()
    @network_options(without=("size", "mean", "std"))
    @click.option("--size", default=7)
    def command(chosen: Chosen, size: int) -> None:
        assert (chosen.size, size) == (None, 7)

    command.main([], standalone_mode=False)
    assert "mean" not in {parameter.name for parameter in command.params}
