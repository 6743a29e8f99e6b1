"""A disk that fails: opening and reading files below a folder raises EIO at some of the calls, drawn from a seed."""

import builtins
import errno
import io
import os
import random
from contextlib import contextmanager
from pathlib import Path

import pytest

from plait.data.formats import open_file
from plait.engine.checkpoints import stored_files


class FailingFile(io.FileIO):
    """A file of which some reads fail."""

    disk = None

    def read(self, size=-1):
        self.disk.call(self.name)
        return super().read(size)

    def readinto(self, buffer):
        self.disk.call(self.name)
        return super().readinto(buffer)

    def readall(self):
        self.disk.call(self.name)
        return super().readall()


class Disk:
    """Counts the calls for files below `folder` whose path `wanted` accepts, and lets a share of them fail."""

    def __init__(self, folder, share, seed, wanted=lambda path: True):
        self.folder, self.share, self.random, self.wanted = os.path.realpath(folder), share, random.Random(seed), wanted
        self.calls = self.failures = 0

    def call(self, path):
        """Raise EIO at some of the calls for files of the disk; `path` may be a descriptor."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        path = os.fsdecode(path)
        if os.path.realpath(path).startswith(self.folder + "/") and self.wanted(path):
            self.calls += 1
            if self.random.random() < self.share:
                self.failures += 1
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)


@contextmanager
def failing(folder, share, seed, wanted=lambda path: True):
    """`os.open`, `os.read`, `os.pread`, `open` and reads of what it opens fail at random; yields the disk, which counts."""
    disk, opened = Disk(folder, share, seed, wanted), io.open

    def fails_before(function):
        def call(path, *arguments, **options):
            disk.call(path)
            return function(path, *arguments, **options)

        return call

    def opens(file, mode="r", buffering=-1, *arguments, **options):
        disk.call(file)
        if mode == "rb" and not isinstance(file, int) and os.path.realpath(os.fsdecode(file)).startswith(disk.folder + "/"):
            raw = FailingFile(file)
            raw.disk = disk
            return io.BufferedReader(raw)
        return opened(file, mode, buffering, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "read", "pread"):
            patch.setattr(os, name, fails_before(getattr(os, name)))
        for module in (io, builtins):
            patch.setattr(module, "open", opens)
        patch.setattr(open_file, "_WAITS_S", ())  # a read that is tried again would succeed
        for name in ("safe_open", "load_file"):  # they read below Python
            patch.setattr(stored_files, name, fails_before(getattr(stored_files, name)))
        yield disk


def below(name):
    """Whether a path has a folder or file of this name in it."""
    return lambda path: name in Path(path).parts
