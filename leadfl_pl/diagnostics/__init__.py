"""What a run says about attacks beyond its accuracies."""

from leadfl_pl.diagnostics.curvature import Curvature

__all__ = ["Curvature"]
