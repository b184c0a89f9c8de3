"""Where blocks are inserted, and the words for what cannot be."""

import json

import pytest

from nlprobe.blocks import ContextConfig, NonLocalConfig
from nlprobe.errors import ConfigError
from nlprobe.models import Insertion


def test_all_means_every_block_of_the_stage() -> None:
    assert Insertion(NonLocalConfig(), "c4").indices(6) == (0, 1, 2, 3, 4, 5)


def test_negative_indices_count_from_the_end() -> None:
    assert Insertion(NonLocalConfig(), "c4", (-2,)).indices(6) == (4,)
    assert Insertion(NonLocalConfig(), "c4", (5, -6, 2)).indices(6) == (0, 2, 5)


@pytest.mark.parametrize("index", [6, -7])
def test_an_index_outside_of_the_stage_names_the_range(index: int) -> None:
    with pytest.raises(ConfigError, match=rf"`c4` has 6 residual blocks, so there is no block `{index}`\n.*-6 to 5"):
        Insertion(NonLocalConfig(), "c4", (index,)).indices(6)


def test_a_block_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="names a residual block of `c4` twice"):
        Insertion(NonLocalConfig(), "c4", (-2, 4)).indices(6)


@pytest.mark.parametrize("blocks", ["some", (), (True,)])
def test_blocks_are_all_or_a_tuple_of_integers(blocks: str | tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="`blocks` of an insertion cannot be"):
        Insertion(NonLocalConfig(), "c4", blocks)


def test_unknown_stages_and_places_come_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"`c6`(.|\n)*`c5`"):
        Insertion(NonLocalConfig(), "c6")
    with pytest.raises(ConfigError, match=r"`after_ad`(.|\n)*`after_add`"):
        Insertion(NonLocalConfig(), "c4", place="after_ad")


@pytest.mark.parametrize(
    "insertion",
    [
        Insertion(NonLocalConfig(instantiation="concat", sub_sample="pool_then_project"), "c4", (-2,), "after_add"),
        Insertion(ContextConfig.gc(4), "c5", "all", "after_1x1"),
        Insertion(ContextConfig.snl(), "c2", (0, 2), "after_block"),
    ],
)
def test_it_survives_a_trip_through_json(insertion: Insertion) -> None:
    assert Insertion.from_dict(json.loads(json.dumps(insertion.as_dict()))) == insertion


def test_a_misspelt_or_missing_key_is_an_error() -> None:
    described = Insertion(NonLocalConfig(), "c4").as_dict()
    with pytest.raises(ConfigError, match=r"`plase`(.|\n)*`place`"):
        Insertion.from_dict({**described, "plase": "after_add"})
    with pytest.raises(ConfigError, match=r"`reductoin`(.|\n)*`reduction`"):
        Insertion.from_dict({**described, "block": {**described["block"], "reductoin": 2}})
    del described["stage"]
    with pytest.raises(ConfigError, match="without `stage`"):
        Insertion.from_dict(described)
