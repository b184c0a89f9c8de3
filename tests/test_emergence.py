"""A step's lines: measured without a trace in the network, kept to the bit, and taken back."""

import pandas as pd
import pytest
import torch

from nlprobe.emergence import COLUMNS, measure_step, read_emergence, rewind, write_emergence
from nlprobe.errors import DataError
from nlprobe.models import build
from nlprobe.probe import probe
from nlprobe.stats.records import QUANTITIES

IMAGES = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def batches():
    for first in range(0, len(IMAGES), 2):
        yield IMAGES[first : first + 2], [f"image{number}" for number in range(first, first + 2)]


def network(name: str = "miniature-imagenet/resnet-nl", *, trained: bool = True) -> torch.nn.Module:
    model = build(name, seed=0)
    if trained:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if ".after_" in parameter_name:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def measure(model: torch.nn.Module, step: int = 50) -> pd.DataFrame:
    return measure_step(model, batches(), step=step, steps_per_epoch=20, images_per_step=8)


def test_modes_running_statistics_and_random_generators_stay_as_they_were() -> None:
    model = network().train()
    frozen = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)][::2]
    for module in frozen:
        module.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    measure(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_modes_come_back_when_measuring_fails() -> None:
    model = network().train()

    def broken():
        yield IMAGES[:2], ["a", "b"]
        raise DataError("gone", "bring it back")

    with pytest.raises(DataError, match="gone"):
        measure_step(model, broken(), step=0, steps_per_epoch=1, images_per_step=1)
    assert all(module.training for module in model.modules())


def test_the_lines_are_the_means_of_the_records_in_evaluation_mode() -> None:
    model = network()
    lines = measure(model.train()).set_index(["quantity", "measure"])
    with torch.no_grad(), probe(model.eval()) as reference:
        for images, ids in batches():
            with reference.images(ids):
                model(images)
    records = reference.frame()
    for quantity in QUANTITIES:
        own = records[records["quantity"] == quantity]
        line = lines.loc[(quantity, "avg_dist")]
        assert line["mean"] == own["avg_dist"].mean()
        assert line["low"] < line["mean"] < line["high"]
        assert line["n"] == 6
    att, output = (records[records["quantity"] == name] for name in ("att", "output"))
    for name in ("entropy", "n_eff", "shared"):
        assert lines.loc[("att", name), "mean"] == att[name].mean()
    for name in ("update", "mean_map_error"):
        assert lines.loc[("output", name), "mean"] == output[name].mean()
    assert lines.loc[("prod", "logit_std"), "mean"] > 0
    shares = lines.loc["output"].loc[["constant", "context", "pairwise_part"], "mean"]
    assert shares.sum() == pytest.approx(1)
    assert set(lines["step"]) == {50}
    assert set(lines["epoch"]) == {2.5}
    assert set(lines["images_seen"]) == {400}
    assert set(lines["n_keys"]) == {16}


def test_the_output_of_a_block_that_does_nothing_yet_is_undefined_on_every_image() -> None:
    lines = measure(network(trained=False)).set_index(["quantity", "measure"])
    line = lines.loc[("output", "avg_dist")]
    assert pd.isna(line["mean"])
    assert line["n"] == 0
    assert lines.loc[("output", "update"), "mean"] == 0
    assert lines.loc[("att", "avg_dist"), "mean"] > 0


def test_what_a_global_context_block_fixes_is_marked() -> None:
    lines = measure(network("miniature-imagenet/resnet-gc")).set_index(["quantity", "measure"])
    assert lines.loc[("att", "avg_dist"), "by_construction"]
    assert not lines.loc[("input", "avg_dist"), "by_construction"]
    assert "prod" not in lines.index.get_level_values("quantity")


def test_the_file_gives_back_every_bit(tmp_path) -> None:
    path = tmp_path / "emergence.csv"
    lines = measure(network())
    write_emergence(path, lines)
    pd.testing.assert_frame_equal(read_emergence(path), lines, check_exact=True)
    again = tmp_path / "again.csv"
    write_emergence(again, read_emergence(path))
    assert again.read_bytes() == path.read_bytes()


def test_rewinding_drops_later_steps_only(tmp_path) -> None:
    path = tmp_path / "emergence.csv"
    rewind(path, 3)
    assert not path.exists()
    lines = measure(network(), step=2)
    write_emergence(path, pd.concat([lines, lines.assign(step=4), lines.assign(step=6)]))
    rewind(path, 4)
    assert list(read_emergence(path)["step"].unique()) == [2, 4]
    pd.testing.assert_frame_equal(read_emergence(path).iloc[: len(lines)], lines, check_exact=True)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", ",".join(COLUMNS[:-1]) + "\n"])
def test_another_table_is_refused_in_words(tmp_path, text: str) -> None:
    path = tmp_path / "emergence.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"emergence.csv. (cannot be read|is no table of emergence)"):
        read_emergence(path)
