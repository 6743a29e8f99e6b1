"""Download the JSON, CSV or picture files of a Hub dataset, for plait's own readers.

The package `datasets` says which files a split has, by their names and the dataset's card; it does not read them.
"""

import glob
import json
import logging
import posixpath
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import huggingface_hub
import xxhash
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name

from plait.config import hub_errors
from plait.data.formats.csv_spans import DELIMITERS
from plait.data.paths import NO_RECORDS
from plait.data.records import IMAGE_KINDS, Record
from plait.data.sources.contract import Reader
from plait.data.sources.folder import BESIDE, METADATA
from plait.data.sources.indexed import LAYOUTS
from plait.data.text import kind_of
from plait.errors import BadSample, PlaitError
from plait.files import write_whole
from plait.keys import key

log = logging.getLogger(__name__)
T = TypeVar("T")

BUILDERS = frozenset(["json", "csv", "imagefolder"])
"""The package's names of its readers of formats that plait reads itself."""

_PLAIN = frozenset(
    ["name", "version", "data_dir", "data_files", "description", "sep", "delimiter", "features", "field", *("drop_labels", "drop_metadata")]
)
"""Settings of a dataset's card that change nothing, or that the readers find by themselves."""
_ARCHIVES = frozenset([".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"])
_PICTURES = frozenset(f".{kind}" for kind in IMAGE_KINDS)
_NAMED_MOST = 1000
_ASKED_WITHIN_S = 30.0
_WAITS_S = (1.0, 4.0, 15.0)  # between attempts
_silent: set[str] = set()  # Hubs, by address, that did not answer the last question of this process
_NUMBER = re.compile(r"-?\d{1,9}")


@dataclass(frozen=True)
class HubFiles:
    """What was downloaded of a split: `files` of records, or `folder`, a folder of images. Neither: the package `datasets` is to read it.

    `packaged`: neither, because only the package reads its format; `parquet`: then the addresses of its files, if they are of that format.
    All four empty or False: the Hub could not be asked, or `datasets` is missing. `pictures`: paths of the split's pictures below the
    folder. `metadata`: whether the folder's metadata file is read; `labels`: whether the name of a picture's folder is its label.
    `classes`: {column: names of its classes} by the dataset's card. `left_out`: {reason: number of files that are not read}.
    """

    files: list[str] = field(default_factory=list)
    folder: str | None = None
    pictures: list[str] = field(default_factory=list)
    metadata: bool = False
    labels: bool = False
    classes: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    packaged: bool = False
    parquet: list[str] = field(default_factory=list)


def download(name: str, split: str, options: Mapping[str, Any]) -> HubFiles:
    """Download and return the files of a split of a Hub dataset, unless only the package `datasets` reads its format.

    `name`: its repository; `options`: of the source, `config` and `revision` among them.
    If the Hub cannot be reached, those of the last download count, which is logged; without one, an empty HubFiles is returned.
    Raises PlaitError if the Hub refuses the dataset, if there is no such split, and for what the readers cannot read as it is meant.
    """
    try:
        folder = repo_folder_name(repo_id=name, repo_type="dataset")
    except HFValidationError as error:
        raise PlaitError(f"datasets cannot load {name} ({split}): {hub_errors.reason(error, name)}") from error
    asked = [name, split, options.get("config"), options.get("revision")]
    note = Path(constants.HF_HUB_CACHE) / folder / f"plait-{key(*map(str, asked)):016x}.json"  # beside the files that it lists
    try:
        found = _ask(name, lambda: _download(name, split, options, _list(name, options.get("revision"))))
    except PlaitError:
        raise
    except ImportError:
        return HubFiles()  # the reader of tables names the package
    except Exception as error:  # the package and the Hub's client raise errors of their own
        refused = hub_errors.refusal(error, name, dataset=True)
        if not hub_errors.unreachable(error):
            raise PlaitError(f"datasets cannot load {name} ({split}): {refused or _first_line(error)}") from error
        downloaded = replace(_downloaded(note), parquet=[])  # which takes a Hub that answers
        if downloaded.files or downloaded.folder:  # else the table asks once more, and tells it
            tell_unreached(name, error)
        return downloaded
    try:
        write_whole(note, json.dumps(asdict(found)))
    except OSError as error:
        log.warning(
            f"{name}: what was downloaded of it cannot be noted in {note.parent}, for when the Hub is not reached: {error.strerror}"
        )
    return found


