"""Replacing the attention of a trained network by something else, to see whether it matters."""

from nlprobe.intervention.intervening import INTERVENTIONS, Intervention, intervene

__all__ = ["INTERVENTIONS", "Intervention", "intervene"]
