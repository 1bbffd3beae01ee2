"""Reads a GGUF header, with a limit on everything that the file may claim about itself.

A GGUF comes from the network and its header steers native code, so nothing in it is believed: each count, length and
string has a limit, each offset is compared with the size of the file. What is read here need not be runnable;
:mod:`zephyr_local.gguf_check` decides that.

The format is that of ggml's ``docs/gguf.md``, versions 2 and 3 (little-endian): magic, version, number of tensors,
number of key/value pairs, the pairs, the tensor descriptions, padding, tensor data.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from zephyr_local.errors import ModelFileError, ModelNotFoundError

Scalar = int | float | bool | str
Value = Scalar | list[int] | list[float] | list[bool] | list[str]
"""A metadata value as Python has it; :attr:`GGUFFile.value_types` keeps the type that the file gave."""

MAX_HEADER_BYTES: Final = 64 << 20  # a vocabulary of 256k tokens with merges takes 15 MB
MAX_PAIRS: Final = 4096
MAX_TENSORS: Final = 65_536
MAX_KEY_BYTES: Final = 256
MAX_NAME_BYTES: Final = 63  # GGML_MAX_NAME less its NUL
MAX_STRING_BYTES: Final = 1 << 20
MAX_ARRAY_LENGTH: Final = 1 << 21
MAX_DIMENSIONS: Final = 4  # GGML_MAX_DIMS
DEFAULT_ALIGNMENT: Final = 32

DOWNLOAD_AGAIN: Final = "Download or convert the model again; the file is incomplete or damaged"

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Final[Mapping[int, tuple[str, str, int]]] = {  # type code → (name, struct code, bytes)
    0: ("u8", "B", 1),
    1: ("i8", "b", 1),
    2: ("u16", "H", 2),
    3: ("i16", "h", 2),
    4: ("u32", "I", 4),
    5: ("i32", "i", 4),
    6: ("f32", "f", 4),
    _BOOL: ("bool", "B", 1),
    10: ("u64", "Q", 8),
    11: ("i64", "q", 8),
    12: ("f64", "d", 8),
}

TENSOR_TYPES: Final[Mapping[int, tuple[str, int, int]]] = {  # ggml type → (name, weights a block, bytes a block)
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

_KEY = re.compile(r"[A-Za-z0-9_.\-/]+\Z")
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_.\-/]+\Z")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies and what it is made of."""

    name: str
    shape: tuple[int, ...]
    """As stored: ggml's ``ne``, the row length first. A linear layer's weight is (n_in, n_out)."""
    type_name: str
    offset: int
    """Bytes from the :attr:`GGUFFile.data_offset` of the file that it lies in."""
    size_bytes: int
    part: int = 0
    """Which of :attr:`GGUFFile.files` it lies in, from 0."""

    @property
    def n_elements(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A GGUF's header, or that of a model in several files; every offset in it lies inside its file."""

    path: Path
    """Of several files the first, whose name stands for the model."""
    version: int
    metadata: Mapping[str, Value]
    value_types: Mapping[str, str]
    """The type of each metadata value: ``u32``, ``f32``, ``str``, ``array[str]``, …"""
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int
    """Bytes from the start of the file to the tensor data; of several files the first's, see :meth:`locate`."""
    size_bytes: int
    """Of all files together."""
    parts: tuple[GGUFFile, ...] = ()
    """The files of a model in several, as each is by itself; empty for a model in one. ``gguf_split`` fills it."""

    @property
    def files(self) -> tuple[GGUFFile, ...]:
        """Each file by itself: ``parts``, or this one."""
        return self.parts or (self,)

    @property
    def architecture(self) -> str:
        """``general.architecture``, or an empty string where the file has none."""
        return self.text("general.architecture")

    def locate(self, tensor: TensorInfo) -> tuple[Path, int]:
        """The file that a tensor lies in, and the bytes from that file's start to the tensor's data."""
        file = self.files[tensor.part]
        return file.path, file.data_offset + tensor.offset

    def text(self, key: str) -> str:
        """The value under ``key`` if it is a string, else an empty one."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Read the header of the GGUF at ``path``; the tensor data is not touched.

    Raises ModelNotFoundError where there is no file, ModelFileError where it is not a whole, well-formed GGUF.
    """
    path = Path(path)
    try:
        with open(path, "rb", opener=_open_without_waiting) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelFileError(f"{path} is not a regular file", "Give the path of a .gguf file")
            return _Reader(stream, path, status.st_size).read()
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"there is no file {path}", "Check the path (names on a model hub are not looked up)"
        ) from None
    except IsADirectoryError:
        raise _directory_error(path) from None
    except PermissionError as error:
        if path.is_dir():  # what opening a folder raises on Windows
            raise _directory_error(path) from None
        raise ModelFileError(f"{path} cannot be opened: {error.strerror}", "Make it readable for this user") from None
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be read: {error.strerror or error}", "Check the path and the disk"
        ) from None
    except ValueError as error:  # a NUL in the path
        raise ModelNotFoundError(f"{path!s} is not a path: {error}", "Check the path") from None


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a FIFO for reading waits for a writer, for ever if there is none.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _directory_error(path: Path) -> ModelFileError:
    if (path / "config.json").exists():
        remedy = "It looks like a Hugging Face checkpoint: convert it with zephyr-local quantize"
    else:
        remedy = "Give the path of a .gguf file"
    return ModelFileError(f"{path} is a folder, not a GGUF file", remedy)


