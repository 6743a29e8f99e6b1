"""Say in one line what is wrong with a path, for errors of the operating system that are no defect of plait."""

import errno

_PATH_FAULTS = {
    errno.EEXIST: "is in the way: it is no folder",
    errno.ENOTDIR: "is, or lies below, what is no folder",
    errno.EISDIR: "is a folder, where a file was to be",
    errno.ENOENT: "cannot be made or read: there is no such place",
    errno.EACCES: "may not be read or written by this user",
    errno.EPERM: "may not be changed by this user",
    errno.EROFS: "lies on a disk that is read only",
    errno.ELOOP: "is a link that leads to itself",
    errno.ENOSPC: "has no room: the disk is full",
    errno.EDQUOT: "has no room: the quota is used up",
    errno.EIO: "cannot be read or written: the disk fails",
}
"""What is told of a path by the number of its error: a mistake of the user or a failing disk, not a defect of plait."""


def path_fault(error: OSError) -> str | None:
    """Return a line about the path of an OSError that the user can mend, such as a full disk; None for others."""
    path = str(error.filename or "")
    if error.errno == errno.ENAMETOOLONG:
        name = max(path.split("/"), key=len)
        return f"the name {name[:40]}... is too long for this disk: {len(name)} characters"
    if not path or error.errno not in _PATH_FAULTS:
        return None
    return f"{path} {_PATH_FAULTS[error.errno]}: give another path, or mend this one"
