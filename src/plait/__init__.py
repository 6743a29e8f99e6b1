"""Train multimodal models in stages. A run can be stopped at any step and continues exactly where it stopped."""

__version__ = "0.1.0"
