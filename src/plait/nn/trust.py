"""Options for every load of published weights by transformers and diffusers: no code from a repository, and safetensors files alone.

Reading a pickled `.bin` file can run code in it. With these options the libraries refuse a repository that has nothing else.
"""

from typing import Any

CONFIG: dict[str, Any] = {"trust_remote_code": False}
"""Keyword arguments of `from_pretrained` for configurations and tokenizers of transformers."""
WEIGHTS: dict[str, Any] = {**CONFIG, "use_safetensors": True}
"""Keyword arguments of `from_pretrained` for models of transformers."""
DIFFUSERS: dict[str, Any] = {"use_safetensors": True}
"""Keyword arguments of `from_pretrained` for models of diffusers, which runs no code of a repository."""
