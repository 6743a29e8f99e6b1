"""Say in one line what is wrong with a path, for errors of the operating system that are no defect of plait."""

import errno
import os
import re
import shutil

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

_DISK_FAULTS = {errno.ENOSPC: "is full", errno.EDQUOT: "is full to this user's quota", errno.EIO: "fails"}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as safetensors writes it


def path_fault(error: Exception) -> str | None:
    """Return a line about an error that the user can mend, of a path or a disk; None for others."""
    if isinstance(error, shutil.Error):  # of a copied folder: (from, to, reason) of each file that failed
        source, target, reason = error.args[0][0]
        return f"{source} could not be copied to {target}: {reason.partition(': ')[0]}: give another path, or mend this one"
    if type(error).__name__ == "SafetensorError" and (told := _OS_ERROR.search(str(error))):  # a write of weights that failed
        error = OSError(int(told[1]), os.strerror(int(told[1])))
    if not isinstance(error, OSError):
        return None
    path = str(error.filename or "")
    if error.errno == errno.ENAMETOOLONG:
        name = max(path.split("/"), key=len)
        return f"the name {name[:40]}... is too long for this disk: {len(name)} characters"
    if not path and error.errno in _DISK_FAULTS:  # a write to an open file, which Python does not name
        return f"a disk that this command writes to {_DISK_FAULTS[error.errno]} ({error.strerror}): free space there, or write elsewhere"
    if not path or error.errno not in _PATH_FAULTS:
        return None
    return f"{path} {_PATH_FAULTS[error.errno]}: give another path, or mend this one"
