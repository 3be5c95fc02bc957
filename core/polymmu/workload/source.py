"""A workload's file as bytes: plain, gzip or zstd by content, hashed while it is read.

Readers of text logs take ``Source.chunks``; nothing here holds more than one chunk, so a log may be larger
than memory. Every way in which the file itself can be broken ends as one ``UserMistake`` naming it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

from polymmu.errors import UserMistake

__all__ = ["HEAD_BYTES", "Source", "file_sha256"]

HEAD_BYTES = 1 << 16
"""How much of the decompressed content a reader is shown to decide whether the file is its own."""

_RAW_CHUNK = 1 << 18
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class _Decompressor(Protocol):
    """What zlib's and zstandard's decompression objects have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of the file's bytes."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> UserMistake:
    return UserMistake(f"cannot be read: {error.strerror or error}; check the name", place=str(path))


def _zstd(path: Path) -> tuple[Callable[[], _Decompressor], tuple[type[Exception], ...]]:
    try:
        import zstandard
    except ImportError:
        raise UserMistake(
            "is zstd-compressed and the zstandard package is missing; pip install 'polymmu[zstd]'",
            place=str(path),
        ) from None
    module: Any = zstandard
    return (lambda: module.ZstdDecompressor().decompressobj()), (module.ZstdError,)


class Source:
    """One file, opened for its content.

    ``sha256`` is complete only after ``chunks`` was read to its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the raw bytes read so far."""
        return self._hash.hexdigest()

    def head(self) -> bytes:
        """The first ``HEAD_BYTES`` of the decompressed content, fewer if the file is shorter or breaks off.

        A break is not told here: whoever reads the whole file tells it, with the place.
        """
        found = b""
        chunks = Source(self.path).chunks()
        try:
            for chunk in chunks:
                found += chunk
                if len(found) >= HEAD_BYTES:
                    break
        except UserMistake:
            if not found:
                raise
        finally:
            chunks.close()
        return found[:HEAD_BYTES]

    def chunks(self) -> Generator[bytes, None, None]:
        """The decompressed content in pieces, none empty. Raises ``UserMistake`` where it breaks off."""
        self._hash = hashlib.sha256()
        try:
            with self.path.open("rb") as stream:
                raw = self._hashed(stream)
                first = next(raw, b"")
                yield from self._decompressed(first, raw)
        except OSError as error:
            raise _unreadable(self.path, error) from None

    def _hashed(self, stream: Any) -> Iterator[bytes]:
        while piece := stream.read(_RAW_CHUNK):
            self._hash.update(piece)
            yield piece

    def _decompressed(self, first: bytes, raw: Iterator[bytes]) -> Iterator[bytes]:
        make: Callable[[], _Decompressor]
        errors: tuple[type[Exception], ...]
        if first.startswith(_GZIP_MAGIC):
            kind, make, errors = "gzip", lambda: zlib.decompressobj(wbits=31), (zlib.error,)
        elif first.startswith(_ZSTD_MAGIC):
            kind = "zstd"
            make, errors = _zstd(self.path)
        else:
            if first:
                yield first
            yield from raw
            return
        stage: _Decompressor | None = None
        piece = first
        while piece:
            while piece:  # a file may hold several compressed members one after another
                stage = stage or make()
                try:
                    out = stage.decompress(piece)
                    piece = stage.unused_data if stage.eof else b""
                except errors as error:
                    raise UserMistake(
                        f"the {kind} data is damaged ({error}); copy or record it again",
                        place=str(self.path),
                    ) from None
                if stage.eof:
                    stage = None
                if out:
                    yield out
            piece = next(raw, b"")
        if stage is not None:
            raise UserMistake(
                f"the {kind} data breaks off before its end; copy or record it again", place=str(self.path)
            )
