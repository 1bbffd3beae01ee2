"""Which code encodes: our numba kernels, a torch device, or ggml; settled once before a conversion begins.

By default every encoder gives ggml's bytes: the kernels are compared with ggml's on a probe before they serve, and
where they differ, or numba is not installed, ggml's own serve instead. docs/design/encoders.md tells the whole.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zephyr_local.errors import EngineError, InvalidInputError
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.kernels.devices import parse_device
from zephyr_local.quantize.kernels.self_check import (
    EncodeKind,
    ProbeResults,
    betters_ggml,
    gives_ggml_bytes,
    relative_error_difference,
)
from zephyr_local.quantize.types import TensorType

_LOGGER: Final = logging.getLogger("zephyr_local.quantize")
# Without a handler somewhere, logging prints warnings to stderr; a library leaves that to the application.
logging.getLogger("zephyr_local").addHandler(logging.NullHandler())

Encode = Callable[[TensorType, NDArray[np.float32], NDArray[np.float32] | None], NDArray[np.uint8]]
"""Encodes float32 rows, (n_rows, n_columns), with an importance for each column or none; called by several threads."""

KERNEL_KINDS: Final = frozenset(
    {TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K, TensorType.Q3_K, TensorType.Q2_K, TensorType.Q8_0}
)
"""What our kernels encode; every other type is ggml's in any case."""
THOROUGH_KINDS: Final = frozenset({TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K})
"""What the thorough search betters; it leaves every other type as it is."""

_INSTALL: Final = 'pip install "zephyr-local[fast]"'
_LARGEST_DIFFERENCE: Final = 1e-6  # of an accelerator's squared error from ggml's, where its bytes differ


class Search(StrEnum):
    """How hard the scales of Q4_K, Q5_K and Q6_K are searched."""

    GGML = "ggml"
    """As ggml does: the bytes are ggml's."""
    THOROUGH = "thorough"
    """Further: another choice of the same numbers, with a smaller error, never a larger one."""


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """What a person may choose of the encoders."""

    search: Search = Search.GGML
    device: str = "cpu"
    """`cpu`, or a torch device: `cuda`, `cuda:1` and so on, `mps`."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "search", Search(self.search))  # "thorough" is as good
        except ValueError as error:
            known = " or ".join(search.value for search in Search)
            raise InvalidInputError(f"{self.search!r} is no search for scales", f"Use {known}") from error
        parse_device(self.device)
        if self.search is Search.THOROUGH and self.on_device:
            raise InvalidInputError(
                f"the thorough search runs on the CPU, and the device is {self.device}", "Leave out one of the two"
            )

    @property
    def on_device(self) -> bool:
        """Whether torch encodes."""
        return self.device != "cpu"


@dataclass(frozen=True, slots=True)
class Encoder:
    """Encoders that are ready: compiled, and compared with ggml's."""

    name: str
    """For people: `numba`, `numba, thorough`, `ggml`, or `torch on cuda:0`."""
    encode: Encode
    notices: tuple[str, ...] = ()
    prepared_s: float = 0.0
    """How long it took to import what it needs, to compile and to compare."""


def open_encoder(
    options: EncoderOptions, kinds: Collection[TensorType], on_compile: Callable[[], None] | None = None
) -> Encoder:
    """Encoders for those types; `on_compile` is called before kernels are compiled, which happens once on a machine.

    Types without a kernel are ggml's. Raises InvalidInputError as :func:`require_encoders` does, and EngineError where
    a device turns out to encode otherwise than ggml.
    """
    began = time.perf_counter()
    encoder = _open(options, kinds, on_compile)
    for notice in encoder.notices:
        _LOGGER.warning(notice)
    return replace(encoder, prepared_s=time.perf_counter() - began)


def _open(options: EncoderOptions, kinds: Collection[TensorType], on_compile: Callable[[], None] | None) -> Encoder:
    require_encoders(options, kinds)
    if options.on_device:
        return _on_device(options.device, kinds)
    if foreseen := foreseen_notices(options, kinds):
        return Encoder("ggml", ggml.encode, foreseen)
    if not KERNEL_KINDS & set(kinds):
        return Encoder("ggml", ggml.encode)
    try:
        kernels = _NumbaKernels(options.search, kinds)
        compiled = kernels.are_compiled()
    except Exception as error:
        return _numba_fails(options.search, error)
    if on_compile is not None and not compiled:
        on_compile()  # whose errors are the caller's
    try:
        return kernels.open()
    except Exception as error:
        return _numba_fails(options.search, error)


def require_encoders(options: EncoderOptions, kinds: Collection[TensorType]) -> None:
    """Raises InvalidInputError where the search or the device cannot be had, or would change nothing of these types."""
    name, of_types = "", KERNEL_KINDS
    if options.search is Search.THOROUGH:
        name, of_types = "the thorough search", THOROUGH_KINDS
        if importlib.util.find_spec("numba") is None:
            raise InvalidInputError(f"{name} needs numba, which is not installed", f"Run {_INSTALL}")
    elif options.on_device:
        name = f"the device {options.device}"
        if importlib.util.find_spec("torch") is None:
            raise InvalidInputError(f"{name} needs torch, which is not installed", "Install torch, or use the CPU")
        from zephyr_local.quantize.kernels import torch_encoder

        torch_encoder.open_device(options.device)
    if name and not of_types & set(kinds):
        raise InvalidInputError(
            f"{name} would change nothing: no tensor is to be encoded as one of {_listed(of_types)}",
            "Leave it out, or take another type",
        )