def _explain_magic(path: Path, head: bytes) -> ModelFileError:
    """Say what a file that is no GGUF is likely to be: each of these is something that users really have."""
    text = head.lstrip().lower()
    problem = f"{path} is not a GGUF file"
    if not head:
        return ModelFileError(f"{path} is empty", DOWNLOAD_AGAIN)
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return ModelFileError(f"{problem}: it is a web page", "Download it again, with the link of the file itself")
    if text.startswith(b"version https://git-lfs"):
        return ModelFileError(f"{problem}: it is a Git LFS pointer", "Run git lfs pull in its folder, or download it")
    if head[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
        return ModelFileError(
            f"{path} is in the GGML format from before August 2023", "Get the model as GGUF; this format is not loaded"
        )
    if head[:4] == b"FUGG":
        return ModelFileError(f"{path} is a big-endian GGUF", "Get the little-endian file")
    if len(head) >= 10 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return ModelFileError(
            f"{problem}: it looks like safetensors", "Convert its folder with zephyr-local quantize FOLDER"
        )
    if head[:4] == b"PK\x03\x04" or head[:2] == b"\x80\x02":
        return ModelFileError(
            f"{problem}: it looks like a PyTorch pickle", "Get the checkpoint as safetensors and convert that"
        )
    return ModelFileError(f"{problem}: it begins with {head[:4]!r} instead of b'GGUF'", "Give the path of a .gguf file")


class _Reader:
    """Walks through a header once, never past its limit."""

    def __init__(self, stream: IO[bytes], path: Path, size_bytes: int) -> None:
        self._stream = stream
        self._path = path
        self._size_bytes = size_bytes
        self._position = 0
        self._limit = min(size_bytes, MAX_HEADER_BYTES)

    def read(self) -> GGUFFile:
        head = self._stream.read(256)
        if head[:4] != b"GGUF":
            raise _explain_magic(self._path, head)
        self._stream.seek(0)
        self._take(4, "the magic")
        version = self._number("I", 4, "the version")
        if version not in (2, 3):
            hint = "it is big-endian" if version in (2 << 24, 3 << 24) else "versions 2 and 3 are read"
            raise self._damaged(f"the GGUF version is {version}; {hint}", "Get the model as a current GGUF")
        n_tensors = self._count("Q", MAX_TENSORS, "the number of tensors")
        n_pairs = self._count("Q", MAX_PAIRS, "the number of metadata keys")
        metadata: dict[str, Value] = {}
        value_types: dict[str, str] = {}
        for index in range(n_pairs):
            key = self._key(index)
            if key in metadata:
                raise self._damaged(f"the key {key} is there twice")
            value_types[key], metadata[key] = self._value(key)
        alignment = self._alignment(metadata, value_types)
        tensors = self._tensors(n_tensors, alignment)
        data_offset = self._position + -self._position % alignment
        data_end = data_offset + max((t.offset + t.size_bytes for t in tensors), default=0)
        if tensors and data_end > self._size_bytes:
            raise self._damaged(f"its tensors end at byte {data_end} but the file has {self._size_bytes}")
        return GGUFFile(
            path=self._path,
            version=version,
            metadata=metadata,
            value_types=value_types,
            tensors=tensors,
            alignment=alignment,
            data_offset=data_offset,
            size_bytes=self._size_bytes,
        )

    # --- what the header is made of ---

    def _key(self, index: int) -> str:
        key = self._text(f"the name of key {index}", MAX_KEY_BYTES)
        if not _KEY.match(key):
            raise self._damaged(f"key {index} is named {key[:40]!r}; letters, digits and _ . - / are allowed")
        return key

    def _value(self, key: str) -> tuple[str, Value]:
        code = self._number("I", 4, key)
        if code == _STRING:
            return "str", self._text(key, MAX_STRING_BYTES)
        if code in _SCALARS:
            name, letter, width = _SCALARS[code]
            number = self._unpack("<" + letter, width, key)[0]
            if code == _BOOL:
                return name, self._boolean(int(number), key)
            return name, number
        if code != _ARRAY:
            raise self._damaged(f"{key} has the unknown value type {code}")
        return self._array(key)

    def _array(self, key: str) -> tuple[str, Value]:
        code = self._number("I", 4, key)
        length = self._count("Q", MAX_ARRAY_LENGTH, f"the length of {key}")
        if code == _STRING:
            return "array[str]", self._texts(length, key)
        if code not in _SCALARS:
            raise self._damaged(
                f"{key} is an array of the type {code}; arrays of numbers, booleans and strings are read"
            )
        name, letter, width = _SCALARS[code]
        numbers = list(self._unpack(f"<{length}{letter}", length * width, key))
        if code == _BOOL:
            return f"array[{name}]", [self._boolean(int(n), key) for n in numbers]
        return f"array[{name}]", numbers

    def _alignment(self, metadata: Mapping[str, Value], value_types: Mapping[str, str]) -> int:
        key = "general.alignment"
        alignment = metadata.get(key, DEFAULT_ALIGNMENT)
        if key in metadata and value_types[key] != "u32":
            raise self._damaged(f"{key} has the type {value_types[key]}; it must be u32")
        if not isinstance(alignment, int) or not 8 <= alignment <= 65536 or alignment & (alignment - 1):
            raise self._damaged(f"{key} is {alignment}; it must be a power of two from 8 to 65536")
        return alignment

    def _tensors(self, n_tensors: int, alignment: int) -> tuple[TensorInfo, ...]:
        tensors: dict[str, TensorInfo] = {}
        for index in range(n_tensors):
            name = self._text(f"the name of tensor {index}", MAX_NAME_BYTES)
            if not _TENSOR_NAME.match(name):
                raise self._damaged(f"tensor {index} is named {name!r}; letters, digits and _ . - / are allowed")
            if name in tensors:
                raise self._damaged(f"the tensor {name} is there twice")
            tensors[name] = self._tensor(name, alignment)
        return tuple(tensors.values())

    def _tensor(self, name: str, alignment: int) -> TensorInfo:
        what = f"the tensor {name}"
        n_dimensions = self._number("I", 4, what)
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            raise self._damaged(f"{what} has {n_dimensions} dimensions, outside 1 to {MAX_DIMENSIONS}")
        shape = self._unpack(f"<{n_dimensions}Q", 8 * n_dimensions, what)
        code = self._number("I", 4, what)
        offset = self._number("Q", 8, what)
        if code not in TENSOR_TYPES:
            raise self._damaged(f"{what} has the unknown type {code}", "Get the file in another quantisation")
        type_name, block, block_bytes = TENSOR_TYPES[code]
        if any(length < 1 for length in shape):
            raise self._damaged(f"{what} has the empty shape {shape}")
        if shape[0] % block:
            raise self._damaged(f"{what} has rows of {shape[0]}, not a multiple of the {block} of {type_name}")
        size_bytes = shape[0] // block * block_bytes
        for length in shape[1:]:
            size_bytes *= length
        if size_bytes > self._size_bytes or offset > self._size_bytes:
            raise self._damaged(
                f"{what} takes {size_bytes} bytes from {offset} on, more than the file's {self._size_bytes}"
            )
        if offset % alignment:
            raise self._damaged(f"{what} starts at {offset}, not a multiple of the alignment {alignment}")
        return TensorInfo(name, shape, type_name, offset, size_bytes)

    # --- bytes ---

    def _take(self, n_bytes: int, what: str) -> bytes:
        left = self._limit - self._position
        if n_bytes > left:
            if self._limit < self._size_bytes:
                raise self._damaged(f"{what} lies past the {MAX_HEADER_BYTES >> 20} MiB that a header may have")
            raise self._damaged(f"{what} needs {n_bytes} bytes but {left} are left")
        data = self._stream.read(n_bytes)
        if len(data) != n_bytes:  # the file became shorter while it was read
            raise self._damaged(f"{what} needs {n_bytes} bytes but {len(data)} could be read")
        self._position += n_bytes
        return data

    def _unpack(self, layout: str, n_bytes: int, what: str) -> tuple[int, ...]:
        return struct.unpack(layout, self._take(n_bytes, what))

    def _number(self, letter: str, width: int, what: str) -> int:
        return self._unpack("<" + letter, width, what)[0]

    def _count(self, letter: str, limit: int, what: str) -> int:
        count = self._number(letter, 8, what)
        if count > limit:
            raise self._damaged(f"{what} is {count}, over the limit of {limit}")
        return count

    def _boolean(self, byte: int, key: str) -> bool:
        if byte not in (0, 1):
            raise self._damaged(f"{key} is a boolean with the byte {byte}")
        return bool(byte)

    def _text(self, what: str, limit: int) -> str:
        n_bytes = self._number("Q", 8, what)
        if n_bytes > limit:
            raise self._damaged(f"{what} has {n_bytes} bytes, over the limit of {limit}")
        return self._decode(self._take(n_bytes, what), lambda: what)

    def _texts(self, length: int, key: str) -> list[str]:
        # The vocabulary: 32,000 strings, so without a method call for each.
        read, unpack_from, limit = self._stream.read, struct.Struct("<Q").unpack, self._limit
        position = self._position
        texts: list[str] = []
        for index in range(length):
            if position + 8 > limit:
                raise self._damaged(f"{key}[{index}] lies past the end of the header")
            (n_bytes,) = unpack_from(read(8))
            position += 8 + n_bytes
            if n_bytes > MAX_STRING_BYTES or position > limit:
                raise self._damaged(f"{key}[{index}] has {n_bytes} bytes, more than allowed or left")
            data = read(n_bytes)
            try:
                texts.append(data.decode())
            except UnicodeDecodeError:
                self._decode(data, lambda index=index: f"{key}[{index}]")  # type: ignore[misc]
        self._position = position
        return texts

    def _decode(self, data: bytes, what: Callable[[], str]) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self._damaged(f"{what()} is not UTF-8 at byte {error.start}") from None

    def _damaged(self, problem: str, remedy: str = DOWNLOAD_AGAIN) -> ModelFileError:
        return ModelFileError(f"{self._path.name}: {problem}", remedy)
