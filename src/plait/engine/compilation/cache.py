"""Where torch's compiler keeps what it has compiled, so that a later start finds it."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

_PLACES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""The variables that name the folders of graphs and of kernels, and where they are below the user's."""


@contextlib.contextmanager
def kept_below(cache: Path) -> Iterator[None]:
    """Have torch's compiler keep graphs and kernels in `cache`/compiled/UID while the `with` lasts.

    Where the environment names a folder, nothing is changed. What is kept is code that a later start runs, so each user has a folder that
    nobody else can write; where there can be none, that is logged, and torch keeps it where it does without plait.
    """
    own = {} if _named() else _made(cache / "compiled" / str(os.getuid()))
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _named() -> bool:
    """Return whether the environment names a folder; torch itself names its default there once it has compiled."""
    default = str(Path(tempfile.gettempdir(), "torchinductor_"))
    return any(not os.environ.get(name, default).startswith(default) for name in _PLACES)


def _made(folder: Path) -> dict[str, str]:
    """Return the variables with the folders that were made for them; {} where they cannot be, or are another user's, which is logged."""
    try:
        for place in _PLACES.values():
            (folder / place).mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        log.warning(f"what is compiled is not kept in {folder} ({error}); a later start may have to compile it again")
        return {}
    return {name: str(folder / place) for name, place in _PLACES.items()}
