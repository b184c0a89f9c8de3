"""What records of clips say of space and time, held to all pairs of rows and written-out maps."""

import pandas as pd
import pytest
import torch
from probe_reference import brute_block, brute_split
from test_video_probe import INSTANTIATIONS, clips, network, seen_by
from torch import nn

import nlprobe
from nlprobe.blocks import ContextConfig, DisentangledConfig, NonLocalConfig
from nlprobe.stats.records import FRAME_COLUMNS, SPACE_TIME_COLUMNS
from nlprobe.stats.summary import summarise
from nlprobe.tables import distance_table

FRAMES = 3


def measured(model: nn.Module, batch: torch.Tensor, **options: object) -> pd.DataFrame:
    with nlprobe.probe(model, metrics=("space_time",), **options) as probe, torch.no_grad():
        model(batch)
    assert {audit.status for audit in probe.audit()} == {"passed"}
    return probe.frame()


@pytest.mark.parametrize(
    ("instantiation", "sub_sample"),
    [*((name, "none") for name in INSTANTIATIONS), ("embedded_gaussian", "pool_then_project")],
)
def test_every_quantity_is_split_as_its_rows_are(instantiation: str, sub_sample: str) -> None:
    model = network(NonLocalConfig(instantiation, sub_sample=sub_sample))
    batch = clips(1, FRAMES)
    frame = measured(model, batch, precision="float64")
    for site, x in seen_by(model, batch).items():
        block = model.get_submodule(site.replace(":", "."))
        for clip in range(len(batch)):
            of_clip = frame[(frame["site"] == site) & (frame["image"] == str(clip))].set_index("quantity")
            rows = brute_block(block, x[clip : clip + 1])
            for quantity, of_quantity in rows.items():
                expected = brute_split(of_quantity, FRAMES)
                for name in expected:
                    value = of_clip.loc[quantity, f"avg_dist_{name}"]
                    assert value == pytest.approx(expected[name], rel=1e-5, abs=1e-10), (site, quantity, name)
            maps = rows["att"].abs().unflatten(-1, (FRAMES, -1)).sum(-1).unflatten(0, (FRAMES, -1))  # (t, p, t)
            kept = (maps / maps.sum(-1, keepdim=True)).diagonal(dim1=0, dim2=2).nanmean()  # a concat row may be zero
            assert of_clip.loc["att", "frame_mass"] == pytest.approx(float(kept), rel=1e-5)
            assert of_clip.loc["att", "flat_frame_mass"] == pytest.approx(1 / FRAMES)


@pytest.mark.parametrize("block", [ContextConfig.snl(), ContextConfig.gc(4), ContextConfig.se_with_ln(4)])
def test_one_map_for_all_differs_nowhere_and_leaves_each_frame_its_share(block: ContextConfig) -> None:
    frame = measured(network(block), clips()).set_index("quantity")
    for column in SPACE_TIME_COLUMNS:
        assert (frame.loc["att", column] == 0).all()
        assert (frame.loc["input", column] > 0).all()
        assert frame.loc["output", column].gt(0).all() or block.fusion == "add"
    assert frame.loc["att", "frame_mass"].tolist() == pytest.approx([1 / 3] * len(frame.loc["att"]))


def test_the_pairwise_map_and_the_map_that_is_used_are_split_each() -> None:
    frame = measured(network(DisentangledConfig()), clips())
    maps = frame[frame["quantity"] == "att"].set_index("head")
    assert maps.loc[["0", "pairwise"], list(SPACE_TIME_COLUMNS)].notna().all(axis=None)
    whole = maps["avg_dist_same_frame"] / 3 + maps["avg_dist_other_frames"] * 2 / 3
    assert whole.loc[["0", "pairwise"]].to_numpy() == pytest.approx(
        maps.loc[["0", "pairwise"], "avg_dist"].to_numpy(), rel=1e-4
    )


def test_pictures_and_what_nobody_asked_for_have_no_such_columns() -> None:
    model = network(NonLocalConfig())
    with nlprobe.probe(model) as probe, torch.no_grad():
        model(clips(1))
    picture = nlprobe.build("miniature-imagenet/resnet-nl").eval()
    for frame in (probe.frame(), measured(picture, torch.randn(1, 3, 64, 64))):
        assert frame[[*SPACE_TIME_COLUMNS, *FRAME_COLUMNS]].isna().all(axis=None)


def test_a_table_has_the_split_of_each_quantity_where_it_was_measured() -> None:
    frame = measured(network(NonLocalConfig()), clips())
    table = distance_table([summarise(frame, model="nl", block="nl")]).render("table", width=120)
    assert "distance, same place at all times" in table
    assert "frame mass" in table
    plain = frame.drop(columns=[*SPACE_TIME_COLUMNS, *FRAME_COLUMNS]).assign(
        **dict.fromkeys([*SPACE_TIME_COLUMNS, *FRAME_COLUMNS], float("nan"))
    )
    assert "frame" not in distance_table([summarise(plain, model="nl", block="nl")]).render("table", width=120)
