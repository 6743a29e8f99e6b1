"""Options for every load of published weights by transformers and diffusers: no code from a repository, and safetensors files alone.

A pickled `.bin` file runs whatever is in it when it is read. A repository that has nothing else is refused by the libraries in one line.
"""

from typing import Any

CONFIG: dict[str, Any] = {"trust_remote_code": False}
"""For configurations and tokenizers."""
WEIGHTS: dict[str, Any] = {**CONFIG, "use_safetensors": True}
"""For models of transformers."""
DIFFUSERS: dict[str, Any] = {"use_safetensors": True}
"""For models of diffusers, which run no code of a repository."""
