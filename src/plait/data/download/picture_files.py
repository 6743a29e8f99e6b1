"""Pictures as single files of one folder, each named by the SHA-256 of its address, as PixMo's tools keep them.

Lists may share such a folder, and a picture that is there is not fetched again. Rows whose address an earlier row has get no file of
their own. Each list has its manifests in `lists/NAME-HASH` below the folder.
"""

import hashlib
from pathlib import Path, PurePosixPath

from plait import files
from plait.data.download.listing import Listing
from plait.errors import PlaitError


class PictureFiles:
    """The folder of pictures. `repeated`: the rows of the list whose address an earlier row has; `resized`: large ones are scaled down."""

    def __init__(self, folder: Path, listing: Listing, *, resized: bool) -> None:
        self.folder, self.resized = folder, resized
        seen: set[bytes] = set()
        self.repeated: set[int] = set()
        for row, url in enumerate(listing.urls()):
            short = hashlib.blake2b((url or "").encode(errors="backslashreplace"), digest_size=8).digest()
            if url is not None and short in seen:
                self.repeated.add(row)
            seen.add(short)

    def path(self, url: str) -> Path:
        """Return the path of the picture of an address."""
        return self.folder / hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()

    def there(self, url: str) -> bytes:
        """Return the picture of an address; b"" where there is none."""
        try:
            return self.path(url).read_bytes()
        except FileNotFoundError:
            return b""

    def keep(self, url: str, body: bytes) -> None:
        """Write the picture of an address, whole or not at all. Raises OSError where it cannot be written."""
        files.write_whole(self.path(url), body, parents=False, sync=False)

    def sync(self) -> None:
        """Flush the names of the files that were written."""
        files.sync_folder(self.folder)


def lists_folder(out: Path, listing: Listing) -> Path:
    """Return the folder of a list's manifests below the folder of pictures. Raises PlaitError if that holds shards."""
    if any(out.glob("*.tar")):
        raise PlaitError(f"{out} holds shards: give pictures as files a folder of their own")
    name = PurePosixPath(listing.title.rstrip("/").replace("/**/*.parquet", "")).stem
    return out / "lists" / f"{name}-{listing.digest[:8]}"
