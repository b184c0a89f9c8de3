"""Names and selection of sites, and what is refused."""

import pytest
import torch
from torch import nn

from nlprobe.blocks import ContextBlock, ContextConfig, NonLocal
from nlprobe.errors import ConfigError
from nlprobe.probe import find_sites
from nlprobe.probe.sites import site_name


class Residual(nn.Module):
    def __init__(self, place: str, block: nn.Module) -> None:
        super().__init__()
        self.add_module(place, block)


def network() -> nn.Module:
    return nn.ModuleDict(
        {
            "layer3": nn.Sequential(Residual("after_add", NonLocal(8)), Residual("conv", nn.Conv2d(8, 8, 1))),
            "layer4": nn.Sequential(Residual("after_1x1", ContextBlock(8, ContextConfig.gc(4)))),
            "head": NonLocal(8),
        }
    )


def test_an_inserted_block_is_named_by_its_residual_block_and_place() -> None:
    assert [site.name for site in find_sites(network())] == ["layer3.0:after_add", "layer4.0:after_1x1", "head"]
    assert site_name("backbone.layer3.4.after_add") == "backbone.layer3.4:after_add"
    assert site_name("") == "."


def test_sites_are_chosen_by_glob_list_or_predicate() -> None:
    model = network()
    assert [site.name for site in find_sites(model, "layer*")] == ["layer3.0:after_add", "layer4.0:after_1x1"]
    assert [site.name for site in find_sites(model, ["head", "layer4*"])] == ["layer4.0:after_1x1", "head"]
    assert [site.name for site in find_sites(model, lambda site: site.block == "context")] == ["layer4.0:after_1x1"]


def test_an_unknown_site_is_refused_with_close_names() -> None:
    with pytest.raises(ConfigError, match=r"did you mean `layer3\.0:after_add`"):
        find_sites(network(), "layer3.0:after_ad")
    with pytest.raises(ConfigError, match="chose no site"):
        find_sites(network(), lambda site: False)


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="no attention block"):
        find_sites(nn.Conv2d(3, 3, 1))


def test_a_compiled_model_has_the_sites_of_what_was_compiled() -> None:
    assert [site.name for site in find_sites(torch.compile(nn.Sequential(NonLocal(8))))] == ["0"]


def test_a_replicated_model_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"\.module"):
        find_sites(nn.DataParallel(NonLocal(8)))


def test_settings_are_told_for_every_site() -> None:
    site = find_sites(NonLocal(8))[0]
    assert site.block == "non_local"
    assert site.settings["instantiation"] == "embedded_gaussian"
    assert site.settings["channels"] == 8
