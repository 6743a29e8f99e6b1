"""Read what the folder of an export holds of the language model: configuration and tokenizer, which no other place is asked for.

`plait export --to hf` has the configuration in config.json, `--to molmo` in a file of its own, as the published layout has no room for it.
Imports no torch.
"""

import json
from pathlib import Path
from typing import Any

from plait.errors import PlaitError

LANGUAGE = "language_config.json"
"""The file of an export in the published layout with the configuration of its language model, as transformers has it."""
HF = "plait_molmo"
"""`model_type` in config.json of an export for transformers."""
TOKENIZER = "tokenizer.json"


def language(folder: str | Path) -> dict[str, Any] | None:
    """Return the configuration of the language model of an export, as transformers' class takes it; None of any other name or folder."""
    told = _settings(Path(folder) / "config.json")
    sizes = told.get("text_config") if told.get("model_type") == HF else _settings(Path(folder) / LANGUAGE)
    return sizes if isinstance(sizes, dict) and "model_type" in sizes and (Path(folder) / TOKENIZER).is_file() else None


def tokenizer(folder: str | Path) -> Path | None:
    """Return the file of the language model's tokenizer in an export; None of any other name or folder."""
    return None if language(folder) is None else Path(folder) / TOKENIZER


def refuse(folder: str | Path) -> None:
    """Raise PlaitError where a folder that is to be a language model is an export, from whose weights a run starts otherwise."""
    if language(folder) is not None:
        raise PlaitError(f"model.language: {folder} is a whole model, not a language model: set `from: {folder}`")


def _settings(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; {} where there is none, or no JSON object."""
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