def check_access(name: str, revision: str | None) -> Exception | None:
    """Return None if the Hub lets its user read the dataset `name`, and the error if it could not be asked. `revision`: commit or tag.

    Raises PlaitError if it refuses the dataset, or has none of this name. Ask before the package `datasets` loads it, which would then
    read an earlier copy without saying so.
    """
    try:
        _ask(name, lambda: _list(name, revision))
    except Exception as error:
        if not hub_errors.unreachable(error):
            raise PlaitError(
                f"datasets cannot load {name}: {hub_errors.refusal(error, name, dataset=True) or _first_line(error)}"
            ) from error
        return error
    return None


def tell_unreached(name: str, error: Exception) -> None:
    """Log that an earlier download of dataset `name` is read, because the Hub could not be asked (`error`)."""
    log.warning(f"{name}: the Hub could not be asked ({type(error).__name__}), so what was downloaded of it before is read")


def unreached(name: str, split: str, error: Exception) -> str:
    """Return the message for a split of dataset `name`: the Hub could not be asked (`error`), and nothing was downloaded before."""
    reason = f"the Hub could not be asked ({type(error).__name__}), and nothing was downloaded of it before: try again when it answers"
    return f"datasets cannot load {name} ({split}): {hub_errors.refusal(error, name, dataset=True) or reason}"


