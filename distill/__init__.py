"""Distil large summarization and translation models into small ones (library: models, data, losses)."""

__version__ = "0.1.0"
