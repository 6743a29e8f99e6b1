"""The kind of source `dataset`: one that the model family knows by name, or a user's class, `module:Class` or `path/to/file.py:Class`.

A user's class has `load()` and `get(idx, rng)`. What `load()` returns becomes the object's `data` (None: it has set it itself);
`len(object)`, else `len(data)`, is the size. `get` returns `image` (a Pillow image, an array, a path, bytes, or a list of them; none for
text) and `messages` of {"role", "content"}, or several `annotations` of them; `style`, `weight` and anything else become fields. `rng` is
a numpy RandomState that only depends on the run's seed, the sample and its epoch.
"""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

import numpy as np
import xxhash
from PIL import Image

from plait.config.schema import SourceEntry
from plait.data import paths, text
from plait.data.records import picture_cells
from plait.data.sources.contract import Sample, Source
from plait.data.sources.kind import Opening, SourceKind, title
from plait.errors import BadSample, PlaitError
from plait.keys import key

T = TypeVar("T")


@runtime_checkable
class _Loads(Protocol):
    def load(self) -> Any: ...


@runtime_checkable
class _Gets(Protocol):
    def get(self, idx: int, rng: np.random.RandomState, /) -> Any: ...


class UserDataset(Source):
    """The samples of a user's class, which `spec` names (module:Class); `options`, and `split` if it takes one, go to its constructor.

    The class has `load()` and `get(idx, rng)`, called as the module says, and a length, its own or that of its `data`. A sample's `images`
    are encoded files as bytes: PNG of arrays and Pillow images, the file itself of a path.
    `limit`: only the first so many. `allow_blank`: samples with blank text are no bad samples. Raises PlaitError for a class that is
    missing, takes other options, fails to load or is empty.
    """

    may_wait = True

    def __init__(self, spec: str, *, split: str, options: Mapping[str, Any], limit: int | None, allow_blank: bool = False) -> None:
        self.spec, self.split, self.options, self.limit, self.allow_blank = spec, split, dict(options), limit, allow_blank
        self.name = spec.rpartition("/")[2]
        self._open()
        content = [self.name, split, sorted(self.options.items()), self._length, self._code_xxh3]
        self.fingerprint = xxhash.xxh3_64(repr(content).encode()).hexdigest()

    def _open(self) -> None:
        cls, self._code_xxh3 = _import_class(self.spec)
        self._object = _call(self.spec, lambda: cls(**_constructor_arguments(cls, self.spec, self.split, self.options)))
        loaded = _call(f"{self.spec}: load()", self._object.load)
        if loaded is not None:
            self._object.data = loaded
        size = _call(f"{self.spec}: its length", lambda: len(self._object if isinstance(self._object, Sized) else self._object.data))
        if size == 0:
            raise PlaitError(f"{self.spec} ({self.split}) is empty after load()")
        self._length = size if self.limit is None else min(size, self.limit)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_object", "_code_xxh3")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index`, the same at every call: `get`'s `rng` is seeded by the index. Raises BadSample as `draw` does."""
        return self.draw(index, key("custom", index))

    def draw(self, index: int, sample_key: int) -> Sample:
        """Return sample `index` from the user's `get`, called with an `rng` seeded by the 64-bit `sample_key`.

        Raises BadSample if `get` returns no dict, no messages or an unreadable image, or wants to end the process; what else `get` raises
        is passed on.
        """
        random = np.random.RandomState(np.random.Philox(key=sample_key))
        with _ending_nothing():
            row = self._object.get(index, random)
        where = f"{self.name}[{index}]"
        if not isinstance(row, Mapping):
            raise BadSample(f"{where}: get() returned a {type(row).__name__}, not a dict with `image` and `messages`")
        pictures = [_encode(image, where) for name in ("image", "images") for image in picture_cells(row.get(name))]
        fields = {
            **(row.get("metadata") or {}),
            **{k: v for k, v in row.items() if k not in ("image", "images", "metadata", "annotations")},
        }
        sample = {"id": str(fields.get("id", where)), "images": pictures, "fields": fields}
        if row.get("annotations") is not None:
            annotations = text.annotations(row["annotations"], len(pictures), allow_blank=self.allow_blank)
            return {**sample, "messages": annotations[0]["messages"], "annotations": annotations}
        conversation = text.messages(fields, None)
        text.check(conversation, len(pictures), allow_blank=self.allow_blank)
        if not conversation:
            raise BadSample(f"{where}: get() returned no `messages`; it returned {', '.join(map(str, row)) or 'nothing'}")
        return {**sample, "messages": conversation, "weight": float(row.get("weight", 1.0))}