def foreseen_notices(options: EncoderOptions, kinds: Collection[TensorType]) -> tuple[str, ...]:
    """What :func:`open_encoder` will say, as far as that is known without opening anything."""
    slower = _listed(KERNEL_KINDS & set(kinds))
    if options.on_device or not slower or importlib.util.find_spec("numba") is not None:
        return ()
    return (f"encoding {slower} with ggml, several times slower than with numba: {_INSTALL}",)


def _listed(kinds: Collection[TensorType]) -> str:
    return ", ".join(sorted(kind.name for kind in kinds))


def _numba_fails(search: Search, error: Exception) -> Encoder:
    """A numba that does not fit numpy, Python or the platform says so by some error, imported or first used."""
    first_line = (str(error).splitlines() or [""])[0]  # numba's may have dozens
    reason = f"numba fails here ({type(error).__name__}: {first_line})"
    if search is Search.THOROUGH:
        raise InvalidInputError(
            f"the thorough search needs numba, and {reason}", "Mend or upgrade numba, or leave out the search"
        ) from error
    return Encoder("ggml", ggml.encode, (f"encoding with ggml, several times slower: {reason}",))


class _NumbaKernels:
    """Our kernels for some types, less those that a probe refused before."""

    def __init__(self, search: Search, kinds: Collection[TensorType]) -> None:
        # Imported late: numba takes half a second, and is not installed everywhere.
        from zephyr_local.quantize.kernels import compiled, numba_encoder

        self._encoder = numba_encoder
        self._folder = compiled.cache_folder()
        self._results = ProbeResults(self._folder)
        self._kinds = sorted(KERNEL_KINDS & set(kinds), key=lambda kind: kind.name)
        self._searched = [kind for kind in self._kinds if kind in THOROUGH_KINDS and search is Search.THOROUGH]
        self._plain_to_try = [kind for kind in self._kinds if self._results.of(kind.name) is not False]
        self._thorough_to_try = [kind for kind in self._searched if self._results.of(_thorough(kind)) is not False]

    def are_compiled(self) -> bool:
        """Whether nothing is left to compile."""
        return self._encoder.is_compiled(self._plain_to_try, self._thorough_to_try, self._folder)

    def open(self) -> Encoder:
        """Compiles them and compares them with ggml's."""
        plain = self._pass_probes(
            self._plain_to_try,
            lambda kind: self._encoder.prepare(kind, self._folder),
            gives_ggml_bytes,
            lambda kind: kind.name,
        )
        thorough = self._pass_probes(
            self._thorough_to_try,
            lambda kind: self._encoder.prepare_thorough(
                kind, plain.get(kind) or functools.partial(ggml.encode, kind), self._folder
            ),
            betters_ggml,
            _thorough,
        )
        notices = []
        if differing := _listed(set(self._kinds) - plain.keys()):
            notices.append(
                f"encoding {differing} with ggml, several times slower: our kernels give other bytes on this machine"
            )
        if worse := _listed(set(self._searched) - thorough.keys()):
            notices.append(f"{worse} by ggml's search: the thorough one loses more on this machine")
        if not self.are_compiled():
            place = "anywhere" if self._folder is None else f"in {self._folder}"
            notices.append(f"compiled encoders cannot be kept {place}: every conversion compiles them anew")
        name = "numba, thorough" if thorough else "numba" if plain else "ggml"
        return Encoder(name, _dispatch(plain | thorough), tuple(notices))

    def _pass_probes(
        self,
        kinds: Collection[TensorType],
        prepare: Callable[[TensorType], EncodeKind],
        probe: Callable[[TensorType, EncodeKind], bool],
        name: Callable[[TensorType], str],
    ) -> dict[TensorType, EncodeKind]:
        """The encoders that pass; `name` is that of a type's probe in the results."""
        encoders = {kind: prepare(kind) for kind in kinds}
        return {
            kind: encode
            for kind, encode in encoders.items()
            if self._results.find(name(kind), functools.partial(probe, kind, encode))
        }


def _thorough(kind: TensorType) -> str:
    """The name under which a probe of the thorough search is kept."""
    return f"{kind.name} thorough"


def _dispatch(by_kind: dict[TensorType, EncodeKind]) -> Encode:
    """Each type by its own encoder, the others by ggml's."""

    def encode(
        kind: TensorType, rows: NDArray[np.float32], importance: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        of_kind = by_kind.get(kind)
        return ggml.encode(kind, rows, importance) if of_kind is None else of_kind(rows, importance)

    return encode


def _on_device(name: str, kinds: Collection[TensorType]) -> Encoder:
    from zephyr_local.quantize.kernels import torch_encoder

    device = torch_encoder.open_device(name)
    by_kind: dict[TensorType, EncodeKind] = {}
    notices = []
    for kind in sorted(KERNEL_KINDS & set(kinds), key=lambda kind: kind.name):

        def encode(
            rows: NDArray[np.float32], importance: NDArray[np.float32] | None, kind: TensorType = kind
        ) -> NDArray[np.uint8]:
            return torch_encoder.encode(kind, rows, importance, device)

        if not gives_ggml_bytes(kind, encode):
            apart = relative_error_difference(kind, encode)
            if not apart <= _LARGEST_DIFFERENCE:
                raise EngineError(
                    f"{device} encodes {kind.name} with another error than ggml (by {apart:.1e} of it, over "
                    f"{_LARGEST_DIFFERENCE:g})",
                    "Leave out --device",
                )
            notices.append(f"{kind.name}: {device} gives other bytes than ggml, with the same error to {apart:.0e}")
        by_kind[kind] = encode
    return Encoder(f"torch on {device}", _dispatch(by_kind), tuple(notices))