def _ask(name: str, question: Callable[[], T]) -> T:
    """Return what `question` to the Hub returns. It is asked again after growing waits where the Hub may answer later.

    If it never answers, later questions of this process are asked once. Raises what the last attempt raises.
    """
    endpoint = constants.ENDPOINT
    for wait_s in () if endpoint in _silent else _WAITS_S:
        try:
            return question()
        except Exception as error:
            if not hub_errors.may_pass(error):
                raise
            log.warning(f"{name}: the Hub could not be asked ({type(error).__name__}); it is asked again in {wait_s:g} s")
        time.sleep(wait_s)
    try:
        answer = question()
    except Exception as error:
        if hub_errors.may_pass(error):
            _silent.add(endpoint)
        raise
    _silent.discard(endpoint)
    return answer


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class NamedClasses:
    """A reader of another reader's records, with names for numbers. `classes`: {field: names of its classes, by number}.

    A number may be an integer or its digits; -1 stands for none, as in the package `datasets`, and the field is then None; a name stays.
    """

    def __init__(self, reader: Reader, classes: Mapping[str, list[str]]) -> None:
        self.reader, self.classes = reader, dict(classes)
        self.left_out: Mapping[str, int] = reader.left_out
        self.digest = xxhash.xxh3_64(repr([reader.digest, sorted(self.classes.items())]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, index: int, /) -> Record:
        """Return record `index` with the names of its classes. Raises BadSample for an unknown class, and what the other reader raises."""
        record = self.reader.read(index)
        named = {field: _class_name(record.fields[field], field, names) for field, names in self.classes.items() if field in record.fields}
        return record._replace(fields={**record.fields, **named})


def _list(name: str, revision: str | None) -> list[str]:
    """Return the names of a dataset's files, after asking whether its user may read them. Raises what the Hub's client raises."""
    import datasets

    if datasets.config.HF_HUB_OFFLINE:  # by HF_DATASETS_OFFLINE, which the Hub's client does not know
        raise OfflineModeIsEnabled("HF_DATASETS_OFFLINE is set")
    api = huggingface_hub.HfApi()
    told = api.dataset_info(name, revision=revision, timeout=_ASKED_WITHIN_S)
    if told.gated:
        api.auth_check(name, repo_type="dataset")
    return [file.rfilename for file in told.siblings or []]


def _downloaded(note: Path) -> HubFiles:
    """Return the files of the last download if all of them are still there, else an empty HubFiles."""
    try:
        last = json.loads(note.read_bytes())
        found = HubFiles(**last) if isinstance(last, dict) else HubFiles(last)  # a list: by an earlier version
    except (OSError, ValueError, TypeError):  # there was none, or its note is damaged
        return HubFiles()
    if found.folder and not found.pictures:  # by an earlier version, which read the whole folder
        return HubFiles()
    if found.folder and not all((Path(found.folder) / name).exists() for name in found.pictures):
        return HubFiles()
    return found if all(Path(path).exists() for path in [*found.files, *filter(None, [found.folder])]) else HubFiles()


def _download(name: str, split: str, options: Mapping[str, Any], listed: Sequence[str]) -> HubFiles:
    """Return the files of the split, downloaded. `listed`: the names of all the dataset's files."""
    import datasets
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    with tempfile.TemporaryDirectory() as empty:  # from its own cache the package would read an earlier copy unsaid
        builder = datasets.load_dataset_builder(name, options.get("config"), revision=options.get("revision"), cache_dir=empty)
    start = f"hf://datasets/{name}@"
    by_split = builder.config.data_files
    if not by_split:  # as where a card names another kind of dataset
        return HubFiles(packaged=True)
    text = all(_ending(file) in LAYOUTS for files in by_split.values() for file in files)
    if not all(file.startswith(start) for files in by_split.values() for file in files):
        if text:
            raise PlaitError(f"{name}: its card names files that are not in it: download them, and give their path")
        return HubFiles(packaged=True)
    commits = {file.removeprefix(start).partition("/")[0] for files in by_split.values() for file in files}
    inside = {str(each): [file.removeprefix(start).partition("/")[2] for file in files] for each, files in by_split.items()}
    if split not in inside:
        raise PlaitError(f"{name} has no split {split!r}; it has {', '.join(inside)}")
    classes = {column: kind.names for column, kind in (builder.info.features or {}).items() if isinstance(kind, datasets.ClassLabel)}
    if isinstance(builder, ImageFolder):
        _check_card(name, builder)
        folder = _folder(name, inside[split], builder.config, listed, min(commits))
        return replace(folder, classes=classes, labels=_are_labels(inside, builder.config.drop_labels))
    if not text:
        parquet = [f"{start}{min(commits)}/{file}" for file in inside[split] if _ending(file) == ".parquet"]
        every = len(parquet) == len(inside[split])
        return HubFiles(packaged=True, parquet=parquet if every else [], classes=classes if every else {})
    _check_card(name, builder)
    files = [huggingface_hub.hf_hub_download(name, file, repo_type="dataset", revision=min(commits)) for file in inside[split]]
    return HubFiles(files, classes=classes, left_out=_unread(listed, inside))


def _folder(name: str, files: Sequence[str], settings: Any, listed: Sequence[str], commit: str) -> HubFiles:
    """Download the pictures of a split with what lies beside them, and return their folder.

    `files`: names of the split's files; `settings`: of the package, by the dataset's card; `listed`: names of all the dataset's files.
    Raises PlaitError for archives, and for a split without pictures of a format that is read.
    """
    packed = next((file for file in files if _ending(file) in _ARCHIVES), None)
    fetch = f"download it (hf download {name} --repo-type dataset --local-dir FOLDER)"
    if packed is not None:
        raise PlaitError(f"{name}: its pictures are packed, as in {packed}: {fetch}, unpack it, and read it as `source: folder`")
    described = [file for file in files if posixpath.basename(file) in METADATA]
    pictures = [file for file in files if _ending(file) in _PICTURES]
    if not pictures:
        raise PlaitError(f"{name}: none of its files is a picture of a format that is read, as {files[0]}: {fetch}, and convert them")
    metadata = bool(described) and not settings.drop_metadata
    root = posixpath.commonpath([posixpath.dirname(file) for file in [*pictures, *(described if metadata else [])]])
    patterns = _patterns(files, listed, whole=metadata)
    at = Path(huggingface_hub.snapshot_download(name, repo_type="dataset", revision=commit, allow_patterns=patterns)) / root
    others = sorted({file for file in listed if _ending(file) in _PICTURES}.difference(pictures))
    left_out = {f"pictures of other splits or configurations of the dataset, such as {others[0]}": len(others)} if others else {}
    return HubFiles(folder=str(at), pictures=[posixpath.relpath(file, root) for file in pictures], metadata=metadata, left_out=left_out)


def _are_labels(inside: Mapping[str, Sequence[str]], drop_labels: bool | None) -> bool:
    """Return whether the package has the names of folders as labels. `inside`: {split: its files}; `drop_labels`: what the card says."""
    files = [file for of_split in inside.values() for file in of_split]
    if any(posixpath.basename(file) in METADATA for file in files):
        return False
    pictures = [file for file in files if _ending(file) in _PICTURES]
    folders = {posixpath.basename(posixpath.dirname(file)) for file in pictures}
    return not drop_labels if drop_labels is not None else len(folders) > 1 and len({file.count("/") for file in pictures}) == 1


def _patterns(files: Sequence[str], listed: Sequence[str], *, whole: bool) -> list[str] | None:
    """Return patterns of what to download: few files with the texts in their folders, of many all below their first folders; None: all.

    `whole`: the latter, also for few files.
    """
    folders = {posixpath.dirname(file) for file in files}
    beside = {file for file in listed if posixpath.dirname(file) in folders and _ending(file).removeprefix(".") in BESIDE}
    if not whole and len(beside.union(files)) <= _NAMED_MOST:  # the Hub's client compares each file with each pattern
        return [glob.escape(file) for file in sorted(beside.union(files))]
    tops = {file.partition("/")[0] for file in files}
    return None if not tops.isdisjoint(files) else [f"{glob.escape(top)}/*" for top in sorted(tops)]


def _ending(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def _unread(listed: Sequence[str], inside: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Count the data files of other formats, which the package leaves out of all splits."""
    formats = {LAYOUTS[_ending(file)].format for files in inside.values() for file in files}
    known = {ending: layout.format for ending, layout in LAYOUTS.items()} | {".parquet": "parquet", ".arrow": "arrow"}
    others = [file for file in listed if known.get(_ending(file)) not in {None, *formats} and posixpath.basename(file) not in NO_RECORDS]
    return {f"data files of other formats than {', '.join(sorted(formats))}, such as {others[0]}": len(others)} if others else {}


def _check_card(name: str, builder: Any) -> None:
    """Raise PlaitError if a dataset's card says how its files are parsed, in a way that the readers do not know."""
    default, settings = vars(type(builder.config)()), vars(builder.config)
    changed = [setting for setting, value in default.items() if setting not in _PLAIN and settings[setting] != value]
    changed += ["sep"] if len(settings.get("sep") or ",") > 1 or (settings.get("sep") or ",") not in DELIMITERS else []
    if changed:
        raise PlaitError(
            f"{name}: its card sets how its files are parsed ({', '.join(changed)}), which is not followed: download it "
            f"(hf download {name} --repo-type dataset --local-dir FOLDER), write it as JSON lines, and give their path"
        )


def _class_name(value: Any, field: str, names: list[str]) -> str | None:
    """Return the name of a class by its number, or by its name. Raises BadSample if there is none."""
    if value is None or value in names:
        return None if value is None else str(value)
    if isinstance(value, bool) or not _NUMBER.fullmatch(str(value)):
        raise BadSample(f"`{field}` is {kind_of(value)}, and no name or number of one of its {len(names)} classes")
    if int(value) == -1:
        return None
    if not 0 <= int(value) < len(names):
        raise BadSample(f"`{field}` is class {value} of {len(names)}, which are counted from 0")
    return names[int(value)]
