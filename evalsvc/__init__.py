"""Evaluation service for auto-regressive text-to-image models built on language models."""

__version__ = "0.1.0"
