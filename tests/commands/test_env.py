"""`nlprobe env`."""

import importlib.metadata
import json

import pytest
import torch

from nlprobe.cli import run


def test_versions_and_devices_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["env"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in out
    assert "devices" in out


def test_json_is_an_object_of_texts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["env", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nlprobe"] == importlib.metadata.version("nlprobe")
    assert found["numpy"] == importlib.metadata.version("numpy")
    assert found["devices"].startswith("cpu")
    assert all(isinstance(value, str) and value for value in found.values())


def test_an_extra_that_is_not_installed_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(package: str) -> str:
        if package == "scikit-learn":
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert run(["env", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["extra mini"] == "not installed: pip install 'nlprobe[mini]'"
