"""Numeric functions of the metrics, without files, models and services."""
