"""A user's own dataset: one class with `load()` and `get(idx, rng)`, named `module:Class` or `path/to/file.py:Class`.

What `load()` returns becomes the object's `data` (None: it has set it itself); `len(object)`, else `len(data)`, is the size. `get` returns
`image` (a Pillow image, an array, a path, bytes, or a list of them; none for text) and `messages` of {"role", "content"}, or several
`annotations` of them; `style`, `weight` and anything else become fields. `rng` is a numpy RandomState that only depends on the run's seed,
the sample and its epoch.
"""

import difflib
import importlib
import importlib.util
import inspect
import io
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from PIL import Image

from plait.data import paths, text
from plait.data.sources.lines import listed
from plait.errors import BadSample, PlaitError
from plait.keys import key


class Custom:
    """Samples of the user's object. `split` goes to its constructor if that takes one, as do the entry's options."""

    def __init__(self, spec: str, *, split: str, options: Mapping[str, Any], limit: int | None) -> None:
        self.spec, self.split, self.options, self.limit = spec, split, dict(options), limit
        self.name = spec.rpartition("/")[2]
        self._open()
        content = [self.name, split, sorted(self.options.items()), self._length, self._code]
        self.fingerprint = xxhash.xxh3_64(repr(content).encode()).hexdigest()

    def _open(self) -> None:
        kind, self._code = _class_of(self.spec)
        self._made = _call(self.spec, lambda: kind(**_arguments(kind, self.spec, self.split, self.options)))
        loaded = _call(f"{self.spec}: load()", self._made.load)
        if loaded is not None:
            self._made.data = loaded
        size = _call(f"{self.spec}: its length", lambda: len(self._made if "__len__" in dir(self._made) else self._made.data))
        if size == 0:
            raise PlaitError(f"{self.spec} ({self.split}) is empty after load()")
        self._length = size if self.limit is None else min(size, self.limit)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_made", "_code")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.draw(i, key("custom", i))

    def draw(self, i: int, sample_key: int) -> dict[str, Any]:
        """Sample `i` as `get` makes it with randomness from the key. BadSample for what is no conversation, or no image."""
        random = np.random.RandomState(np.random.Philox(key=sample_key))
        got = self._made.get(i, random)
        where = f"{self.name}[{i}]"
        if not isinstance(got, Mapping):
            raise BadSample(f"{where}: get() returned a {type(got).__name__}, not a dict with `image` and `messages`")
        pictures = [_encoded(one, where) for one in [*listed(got.get("image")), *listed(got.get("images"))]]
        fields = {
            **(got.get("metadata") or {}),
            **{k: v for k, v in got.items() if k not in ("image", "images", "metadata", "annotations")},
        }
        sample = {"id": str(fields.get("id", where)), "images": pictures, "fields": fields}
        if got.get("annotations") is not None:
            made = [{**one, "messages": text.messages(one, None)} for one in got["annotations"]]
            return {**sample, "messages": made[0]["messages"], "annotations": made}
        conversation = text.messages(fields, None)
        if not conversation:
            raise BadSample(f"{where}: get() returned no `messages`; it returned {', '.join(map(str, got)) or 'nothing'}")
        return {**sample, "messages": conversation, "weight": float(got.get("weight", 1.0))}


def _class_of(spec: str) -> tuple[Any, str]:
    """The class, and a hash of the file that defines it."""
    module_name, _, class_name = spec.rpartition(":")
    if module_name.endswith(".py"):
        file = paths.local(module_name)
        if not file.is_file():
            raise PlaitError(f"{spec}: no file {file} (looked from {Path.cwd()})")
        made = importlib.util.spec_from_file_location(f"plait_dataset_{xxhash.xxh3_64_hexdigest(str(file.resolve()).encode())}", file)
        assert made is not None and made.loader is not None
        module = sys.modules[made.name] = importlib.util.module_from_spec(made)  # dataclasses look their module up
        _call(f"{spec}: importing {file}", lambda: made.loader.exec_module(module))  # type: ignore[union-attr]
    else:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise PlaitError(
                f"{spec}: no module {error.name!r}; install it, set PYTHONPATH, or name a file: path/to/file.py:Class"
            ) from error
    kind = getattr(module, class_name, None)
    if not inspect.isclass(kind):
        known = [name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__]
        near = difflib.get_close_matches(class_name, known, 1)
        raise PlaitError(
            f"{spec}: no class {class_name!r}; " + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}")
        )
    missing = [name for name in ("load", "get") if not callable(getattr(kind, name, None))]
    if missing:
        raise PlaitError(
            f"{spec}: the class has no {' and no '.join(f'{name}()' for name in missing)}: a dataset has load() and get(idx, rng)"
        )
    return kind, xxhash.xxh3_64_hexdigest(Path(str(module.__file__)).read_bytes())


def _arguments(kind: Any, spec: str, split: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the constructor is given: the options, and the split if it takes one."""
    known = inspect.signature(kind).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values()):
        return {"split": split, **options}
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        raise PlaitError(f"{spec}: its constructor takes no {unknown!r}; it takes {', '.join(known) or 'nothing'}")
    return {**({"split": split} if "split" in known else {}), **options}


def _call(what: str, run: Callable[[], Any]) -> Any:
    """Whatever the user's code raises while it is opened, as one line."""
    try:
        return run()
    except PlaitError:
        raise
    except Exception as error:  # whatever it is, it is the user's code that must be mended
        raise PlaitError(f"{what} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error


def _encoded(image: Any, where: str) -> bytes:
    """An image file. PNG keeps every pixel of what is not one yet."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        try:
            return paths.local(os.fspath(image)).read_bytes()
        except OSError as error:
            raise BadSample(f"{where}: cannot read the image {image}: {error.strerror}") from error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise BadSample(f"{where}: an image is a Pillow image, a uint8 array, a path or bytes, not {type(image).__name__}")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
