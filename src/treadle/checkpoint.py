"""Trees of arrays in safetensors files, written whole or not at all, and read without ever running code.

Treadle writes and reads the format itself (https://huggingface.co/docs/safetensors: the header's length in 8 bytes,
the header in JSON, the tensors' bytes), so that one leaf at a time is copied, that a full disk is told from other
trouble, and that a file replaced while it is read stays one file. Any safetensors reader opens the result.

The header's first entry is a checksum of everything else in it, and another entry is one of the tensors' bytes; both
places stay as they are in every future format, so that damage is never taken for another format.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from treadle.errors import TreadleError

FORMAT = 1

_PREFIX = b'{"__metadata__":{"treadle_checksum":"'
_UNSET = "0" * 8
_PIECE = 1 << 20
LARGE = 1 << 26
"""Bytes of an array from which it is read piece by piece."""
_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
_DTYPES = {code: np.dtype(name) for name, code in _CODES.items()}


class CheckpointError(TreadleError):
    """A checkpoint that could not be written, or a file that cannot be loaded."""


class _Leaf(NamedTuple):
    """How a leaf is stored; `key` is the implementation's name if it is a typed PRNG key stored as its key data."""

    shape: tuple[int, ...]
    dtype: np.dtype
    key: str | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_large(self) -> bool:
        """Whether it is to be read piece by piece: rows of numbers as JAX has them, of `LARGE` bytes or more in all."""
        is_narrowed = jax.dtypes.canonicalize_dtype(self.dtype) != self.dtype
        return self.nbytes >= LARGE and len(self.shape) > 1 and self.key is None and not is_narrowed

    def __str__(self) -> str:
        shape = self.shape if self.key is None else self.shape[:-1]
        return f"{self.key or self.dtype.name}{'' if self.key is None else ' key'}{list(shape)}"


class _Header(NamedTuple):
    """`leaves` are in the order of their bytes in the file."""

    metadata: dict[str, Any]
    leaves: dict[str, _Leaf]
    data_checksum: str


def save(path: Path, tree: PyTree, metadata: Mapping[str, Any]) -> None:
    """Write a tree of arrays and JSON values to `path`, replacing what is there in one step.

    Leaves are JAX arrays (also sharded over this process's devices, also typed keys) or NumPy arrays. Raises
    `CheckpointError` when the file cannot be written; the former one is then untouched and nothing is left beside it.
    """
    path = Path(path)
    named = _named_leaves(tree)
    leaves = {name: _describe(name, leaf) for name, leaf in named.items()}
    # Wide types first keeps every tensor aligned to its items, which the format asks writers to do.
    leaves = dict(sorted(leaves.items(), key=lambda item: -item[1].dtype.itemsize))
    try:
        text = json.dumps(dict(metadata))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} was not saved: its metadata must be JSON values ({error}).") from error

    placeholder = _encode(leaves, _UNSET, text)
    size = len(placeholder) + sum(leaf.nbytes for leaf in leaves.values())
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        _remove_strays(path)
        with temporary.open("xb") as file:
            file.write(placeholder)
            checksum = 0
            for name, leaf in leaves.items():
                data = _bytes(named[name], leaf)
                checksum = zlib.crc32(data, checksum)
                file.write(data)
            file.seek(0)
            file.write(_encode(leaves, _hex(checksum), text))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise _not_written(path, size, error) from error
        raise
    _sync_folder(path)


