"""Download data files that are read whole, such as tables, from their addresses into the cache folder."""

import os
from pathlib import Path, PurePosixPath

from plait.data import addresses
from plait.data.formats import index
from plait.data.remote import BLOCK_BYTES, RemoteFile
from plait.files import claim
from plait.keys import key


def fetched(address: str, cache: str | Path | None) -> Path:
    """Return the path of a local copy of the file at `address`.

    It is downloaded unless the cache has it in the server's present version.

    Raises PlaitError if there is no such file, or it cannot be read.
    """
    remote = RemoteFile(address, None)
    ending = PurePosixPath(addresses.name_of(addresses.spelled_out(address))).suffix  # an address may be the name of a variable alone
    name = addresses.name_of(address).removesuffix(ending) + ending
    folder = f"{key(addresses.identity(address), remote.size, remote.stamp['version']):016x}"
    path = index.cache_folder(cache) / "files" / folder / name
    if path.is_file() and path.stat().st_size == remote.size:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    beside, descriptor = claim(path, lambda target: os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
    with os.fdopen(descriptor, "wb") as file:
        file.truncate()
        for start in range(0, remote.size, BLOCK_BYTES):
            file.write(remote.read(start, min(BLOCK_BYTES, remote.size - start)))
        file.flush()
        os.fsync(file.fileno())
        beside.replace(path)
    return path
