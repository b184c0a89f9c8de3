"""Tables of class selectivity and of activations by class."""

import math

import numpy as np

from nlprobe.stats import class_selectivity
from nlprobe.stats.class_summaries import ActivationSummary, SelectivitySummary
from nlprobe.stats.intervals import Estimate
from nlprobe.tables import activation_table, selectivity_table

NAN = math.nan


def selectivity(model: str, module: str, difference: Estimate | None = None) -> SelectivitySummary:
    found = class_selectivity(np.array([[1.0, 0.0, 3.0], [1.0, 0.0, 1.0]]))
    mean = Estimate(0.25, 0.2, 0.3, 9)
    return SelectivitySummary(model, module, found, mean, (0.1, 0.2, 0.4), Estimate(0.05, 0.04, 0.06, 9), 9, difference)


def test_networks_stand_below_each_other_at_every_module() -> None:
    less = Estimate(-0.02, -0.03, -0.01, 9)
    found = [selectivity("a", "m1"), selectivity("a", "m2"), selectivity("b", "m1", less), selectivity("b", "m2", less)]
    rows = selectivity_table(found).records()
    assert [(row["module"], row["model"]) for row in rows] == [("m1", "a"), ("m1", "b"), ("m2", "a"), ("m2", "b")]
    assert "difference" not in rows[0]
    assert (rows[1]["difference"], rows[1]["difference_low"], rows[1]["difference_high"]) == (-0.02, -0.03, -0.01)
    assert (rows[0]["channels"], rows[0]["dead"], rows[0]["classes"], rows[0]["images"]) == (3, 1, 2, 9)
    assert (rows[0]["index"], rows[0]["index_low"], rows[0]["quartile_1"], rows[0]["shuffled_high"]) == (
        *(0.25, 0.2, 0.1, 0.06),
    )


def test_what_does_not_exist_is_left_out_of_print() -> None:
    text = selectivity_table([selectivity("a", "m")]).render()
    assert "less the first" not in text
    assert "signed" not in text
    assert "9 images of 2 classes." in text


def test_spread_and_share_have_their_intervals_and_constant_channels_are_counted() -> None:
    one = ActivationSummary(
        *("gc", "layer3.0:after_1x1", "transform"),
        means=np.ones((2, 3)),
        counts=np.array([4, 5]),
        overall=np.ones(3),
        chosen=(0,),
        low=np.ones((1, 3)),
        high=np.ones((1, 3)),
        shares=np.array([0.1, NAN, 0.3]),
        share=Estimate(0.2, 0.1, 0.3, 9),
        spread=Estimate(0.5, 0.4, 0.6, 9),
        images=9,
    )
    (row,) = activation_table([one]).records()
    assert (row["constant"], row["share"], row["share_high"], row["spread_low"]) == (1, 0.2, 0.3, 0.4)
    assert (row["largest_share"], row["classes"], row["images"]) == (0.3, 2, 9)