def load(path: Path, like: PyTree, wanted: PyTree[bool] | None = None) -> tuple[PyTree, dict[str, Any]]:
    """The tree in `path`, in the structure of `like`, and the metadata.

    `like` is a tree of arrays or `jax.ShapeDtypeStruct`s that gives structure, shapes and dtypes. The leaves are JAX
    arrays on the default device; those of 64 bits stay NumPy arrays where JAX would narrow them. Leaves that are not
    `wanted`, of the same structure, are checked all the same, take no memory, and stay what they are in `like`. Raises
    `CheckpointError` when the file is missing, damaged, foreign, of another format, or does not fit `like`.
    """
    path = Path(path)
    given = _named_leaves(like)
    expected = {name: _describe(name, leaf) for name, leaf in given.items()}
    choice = [True] * len(given) if wanted is None else jax.tree.leaves(wanted)
    kept = {name for name, is_wanted in zip(given, choice, strict=True) if is_wanted}
    with _opened(path) as file:
        header = _read_header(file, path)
        _check_fit(path, header.leaves, expected)
        leaves = given | _read_leaves(file, path, header, kept)
    structure = jax.tree.structure(like)
    return jax.tree.unflatten(structure, [leaves[name] for name in expected]), header.metadata


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata in `path`, without reading its arrays. Raises `CheckpointError` as `load` does."""
    path = Path(path)
    with _opened(path) as file:
        return _read_header(file, path).metadata


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by readable path, such as `algorithm.layers[0].weight`; `.` is a tree that is one leaf."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {"".join(map(_step, path)).removeprefix(".") or ".": leaf for path, leaf in flat}
    if len(named) != len(flat):
        raise CheckpointError("two leaves of the tree have the same path: give its nodes distinct keys.")
    return named


def _step(entry: Any) -> str:
    """One step of a path. Only plain identifiers follow a dot, so that `{"a.b": x}` is not `{"a": {"b": x}}`."""
    for attribute in ("name", "key", "idx"):
        if hasattr(entry, attribute):
            entry = getattr(entry, attribute)
            break
    if isinstance(entry, str) and entry.isidentifier() and not entry.startswith("__"):
        return f".{entry}"
    return f"[{entry!r}]"


def _describe(name: str, leaf: Any) -> _Leaf:
    """Of an array, a `jax.ShapeDtypeStruct`, or a Python number (which JAX makes an array)."""
    if isinstance(leaf, bool | int | float) and not isinstance(leaf, np.generic):
        leaf = np.empty((), jnp.result_type(leaf))
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        implementation = ""

        def data(keys):
            nonlocal implementation
            implementation = str(jax.random.key_impl(keys))
            return jax.random.key_data(keys)

        stored = jax.eval_shape(data, leaf)
        return _Leaf(stored.shape, np.dtype(stored.dtype), implementation)
    if dtype is None or np.dtype(dtype).name not in _CODES:
        kind = type(leaf).__name__ if dtype is None else f"an array of {np.dtype(dtype).name}"
        raise CheckpointError(f"the leaf {name} is {kind}: a checkpoint holds arrays of {', '.join(_CODES)}, and keys.")
    return _Leaf(tuple(leaf.shape), np.dtype(dtype).newbyteorder("="))


def _bytes(leaf: Any, stored: _Leaf) -> memoryview:
    """The leaf's bytes, little-endian and in C order, in its own memory where possible."""
    if stored.key is not None:
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
        leaf = _gather(leaf)
    array = np.asarray(leaf, stored.dtype.newbyteorder("<"), order="C")
    return array.reshape(-1).view(np.uint8).data


