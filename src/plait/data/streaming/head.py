"""The first samples of a remote tar, read from its beginning alone: to look at data before its shards are downloaded."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from plait.data import addresses
from plait.data.formats.names import natural
from plait.data.remote import RemoteFile
from plait.errors import PlaitError

_WINDOW_BYTES = 256 << 10  # read at once


class _Beginning(io.RawIOBase):
    """The bytes of a remote file, fetched as they are asked for from its beginning on."""

    def __init__(self, remote: RemoteFile) -> None:
        self._remote, self._at, self._body = remote, 0, bytearray()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        length = min(len(buffer), self._remote.size - self._at)
        if (lacking := self._at + length - len(self._body)) > 0:
            more = min(max(lacking, _WINDOW_BYTES), self._remote.size - len(self._body))
            self._body += self._remote.read(len(self._body), more)
        buffer[:length] = self._body[self._at : self._at + length]
        self._at += length
        return length


def first_samples(remote: RemoteFile) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Yield (stem, [(extension, bytes)]) of the samples of a remote tar from its beginning on, and read no further than asked for.

    Members of a sample stand next to each other, as in WebDataset's tars. Raises PlaitError for what is no tar.
    """
    stem, members = "", list[tuple[str, bytes]]()
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Beginning(remote), 1 << 14), mode="r|") as tar:
            for info in tar:
                path = PurePosixPath(info.name.removeprefix("./"))
                name, _, extension = path.name.partition(".")
                if not (name and info.isreg()):
                    continue
                body = tar.extractfile(info)
                assert body is not None
                if (own := str(path.with_name(name))) != stem:
                    if members:
                        yield stem, sorted(members, key=_by_extension)
                    stem, members = own, []
                members.append((extension, body.read()))
    except tarfile.TarError as error:
        raise PlaitError(f"{addresses.shown(remote.address)} is damaged, or no tar: {error}") from error
    if members:
        yield stem, sorted(members, key=_by_extension)


def _by_extension(member: tuple[str, bytes]) -> tuple[list[tuple[int, str]], str]:
    return natural(member[0])
