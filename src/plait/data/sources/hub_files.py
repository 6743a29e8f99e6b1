"""The files of a Hub dataset that is made of JSON or CSV files, downloaded to be read by plait's own readers.

The package `datasets` says which files a split has, by their names and the dataset's card; it does not read them.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub

from plait.config import hub_errors
from plait.data.formats import index
from plait.data.sources.indexed import LAYOUTS
from plait.errors import PlaitError
from plait.files import write_whole
from plait.keys import key

log = logging.getLogger(__name__)

_PLAIN = frozenset(["name", "version", "data_dir", "data_files", "description", "sep", "delimiter", "features"])
"""Settings of a dataset's card that change nothing, or that the readers find by themselves."""


def text_files(name: str, split: str, options: Mapping[str, Any], cache: str | None) -> list[str]:
    """Download and return the files of a split of a Hub dataset. [] unless they are JSON or CSV as the readers take them.

    Where the Hub cannot be asked, those of the last download count. Raises PlaitError if there are none, or no such split.
    """
    asked = [name, split, options.get("config"), options.get("revision")]
    known = index.cache_folder(cache) / "hub" / f"{key(*map(str, asked)):016x}.json"
    try:
        files = _download(name, split, options, cache)
    except ImportError:
        return []  # the reader of tables names the package
    except PlaitError:
        raise
    except Exception as error:  # the package and the Hub's client raise errors of their own
        if downloaded := _downloaded(known):
            log.warning(f"{name}: the Hub could not be asked, so its files of the last download are read")
            return downloaded
        why = hub_errors.refusal(error, name, dataset=True) or next(iter(str(error).splitlines()), type(error).__name__)
        raise PlaitError(f"datasets cannot load {name} ({split}): {why}") from error
    if files is None:
        return _downloaded(known)
    if files:
        write_whole(known, json.dumps(files))
    return files


def _downloaded(known: Path) -> list[str]:
    """Return the files of the last download if all of them are still there, else []."""
    try:
        files: list[str] = json.loads(known.read_bytes())
    except (OSError, ValueError):  # there was none, or its note is damaged
        return []
    return files if all(Path(file).is_file() for file in files) else []


def _download(name: str, split: str, options: Mapping[str, Any], cache: str | None) -> list[str] | None:
    """Return the files of the split, [] if the readers cannot take them, None where the package knows its own cache only."""
    import datasets

    builder = datasets.load_dataset_builder(name, options.get("config"), revision=options.get("revision"), cache_dir=cache)
    listed = builder.config.data_files
    if not listed:
        return None
    if any(Path(file).suffix not in LAYOUTS for files in listed.values() for file in files) or not _is_plain(datasets, builder):
        return []
    if split not in listed:
        raise PlaitError(f"{name} has no split {split!r}; it has {', '.join(map(str, listed))}")
    start = f"hf://datasets/{name}@"
    if not all(file.startswith(start) for file in listed[split]):  # a card may name files elsewhere
        return []
    places = [file.removeprefix(start).partition("/") for file in listed[split]]
    return [huggingface_hub.hf_hub_download(name, path, repo_type="dataset", revision=commit) for commit, _, path in places]


def _is_plain(datasets: Any, builder: Any) -> bool:
    """Return whether a dataset's card names no classes and nothing on how its files are parsed, as the names of columns."""
    default, settings = vars(type(builder.config)()), vars(builder.config)
    same = all(settings[name] == value for name, value in default.items() if name not in _PLAIN)
    return same and not any(isinstance(feature, datasets.ClassLabel) for feature in (builder.info.features or {}).values())
