"""A public name cannot vanish, or appear, without this list being changed on purpose."""

import importlib

import pytest

import nlprobe

SURFACE = {
    "AttentionModule",
    "CaptureError",
    "NlprobeError",
    "attention_map",
    "avg_dist",
    "build",
    "init_block",
    "intervene",
    "load",
    "probe",
}


def test_the_public_names_are_the_known_ones() -> None:
    assert set(nlprobe.__all__) == SURFACE
    assert set(dir(nlprobe)) >= SURFACE


@pytest.mark.parametrize("name", sorted(SURFACE))
def test_every_public_name_can_be_called_and_is_documented(name: str) -> None:
    assert callable(getattr(nlprobe, name))
    assert getattr(nlprobe, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'prob'"):
        nlprobe.prob  # noqa: B018


@pytest.mark.parametrize(
    "package",
    [
        "blocks",
        "models",
        "checkpoints",
        "data",
        "libraries",
        "training",
        "stats",
        "probe",
        "intervention",
        "simplification",
        "plots",
        "tables",
    ],
)
def test_sub_packages_list_what_they_export(package: str) -> None:
    module = importlib.import_module(f"nlprobe.{package}")
    assert module.__doc__
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
