"""The records of a map for all queries that stands beside the pairwise maps of a block."""

from dataclasses import replace

import torch

from nlprobe.probe.adapters.protocol import UnaryMap
from nlprobe.probe.measurement import Measurement, Value
from nlprobe.stats import Logits, single_map_statistics, unary_map_statistics
from nlprobe.stats.records import PAIRWISE_HEAD, UNARY_HEAD


def with_unary(pairwise: list[Measurement], logits: Logits, unary: UnaryMap) -> list[Measurement]:
    """The records of the rows that the block uses, of their pairwise part, and of the unary map.

    Args:
        pairwise: The record of the pairwise maps, of one head.
        logits: What these are the softmax of.
        unary: The map beside them.
    """
    entropy, n_eff = single_map_statistics(unary.map.clamp_min(torch.finfo(unary.map.dtype).tiny).log())
    fixed: dict[str, Value] = {"avg_dist": 0.0, "zero_rows": 0, "by_construction": True}
    single = Measurement("att", (UNARY_HEAD,), fixed | {"entropy": entropy, "n_eff": n_eff})
    if not unary.joined:
        return [*pairwise, single]
    rows = unary_map_statistics(logits, unary.map, unary.weights)
    joined = Measurement("att", ("0",), {name: value[:, 0] for name, value in vars(rows).items()})
    return [joined, *(replace(one, heads=(PAIRWISE_HEAD,)) for one in pairwise), single]