def _import_class(spec: str) -> tuple[Any, str]:
    """Import the class, and hash the file that defines it. Raises PlaitError for a missing module or class, or one without load and get."""
    module_name, _, class_name = spec.rpartition(":")
    module = _import_file(spec, paths.local(module_name)) if module_name.endswith(".py") else _import_module(spec, module_name)
    cls = vars(module).get(class_name)
    if not inspect.isclass(cls):
        known = [name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__]
        near = difflib.get_close_matches(class_name, known, 1)
        raise PlaitError(
            f"{spec}: no class {class_name!r}; " + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}")
        )
    missing = [name for name, protocol in (("load", _Loads), ("get", _Gets)) if not issubclass(cls, protocol)]
    if missing:
        raise PlaitError(
            f"{spec}: the class has no {' and no '.join(f'{name}()' for name in missing)}: a dataset has load() and get(idx, rng)"
        )
    return cls, xxhash.xxh3_64_hexdigest(Path(str(module.__file__)).read_bytes())


def _import_module(spec: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise PlaitError(f"{spec}: no module {error.name!r}; install it, set PYTHONPATH, or name a file: path/to/file.py:Class") from error


def _import_file(spec: str, file: Path) -> ModuleType:
    if not file.is_file():
        raise PlaitError(f"{spec}: no file {file} (looked from {Path.cwd()})")
    name = f"plait_dataset_{xxhash.xxh3_64_hexdigest(str(file.resolve()).encode())}"
    module_spec = importlib.util.spec_from_file_location(name, file)
    assert module_spec is not None and module_spec.loader is not None
    loader = module_spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(module_spec)  # dataclasses look their module up
    _call(f"{spec}: importing {file}", lambda: loader.exec_module(module))
    return module


def _constructor_arguments(cls: Any, spec: str, split: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, and the split if the constructor takes one. Raises PlaitError for an option that it does not take."""
    known = inspect.signature(cls).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return {"split": split, **options}
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        raise PlaitError(f"{spec}: its constructor takes no {unknown!r}; it takes {', '.join(known) or 'nothing'}")
    return {**({"split": split} if "split" in known else {}), **options}


def _call(what: str, run: Callable[[], T]) -> T:
    """Return `run()`, a call of the user's code; any exception becomes a PlaitError of one line, which names `what` failed."""
    try:
        with _ending_nothing():
            return run()
    except BadSample as error:
        raise PlaitError(f"{what} failed: {error}") from error
    except PlaitError:
        raise
    except (Exception, SystemExit) as error:  # whatever it is, it is the user's code that must be mended
        raise PlaitError(f"{what} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error


_called = threading.local()
"""`by`: the process in which this thread runs a user's code at the moment, by its id."""
_end_process = os._exit


class _Exit(SystemExit):
    """Raised by a call of os._exit in a user's code; its text has the call."""


@contextlib.contextmanager
def _ending_nothing() -> Iterator[None]:
    """Run the block, a user's code, so that it ends no process: raises BadSample where it calls os._exit, or raises KeyboardInterrupt.

    A KeyboardInterrupt that may come of Ctrl-C is passed on; in a run, whose Ctrl-C only sets a flag, none may.
    """
    os._exit = _exit
    before, _called.by = getattr(_called, "by", None), os.getpid()
    try:
        yield
    except KeyboardInterrupt as error:
        pressed = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if pressed:
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise BadSample(f"it raises KeyboardInterrupt ({Path(frame.filename).name}:{frame.lineno})") from error
    except _Exit as error:
        raise BadSample(str(error)) from error
    finally:
        _called.by = before


def _exit(status: int) -> NoReturn:
    """Do what os._exit does, but raise _Exit where a user's code calls it: neither plait itself, nor a process that this code started."""
    caller = sys._getframe(1)
    own = str(caller.f_globals.get("__name__")).partition(".")[0] in ("plait", "multiprocessing")
    if not own and getattr(_called, "by", None) == os.getpid():
        raise _Exit(f"it calls os._exit({status}) ({Path(caller.f_code.co_filename).name}:{caller.f_lineno})")
    _end_process(status)


def _encode(image: object, where: str) -> bytes:
    """Return an encoded image file; arrays and Pillow images become PNG, which keeps every pixel. Raises BadSample for anything else."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return paths.read_regular(paths.local(os.fspath(image)))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise BadSample(f"{where}: an image is a Pillow image, a uint8 array, a path or bytes, not {type(image).__name__}")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _open(entry: SourceEntry, opening: Opening) -> Source:
    split = entry.split or opening.split
    assert entry.name, "the opener has checked what the kind needs"
    if ":" in entry.name:
        return UserDataset(entry.name, split=split, options=entry.options, limit=entry.limit, allow_blank=entry.allow_blank)
    if opening.open_named is None:
        raise PlaitError(f"data source {title(entry)}: no datasets are known by name here; name your own as module:Class or file.py:Class")
    return opening.open_named(entry, split)


KIND = SourceKind(
    "dataset",
    needs="name",
    name_is=": one that the family knows, module:Class or file.py:Class",
    own_text="a dataset makes its own conversations; take out `template` and `columns`",
    options=None,
    open=_open,
    names_itself=True,
)
