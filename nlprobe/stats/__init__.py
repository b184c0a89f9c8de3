"""Streaming kernels for cosine distances and attention maps: no N×N matrix, float64 where it counts."""

from nlprobe.stats.class_share import class_share
from nlprobe.stats.class_sums import ClassSums, channel_means
from nlprobe.stats.composed_maps import composed_map_statistics, composed_mean_map, composed_rows
from nlprobe.stats.concat_maps import concat_map_statistics, concat_product_statistics
from nlprobe.stats.cross_maps import (
    cross_apply,
    cross_flat_distance,
    cross_key_mass,
    cross_map_statistics,
    cross_product_statistics,
    cross_rows,
)
from nlprobe.stats.distance import RowStatistics, avg_dist, row_statistics, row_statistics_beside_prefix
from nlprobe.stats.dot_maps import dot_map_statistics
from nlprobe.stats.flat_maps import flat_distance
from nlprobe.stats.key_mass import concat_key_mass, dot_key_mass, joined_key_mass, softmax_key_mass
from nlprobe.stats.logit_spread import logit_spread
from nlprobe.stats.logits import Logits
from nlprobe.stats.map_metrics import METRICS, map_metrics
from nlprobe.stats.maps import apply_map, map_rows, mean_map
from nlprobe.stats.masks import Mask
from nlprobe.stats.products import product_statistics, product_statistics_beside_prefix
from nlprobe.stats.results import MapStatistics, ProductStatistics
from nlprobe.stats.selectivity import ClassSelectivity, class_selectivity
from nlprobe.stats.single_map import single_map_mass, single_map_statistics
from nlprobe.stats.softmax_maps import (
    softmax_map_statistics,
    softmax_statistics,
    softmax_statistics_beside_prefix,
)
from nlprobe.stats.softmax_rows import softmax_apply, softmax_mean_map, softmax_rows
from nlprobe.stats.unary_maps import unary_map_statistics

__all__ = [
    "METRICS",
    "ClassSelectivity",
    "ClassSums",
    "Logits",
    "MapStatistics",
    "Mask",
    "ProductStatistics",
    "RowStatistics",
    "apply_map",
    "avg_dist",
    "channel_means",
    "class_selectivity",
    "class_share",
    "composed_map_statistics",
    "composed_mean_map",
    "composed_rows",
    "concat_key_mass",
    "concat_map_statistics",
    "concat_product_statistics",
    "cross_apply",
    "cross_flat_distance",
    "cross_key_mass",
    "cross_map_statistics",
    "cross_product_statistics",
    "cross_rows",
    "dot_key_mass",
    "dot_map_statistics",
    "flat_distance",
    "joined_key_mass",
    "logit_spread",
    "map_metrics",
    "map_rows",
    "mean_map",
    "product_statistics",
    "product_statistics_beside_prefix",
    "row_statistics",
    "row_statistics_beside_prefix",
    "single_map_mass",
    "single_map_statistics",
    "softmax_apply",
    "softmax_key_mass",
    "softmax_map_statistics",
    "softmax_mean_map",
    "softmax_rows",
    "softmax_statistics",
    "softmax_statistics_beside_prefix",
    "unary_map_statistics",
]
