"""Records → figures, for papers: vector text, one scale where maps are compared, the data beside every picture."""

from nlprobe.plots.activations import activation_data, draw_activations
from nlprobe.plots.attention import attention_data, draw_attention
from nlprobe.plots.curves import curve_data, draw_curves
from nlprobe.plots.distances import distance_data, draw_distances
from nlprobe.plots.emergence import draw_emergence, emergence_data
from nlprobe.plots.save import FORMATS, save_figure
from nlprobe.plots.selectivity import draw_selectivity, selectivity_data
from nlprobe.plots.style import style

__all__ = [
    "FORMATS",
    "activation_data",
    "attention_data",
    "curve_data",
    "distance_data",
    "draw_activations",
    "draw_attention",
    "draw_curves",
    "draw_distances",
    "draw_emergence",
    "draw_selectivity",
    "emergence_data",
    "save_figure",
    "selectivity_data",
    "style",
]
