"""Ratios against peers and against the physical limit, each with its interval and its target."""
