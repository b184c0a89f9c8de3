"""Other blocks at single sites of a configuration."""

import pytest
import torch
from torch import nn

from nlprobe.blocks import ContextConfig, NonLocalConfig
from nlprobe.errors import ConfigError
from nlprobe.models import ResNetConfig, build, entry
from nlprobe.models.insertion import Insertion
from nlprobe.simplification import block_at, simplified, with_blocks, with_simplified

SNL = ContextConfig.snl()


def test_all_sites_changed_make_the_model_that_the_zoo_has_with_the_other_block() -> None:
    config = entry("imagenet/resnet50-nl").config
    assert with_blocks(config, dict.fromkeys(config.sites(), SNL)) == entry("imagenet/resnet50-snl").config
    config = entry("kinetics/slowonly50-nl").config
    assert with_blocks(config, dict.fromkeys(config.sites(), SNL)) == entry("kinetics/slowonly50-snl").config
    config = entry("cityscapes/resnet101-nl").config
    assert with_blocks(config, {"head.context": SNL}) == entry("cityscapes/resnet101-snl").config


def test_one_site_of_several_is_changed_and_the_others_keep_their_block() -> None:
    config = ResNetConfig(insertions=(Insertion(NonLocalConfig(), "c4", (0, 2, -1), "after_add"),))
    changed = with_blocks(config, {"layer3.2:after_add": SNL})
    assert changed.sites() == config.sites()
    network = build(changed, seed=0)
    kinds = [type(block_at(network, site)[1]).__name__ for site in changed.sites()]
    assert kinds == ["NonLocal", "ContextBlock", "NonLocal"]


def test_a_site_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no site `layer1.0:after_add`"):
        with_blocks(entry("imagenet/resnet50-nl").config, {"layer1.0:after_add": SNL})


def test_the_new_network_has_the_weights_of_the_old_one_and_the_new_block() -> None:
    old = build("miniature-imagenet/resnet-nl", seed=0).eval()
    (site,) = old.sites()
    block = block_at(old, site)[1]
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    made = simplified(block, torch.ones(block.query.out_features, dtype=torch.float64))
    new = with_simplified(old, {site: made})
    x = torch.randn(2, 3, 64, 64)
    swapped = build("miniature-imagenet/resnet-nl", seed=0).eval()
    swapped.load_state_dict(old.state_dict())
    path = block_at(swapped, site)[0]
    parent, _, name = path.rpartition(".")
    setattr(swapped.get_submodule(parent), name, made)
    with torch.no_grad():
        torch.testing.assert_close(new(x), swapped(x))
    assert isinstance(block_at(old, site)[1], type(block))
