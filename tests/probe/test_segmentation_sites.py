"""Every context operator of the segmentation networks is found at its site, and agrees with its audit."""

import pytest
import torch

import nlprobe
from nlprobe.models import build, names

NAMES = [name for name in names() if name.startswith("miniature-cityscapes/resnet-")]


@pytest.mark.parametrize("name", NAMES)
def test_the_operator_is_measured_where_the_network_says_it_is(name: str) -> None:
    network = build(name, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():  # nothing stays the identity that it starts as
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        with nlprobe.probe(network) as probe:
            network(torch.randn(2, 3, 64, 96, generator=generator))
    assert [site.name for site in probe.sites] == network.sites()
    assert all(audit.errors and max(audit.errors.values()) < 1e-4 for audit in probe.audit())
    records = probe.frame()
    assert set(records["image"]) == {"0", "1"}
    assert {"input", "output", "att"} <= set(records["quantity"])
    assert records["avg_dist"].notna().all()
