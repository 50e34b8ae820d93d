"""Simulated data sets, and what the product says of them."""

from simulated import comparisons, gates, images, means
from simulated.cells import Cell

ALL: tuple[Cell, ...] = (*means.cells(), *comparisons.cells(), *images.cells(), *gates.cells())
