"""The zoo by name and by the paper's rows."""

import pytest
import torch

from nlprobe.blocks import CBAMConfig, GatherExciteConfig, NonLocalConfig, SqueezeExcitationConfig
from nlprobe.errors import ConfigError
from nlprobe.models import build, entry, names, paper_distances, rows

TABLE_1 = {"baseline", "Gaussian", "E-Gaussian", "Dot product", "Concat"}
TABLE_8A = {"baseline", "+1 NL", "+1 SNL", "+1 GC", "+all GC"}
TABLE_8B = {"baseline", "avg+scale", "avg+add", "att+scale", "att+add"}
TABLE_9 = {"baseline", "SENet", "CBAM", "GCNet"}


@pytest.mark.parametrize(
    "table, labels",
    [
        ("1", TABLE_1),
        ("2", {"c3", "c4", "c5"}),
        ("3", {"E-Gaussian", "Gaussian"}),
        ("8a", TABLE_8A),
        ("8b", TABLE_8B),
        ("9", TABLE_9),
    ],
)
def test_every_imagenet_row_of_the_table_has_a_model(table: str, labels: set[str]) -> None:
    assert {row.row for _, row in rows() if row and row.table == table and row.dataset == "ImageNet"} == labels


def test_rows_come_in_the_papers_order_and_then_what_no_table_prints() -> None:
    tables = [row.table if row else "" for _, row in rows()]
    assert tables == sorted(tables, key=lambda table: (table == "", int(table.rstrip("abcdef") or 0), table))
    assert [row.row for _, row in rows() if row and row.table == "8a"] == [
        "baseline",
        "+1 NL",
        "+1 SNL",
        "+1 GC",
        "+all GC",
    ]


def test_every_name_is_listed_once_and_found() -> None:
    assert len(set(names())) == len(names())
    assert all(entry(name).name == name for name in names())
    assert {each.name for each, _ in rows()} == set(names())


def test_every_imagenet_model_has_a_miniature_twin_with_the_same_sites_of_the_same_kind() -> None:
    full = [name for name in names() if name.startswith("imagenet/")]
    twins = {entry(name).full_size: entry(name) for name in names() if name.startswith("miniature-imagenet/")}
    assert set(twins) == set(full)
    for name in full:
        ours, twin = entry(name).config.insertions, twins[name].config.insertions
        assert [(each.stage, each.blocks, each.place) for each in ours] == [
            (each.stage, each.blocks, each.place) for each in twin
        ]
        assert [type(each.block) for each in ours] == [type(each.block) for each in twin]


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("miniature-imagenet/")])
def test_a_miniature_network_runs_on_a_small_image(name: str, device: torch.device) -> None:
    network = build(name, seed=0).to(device).eval()
    with torch.no_grad():
        assert network(torch.randn(1, *entry(name).input_shape, device=device)).shape == (1, 10)


def test_a_miniature_non_local_block_sees_64_positions_at_c4_and_as_many_keys() -> None:
    network = build("miniature-imagenet/resnet-nl", seed=0).eval()
    shapes: list[torch.Size] = []
    (site,) = network.sites()
    block = network.get_submodule(site.replace(":", "."))
    block.attention.register_forward_pre_hook(lambda module, inputs: shapes.extend(each.shape[1:] for each in inputs))
    with torch.no_grad():
        network(torch.randn(1, 3, 128, 128))
    assert site == "layer3.0:after_add"
    assert shapes == [(64, 32)] * 3


def test_the_blocks_have_the_papers_settings_at_the_papers_sites() -> None:
    nl = entry("imagenet/resnet50-nl").config
    assert nl.sites() == ["layer3.4:after_add"]
    assert nl.insertions[0].block == NonLocalConfig(
        "embedded_gaussian", reduction=2, scale="none", sub_sample="pool_then_project", norm="batch", zero_init=True
    )
    assert entry("imagenet/resnet50-nl-c3").config.sites() == ["layer2.2:after_add"]
    assert entry("imagenet/resnet50-nl-c5").config.sites() == ["layer4.1:after_add"]
    everywhere = entry("imagenet/resnet50-gc-all").config.sites()
    assert len(everywhere) == 4 + 6 + 3
    assert all(site.endswith(":after_1x1") for site in everywhere)


def test_the_blocks_of_others_stand_in_every_residual_block_of_all_stages() -> None:
    for suffix, block in (("se", SqueezeExcitationConfig()), ("cbam", CBAMConfig())):
        config = entry(f"imagenet/resnet50-{suffix}").config
        assert len(config.sites()) == 3 + 4 + 6 + 3
        assert all(site.endswith(":after_1x1") for site in config.sites())
        assert all(insertion.block == block for insertion in config.insertions)


@pytest.mark.parametrize(
    "name, sides", [("imagenet/resnet50", (56, 28, 14, 7)), ("miniature-imagenet/resnet", (32, 16, 8, 4))]
)
def test_gather_excite_is_made_for_the_maps_of_its_stage(name: str, sides: tuple[int, ...]) -> None:
    for variant in ("theta", "theta_plus"):
        insertions = entry(f"{name}-ge-{variant.replace('_', '-')}").config.insertions
        assert [insertion.block for insertion in insertions] == [
            GatherExciteConfig(variant, size=(side, side)) for side in sides
        ]
    assert {each.block for each in entry(f"{name}-ge-theta-minus").config.insertions} == {GatherExciteConfig()}


def test_a_network_made_for_one_size_says_so_of_another() -> None:
    network = build("miniature-imagenet/resnet-ge-theta", seed=0).eval()
    with pytest.raises(ConfigError, match="was made for maps of 32 x 32 and got 40 x 40"):
        network(torch.randn(1, 3, 160, 160))


def test_every_model_has_a_recipe_and_a_task() -> None:
    tasks = {
        "imagenet": "classification",
        "coco": "detection",
        "cityscapes": "segmentation",
        "kinetics": "action_recognition",
    }
    for name in names():
        assert entry(name).task == tasks[name.partition("/")[0].removeprefix("miniature-")]
        assert entry(name).recipe.startswith(name.partition("/")[0])


def test_the_papers_distances_of_a_model_come_as_printed_with_their_table() -> None:
    distances = paper_distances("imagenet/resnet50-nl")
    assert {quantity: text for quantity, (text, _) in distances.items()} == {
        "input": "0.301",
        "key": "0.234",
        "query": "0.156",
        "prod": "0.340",
        "att": "0.115",
        "output": "0.074",
    }
    assert list(distances) == ["input", "key", "query", "prod", "att", "output"]
    assert {row.table for _, row in distances.values()} == {"3"}


def test_the_distances_of_a_stage_and_of_concat_have_no_key_and_query() -> None:
    assert {quantity: text for quantity, (text, _) in paper_distances("imagenet/resnet50-nl-c5").items()} == {
        "input": "0.257",
        "att": "0.033",
        "output": "0.013",
    }
    assert paper_distances("imagenet/resnet50-nl-concat")["att"][0] == "0.090"


def test_a_twin_has_the_distances_of_its_full_size_model_and_a_plain_network_none() -> None:
    assert paper_distances("miniature-imagenet/resnet-nl-dot") == paper_distances("imagenet/resnet50-nl-dot")
    assert paper_distances("imagenet/resnet50") == {}


def test_an_unknown_name_comes_with_close_matches() -> None:
    with pytest.raises(ConfigError, match="did you mean `miniature-imagenet/resnet-gc`"):
        paper_distances("miniature-imagenet/resnet-cg")
