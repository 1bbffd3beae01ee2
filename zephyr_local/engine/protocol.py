"""What crosses the pipe between an application and its engine process: typed, versioned, JSON with a length in front.

Frozen dataclasses of plain values. Reading checks every field against its annotation, so that neither side ever sees a
message of another shape; nothing is pickled, nothing is called. In the application's own process the same objects are
passed as they are.
"""

from __future__ import annotations

import json
import math
import struct
import types
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, BinaryIO, Final, Literal, Union, get_args, get_origin, get_type_hints

from zephyr_local import errors
from zephyr_local.chat_types import Finish, Message, TokenLogprob
from zephyr_local.errors import EngineError, ZephyrError
from zephyr_local.settings import EngineSettings, Sampling

VERSION: Final = 2
MAX_FRAME_BYTES: Final = 256 << 20
_LENGTH: Final = struct.Struct("<I")


class ProtocolError(Exception):
    """The other side sent what is no message of this version."""


@dataclass(frozen=True, slots=True)
class Load:
    id: int
    path: str  # file-system bytes that are no text as lone surrogates, as os.fsdecode gives them
    settings: EngineSettings
    template: str | None
    template_is_file: bool


@dataclass(frozen=True, slots=True)
class Generate:
    id: int
    messages: tuple[Message, ...]
    sampling: Sampling
    answer_start: str = ""
    """What the answer begins with already."""


@dataclass(frozen=True, slots=True)
class CountTokens:
    id: int
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Tokenize:
    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Embed:
    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Devices:
    id: int


@dataclass(frozen=True, slots=True)
class Cancel:
    id: int
    """That of the request to cancel."""


Request = Load | Generate | CountTokens | Tokenize | Embed | Devices | Cancel


@dataclass(frozen=True, slots=True)
class Hello:
    version: int


@dataclass(frozen=True, slots=True)
class LoadProgress:
    id: int
    share: float


@dataclass(frozen=True, slots=True)
class Loaded:
    id: int
    model_name: str
    notices: tuple[str, ...]
    n_ctx: int
    n_vocab: int


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    id: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TextEvent:
    id: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    id: int
    text: str
    finish: Finish
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """Of CountTokens: one number. Tokenize: the ids. Embed: the vector. Devices: names."""

    id: int
    numbers: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    id: int
    kind: str  # a class of errors.py
    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class NativeLog:
    level: int
    line: str


Event = Hello | LoadProgress | Loaded | PrefillProgress | TextEvent | Finished | Result | Failed | NativeLog

_PLAIN_TEXT: Final = [int, str, list]
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode
_from_json: Final = json.JSONDecoder().raw_decode
_KINDS: Final[dict[str, type[Any]]] = {kind.__name__: kind for kind in (*get_args(Request), *get_args(Event))}


def failure(request_id: int, error: BaseException) -> Failed:
    """An exception as it crosses; what is none of ours is told as an engine's, with its type."""
    if isinstance(error, ZephyrError):
        return Failed(request_id, type(error).__name__, error.problem, error.remedy)
    if isinstance(error, MemoryError):
        return Failed(request_id, "NotEnoughMemoryError", "there is not enough memory", "Use a smaller n_ctx or model")
    return Failed(request_id, "EngineError", f"{type(error).__name__}: {error}", "This is a mistake of ours; report it")


def error_of(failed: Failed) -> ZephyrError:
    """The exception that a failure stands for."""
    kind = getattr(errors, failed.kind, EngineError)
    if not (isinstance(kind, type) and issubclass(kind, ZephyrError)):
        kind = EngineError
    return kind(failed.problem, failed.remedy)


def encode(message: Request | Event) -> bytes:
    """A frame: the body's length, then the body."""
    if type(message) is TextEvent and not message.logprobs:
        plain: object = [message.id, message.text, ()]  # one for each token: the general way costs three times as much
    else:
        plain = _plain(message)
    body = _to_json([type(message).__name__, plain]).encode("ascii")
    if len(body) > MAX_FRAME_BYTES:
        raise EngineError(f"a message of {len(body)} bytes is over {MAX_FRAME_BYTES}", "Send a shorter chat")
    return _LENGTH.pack(len(body)) + body


def read(stream: BinaryIO) -> Request | Event | None:
    """The next message of a stream that reads fully; None at its end, also in the middle of a message."""
    header = stream.read(_LENGTH.size)
    if header is None or len(header) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"a message claims {length} bytes")
    body = stream.read(length)
    if body is None or len(body) < length:
        return None
    return decode(body)


def decode(body: bytes) -> Request | Event:
    """A message from a frame's body. Raises ProtocolError."""
    try:
        text = body.decode("ascii")
        (name, values), end = _from_json(text)
        if end != len(text):
            raise ProtocolError("a message with something behind it")
        if name == "TextEvent" and [type(value) for value in values] == _PLAIN_TEXT and not values[2]:
            return TextEvent(values[0], values[1])
        message: Request | Event = _typed(values, _KINDS[name])
    except ProtocolError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError, ZephyrError) as error:
        raise ProtocolError(f"not a message: {type(error).__name__}: {error}") from None
    return message


def _plain(value: object) -> object:
    if is_dataclass(value):
        return [_plain(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # JSON has no infinity
    return value


@cache
def _fields(kind: type[Any]) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(kind)
    return tuple((field.name, hints[field.name]) for field in fields(kind))


def _typed(value: object, kind: Any) -> Any:  # noqa: ANN401 — it is what the annotation says
    if is_dataclass(kind):
        assert isinstance(kind, type)
        if not isinstance(value, list) or len(value) != len(_fields(kind)):
            raise ProtocolError(f"{kind.__name__} with other fields")
        return kind(**{name: _typed(item, hint) for item, (name, hint) in zip(value, _fields(kind), strict=True)})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        for option in arguments:
            try:
                return _typed(value, option)
            except ProtocolError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, list) and len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_typed(item, arguments[0]) for item in value)
        if isinstance(value, list) and len(arguments) == len(value):
            return tuple(_typed(item, argument) for item, argument in zip(value, arguments, strict=True))
    elif kind is float:
        if value in ("inf", "-inf", "nan") or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return float(value)
    elif kind is type(None):
        if value is None:
            return None
    elif kind in (int, str, bool) and type(value) is kind:
        return value
    raise ProtocolError(f"{str(value)[:80]!r} where {kind} belongs")
