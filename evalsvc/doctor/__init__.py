"""Checks of an installation, a suite and a layout before an evaluation."""