def _gather(array: jax.Array) -> np.ndarray:
    """A sharded array on the host; `np.asarray` would keep its copy for as long as the array lives."""
    if not array.is_fully_addressable and not array.is_fully_replicated:
        raise CheckpointError("an array is spread over several processes: gather it before saving.")
    if array.is_fully_replicated:
        return np.asarray(array.addressable_shards[0].data)
    whole = np.empty(array.shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            whole[shard.index] = np.asarray(shard.data)
    return whole


def _encode(leaves: Mapping[str, _Leaf], data_checksum: str, metadata: str) -> bytes:
    """The header's bytes with their own checksum in place. Its length does not depend on the checksums."""
    entries: dict[str, Any] = {
        "__metadata__": {
            "treadle_checksum": _UNSET,
            "treadle_format": str(FORMAT),
            "treadle_data_checksum": data_checksum,
            "treadle_keys": json.dumps({name: leaf.key for name, leaf in leaves.items() if leaf.key}),
            "metadata": metadata,
        }
    }
    offset = 0
    for name, leaf in leaves.items():
        end = offset + leaf.nbytes
        entries[name] = {"dtype": _CODES[leaf.dtype.name], "shape": leaf.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    raw = len(text).to_bytes(8, "little") + text
    place = 8 + len(_PREFIX)
    return raw[:place] + _header_checksum(raw) + raw[place + len(_UNSET) :]


def _header_checksum(raw: bytes) -> bytes:
    """Of all the header's bytes except those that hold this checksum."""
    place = 8 + len(_PREFIX)
    return _hex(zlib.crc32(raw[place + len(_UNSET) :], zlib.crc32(raw[:place]))).encode()


def _hex(checksum: int) -> str:
    return f"{checksum:08x}"


def _remove_strays(path: Path) -> None:
    """Remove what a save of the same target left when it was killed."""
    stray = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.partial")
    for file in path.parent.iterdir():
        if stray.fullmatch(file.name):
            file.unlink()


def _sync_folder(path: Path) -> None:
    """Make the renaming last through a power cut, where the file system can."""
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        # Windows opens no folders, and some network file systems sync none.
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise CheckpointError(
                f"{path} was written, but the system cannot promise that it outlasts a power cut: {error}."
            ) from error


def _not_written(path: Path, size: int, error: OSError) -> CheckpointError:
    space = f"It needs {_megabytes(size)}"
    with contextlib.suppress(OSError):
        space += f", and {_megabytes(shutil.disk_usage(path.parent).free)} are free there"
    former = "The former checkpoint is untouched." if path.is_file() else "Nothing was left there."
    return CheckpointError(
        f"the checkpoint {path} could not be written: {error.strerror or error}. {space}. {former} "
        "Make room or choose another folder, and save again."
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, with trouble in opening or reading it told in a sentence."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}: check the path, or train first.") from error
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} could not be read: {error.strerror or error}.") from error


def _read_header(file: BinaryIO, path: Path) -> _Header:
    """Checked against its checksum and the file's size; the file is left where the tensors begin."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8 + len(_PREFIX))
    if not start:
        raise _damaged(path, "it is empty")
    if start[8:] != _PREFIX[: len(start) - 8]:
        raise _foreign(path, start, size)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 + len(_PREFIX) or not len(_PREFIX) + len(_UNSET) <= length <= size - 8:
        raise _damaged(path, "its header is not whole")
    raw = start + file.read(length - len(_PREFIX))
    if raw[len(start) : len(start) + len(_UNSET)] != _header_checksum(raw):
        raise _damaged(path, "its header does not match its checksum")
    try:
        entries = json.loads(raw[8:])
        own = entries.pop("__metadata__")
        _check_format(path, int(own["treadle_format"]))
        metadata, keys = json.loads(own["metadata"]), json.loads(own["treadle_keys"])
        leaves, end = _parse_leaves(entries, keys)
        header = _Header(metadata, leaves, str(own["treadle_data_checksum"]))
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _damaged(path, "its header makes no sense") from error
    if 8 + length + end != size:
        raise _damaged(path, f"it has {size:,} bytes and should have {8 + length + end:,}")
    return header


def _parse_leaves(entries: dict[str, Any], keys: dict[str, str]) -> tuple[dict[str, _Leaf], int]:
    """The leaves, which must follow one another without gaps, and where the last one ends."""
    leaves, offset = {}, 0
    for name, entry in entries.items():
        shape = tuple(int(axis) for axis in entry["shape"])
        leaf = _Leaf(shape, _DTYPES[entry["dtype"]], keys.get(name))
        if min(shape, default=0) < 0 or entry["data_offsets"] != [offset, offset + leaf.nbytes]:
            raise ValueError(name)
        leaves[name] = leaf
        offset += leaf.nbytes
    return leaves, offset


def _check_format(path: Path, given: int) -> None:
    if given != FORMAT:
        advice = "update Treadle" if given > FORMAT else "load it with the version of Treadle that wrote it"
        raise CheckpointError(f"{path} has checkpoint format {given}, and this Treadle reads {FORMAT}: {advice}.")


def _check_fit(path: Path, found: Mapping[str, _Leaf], expected: Mapping[str, _Leaf]) -> None:
    advice = "The settings differ from the ones it was saved with: use those, which are in its metadata."
    for name, leaf in expected.items():
        if name not in found:
            raise CheckpointError(f"{path} has no {name}, and {leaf} was expected. {advice}")
        if found[name] != leaf:
            raise CheckpointError(f"{path} has {found[name]} for {name}, and {leaf} was expected. {advice}")
    for name, leaf in found.items():
        if name not in expected:
            raise CheckpointError(f"{path} has {name}, {leaf}, which was not expected. {advice}")


def _read_leaves(file: BinaryIO, path: Path, header: _Header, kept: Collection[str]) -> dict[str, Any]:
    """The leaves that are to be kept; of the others no more than a piece is in memory at once."""
    leaves, checksum = {}, 0
    for name, leaf in header.leaves.items():
        whole = _Growing(leaf) if name in kept and leaf.is_large else None
        size = leaf.nbytes if name in kept else min(leaf.nbytes, _PIECE)
        data = np.empty(size if whole is None else whole.piece, np.uint8)
        left = leaf.nbytes
        while left:
            piece = data[: min(left, data.size)]
            if file.readinto(piece) != piece.size:  # type: ignore[attr-defined]
                raise _damaged(path, f"it ends within {name}")
            checksum = zlib.crc32(piece.data, checksum)
            left -= piece.size
            if whole is not None:
                whole.add(piece)
        if whole is not None:
            leaves[name] = whole.array()
        elif name in kept:
            leaves[name] = _restore(data, leaf)
    if _hex(checksum) != header.data_checksum:
        raise _damaged(path, "its arrays do not match their checksum")
    return leaves


class _Growing:
    """An array on the default device that is filled piece by piece, so that it is nowhere there twice."""

    def __init__(self, stored: _Leaf):
        self._stored, self._filled = stored, 0
        self._rows = jnp.zeros((math.prod(stored.shape[:-1]), stored.shape[-1]), stored.dtype)

    @property
    def piece(self) -> int:
        """Bytes of a piece: whole rows."""
        row = self._stored.shape[-1] * self._stored.dtype.itemsize
        return max(1, _PIECE // row) * row

    def add(self, piece: np.ndarray) -> None:
        """The next rows."""
        items = piece.view(self._stored.dtype.newbyteorder("<")).astype(self._stored.dtype, copy=False)
        rows = items.reshape(-1, self._rows.shape[1])
        self._rows = _with_rows(self._rows, rows, self._filled).block_until_ready()
        self._filled += len(rows)

    def array(self) -> jax.Array:
        """What was filled in, in its own shape."""
        return _shaped(self._rows, self._stored.shape)


@functools.partial(jax.jit, donate_argnums=0)
def _with_rows(whole: jax.Array, rows: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice(whole, rows, (start, 0))


@functools.partial(jax.jit, donate_argnums=0, static_argnums=1)
def _shaped(rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return rows.reshape(shape)


def _restore(data: np.ndarray, stored: _Leaf) -> Any:
    array = data.view(stored.dtype.newbyteorder("<")).reshape(stored.shape).astype(stored.dtype, copy=False)
    if jax.dtypes.canonicalize_dtype(stored.dtype) != stored.dtype:
        return array
    # Waiting for the copy (jnp.array would make two) frees the bytes read before those of the next leaf come.
    restored = jax.device_put(array).block_until_ready()
    return restored if stored.key is None else jax.random.wrap_key_data(restored, impl=stored.key)


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or was cut short: {why}. Use an earlier checkpoint, or train anew.")


def _foreign(path: Path, start: bytes, size: int) -> CheckpointError:
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        kind = "is a safetensors file, but either another program made it or its header is damaged"
    elif start[:1] == b"\x80" or start[:2] == b"PK":
        kind = "looks like a pickle or a zip archive, which Treadle does not open because loading one can run code"
    else:
        kind = "is not a safetensors file"
    return CheckpointError(f"{path} is not a Treadle checkpoint: it {kind}. Give a file that Treadle saved.")
