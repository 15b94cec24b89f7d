"""Figures that matplotlib draws: curves, charts and contact sheets of images."""
