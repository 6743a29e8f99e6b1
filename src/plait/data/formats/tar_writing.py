"""Write a tar file whole or not at all. The same members give the same bytes, whoever writes them, whenever."""

import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

from plait import files

_BLOCK = 512


def write(path: Path, members: Iterable[tuple[str, bytes]]) -> int:
    """Write (name, bytes) members to the tar file `path`, in order, as they come; readers see it whole. Returns how many there were.

    Members have time 0, mode 0644 and no owner. Without a member there is no file. Raises OSError where it cannot be written.
    """
    count = 0
    beside, descriptor = files.claim(path, lambda name: os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
    with os.fdopen(descriptor, "wb") as file:
        try:
            file.truncate()
            for name, body in members:
                head = tarfile.TarInfo(name)
                head.size = len(body)
                file.write(head.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))  # plain ustar, but for long names
                file.write(body)
                file.write(bytes(-len(body) % _BLOCK))
                count += 1
            if not count:
                beside.unlink()
                return 0
            file.write(bytes(2 * _BLOCK))
            file.flush()
            os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    files.sync_folder(path.parent)
    return count
