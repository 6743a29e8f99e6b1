"""plait trains multimodal models in stages: planned before, stopped anywhere, continued exactly."""

__version__ = "0.1.0"
