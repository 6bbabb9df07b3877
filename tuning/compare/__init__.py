"""Comparisons: many runs side by side on Ray Tune."""
