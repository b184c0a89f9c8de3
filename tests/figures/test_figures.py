"""The studies of Figures 6 and 7 on networks that nobody trained."""

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from figures import figure6, figure7, study
from nlprobe.checkpoints import save_checkpoint
from nlprobe.data import Preprocessing
from nlprobe.errors import ConfigError, DataError
from nlprobe.models import build

STUDIES = [Path(study.__file__).parent, Path(study.__file__).parent.parent / "analyses"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A baseline and a network with GC, each of two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for seed in (0, 1):
        for kind, name in (("baseline", "resnet"), ("gc", "resnet-gc-all")):
            model = build(f"miniature-imagenet/{name}", seed=seed)
            found[f"{kind}{seed}"] = folder / f"{kind}{seed}.safetensors"
            for path, parameter in model.named_parameters():
                if path.endswith("expand.weight"):
                    parameter.data.add_(0.1)
            described = {"config": model.config.as_dict(), "preprocessing": Preprocessing(64, 64).as_dict()}
            save_checkpoint(found[f"{kind}{seed}"], model, described)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three images."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for number, name in enumerate(("dark", "light")):
        (root / name).mkdir()
        for image in range(3):
            pixels = generator.integers(100 * number, 100 * number + 100, (64, 64, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{image}.png")
    return root


def run(command, *arguments: object) -> str:
    result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_figure_7_keeps_intervals_over_images_and_ranges_over_seeds_apart(runs, data, tmp_path) -> None:
    pairs = ["--baseline", runs["baseline0"], "--gc", runs["gc0"], "--baseline", runs["baseline1"], "--gc", runs["gc1"]]
    assert "Class selectivity index over trainings" in run(figure7.command, *pairs, "--data", data, "--out", tmp_path)
    numbers = pd.read_csv(tmp_path / "figure7_numbers.csv")
    seeds = pd.read_csv(tmp_path / "figure7_seeds.csv")
    assert numbers["model"].unique().tolist() == ["baseline 1", "GC 1", "baseline 2", "GC 2"]
    for row in seeds.to_dict("records"):
        own = numbers[numbers["module"] == row["module"]].set_index("model")["index"]
        baselines, gcs = own[["baseline 1", "baseline 2"]].to_numpy(), own[["GC 1", "GC 2"]].to_numpy()
        assert row["baseline"] == pytest.approx(baselines.mean())
        assert (row["gc_low"], row["gc_high"]) == pytest.approx((gcs.min(), gcs.max()))
        assert row["difference"] == pytest.approx((gcs - baselines).mean())
    assert {path.suffix for path in tmp_path.glob("figure7.*")} == {".png", ".pdf", ".svg", ".csv"}


def test_one_pair_has_no_range_over_seeds(runs, data, tmp_path) -> None:
    pair = ["--baseline", runs["baseline0"], "--gc", runs["gc0"], "--data", data, "--stage", "c5", "--out", tmp_path]
    run(figure7.command, *pair)
    seeds = pd.read_csv(tmp_path / "figure7_seeds.csv")
    assert seeds["module"].tolist() == ["layer4.0", "layer4.1"]
    assert not any(column.endswith("_low") for column in seeds)
    with pytest.raises(ConfigError, match="2 baselines and 1 networks with GC"):
        run(figure7.command, *pair, "--baseline", runs["baseline1"])


def test_figure_6_draws_the_last_block_of_each_stage_and_counts_all(runs, data, tmp_path) -> None:
    run(figure6.command, "--gc", runs["gc0"], "--data", data, "--class", "light", "--out", tmp_path)
    lines, numbers = (pd.read_csv(tmp_path / name) for name in ("figure6.csv", "figure6_numbers.csv"))
    shown = [f"{name}:after_1x1" for name in ("layer2.1", "layer3.1", "layer4.0", "layer4.1")]
    assert lines["module"].unique().tolist() == shown
    assert len(numbers) == 6
    assert set(lines["class"]) == {"light", "all classes"}


def test_errors_are_told_in_two_lines_with_their_exit_code(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["figure6", "--gc", str(tmp_path / "gone"), "--data", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as stopped:
        study.run(figure6.command)
    assert stopped.value.code == DataError.exit_code
    err = capsys.readouterr().err
    assert "error: `" in err
    assert "hint: " in err


@pytest.mark.parametrize("path", [path for folder in STUDIES for path in sorted(folder.rglob("*.py"))], ids=str)
def test_studies_use_the_public_library_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "nlprobe":
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            assert "commands" not in parts
            assert "cli" not in parts
            assert not any(part.startswith("_") for part in parts)
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith(("nlprobe.commands", "nlprobe.cli")) for alias in node.names)
