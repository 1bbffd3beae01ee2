"""Whether an encoder may serve on this machine, tried on a probe beside ggml's; what was found is kept between runs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.types import TensorType

EncodeKind = Callable[[NDArray[np.float32], NDArray[np.float32] | None], NDArray[np.uint8]]
"""An encoder of one type: float32 rows, (n_rows, n_columns), and an importance for each column or none, to bytes."""

_N_COLUMNS = 1280  # five super-blocks a row: with importance, lanes of a batch are at different columns
_ROUNDING = 1e-6  # by which an error may differ for no other reason
_TOO_LARGE = 8  # the row whose scales no float16 holds: it has no error
_N_ROWS = 13  # not a whole number of batches of sixteen super-blocks


@functools.cache
def _probe() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows of every kind that a search treats in its own way, (13, 1280), and an importance, (1280,).

    Another order of operations, a fused multiply-add or flushed denormals change some scale among them.
    """
    rng = np.random.default_rng(20_231_025)
    rows = rng.standard_normal((_N_ROWS, _N_COLUMNS))
    rows[1] = rng.standard_t(3, _N_COLUMNS)
    rows[2] = np.round(rows[2] * 2) / 8  # ties
    rows[3] = 0.25
    rows[4] = 0
    rows[5] = np.abs(rows[5])
    rows[6] = -np.abs(rows[6])
    rows[7] *= 1e-41
    rows[_TOO_LARGE] *= 1e20
    rows[9:11] *= np.repeat(10.0 ** rng.uniform(-9, 0, (2, _N_COLUMNS // 16)), 16, axis=1)
    rows[11, rng.random(_N_COLUMNS) < 0.9] = 0
    importance = rng.lognormal(size=_N_COLUMNS)
    importance[rng.random(_N_COLUMNS) < 0.1] = 0
    return rows.astype(np.float32), importance.astype(np.float32)


def gives_ggml_bytes(kind: TensorType, encode: EncodeKind) -> bool:
    """Whether the encoder and ggml's agree on every byte of the probe, with importance and without."""
    rows, importance = _probe()
    return all(
        np.array_equal(encode(rows, weights), ggml.encode(kind, rows, weights)) for weights in (None, importance)
    )


def _errors(
    kind: TensorType, encode: EncodeKind, rows: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """The weighted squared error of each super-block, (n_rows * n_columns / 256,)."""
    squares = (ggml.decode(kind, encode(rows, importance), rows.shape[1]).astype(np.float64) - rows) ** 2
    weighted = squares if importance is None else squares * importance
    errors: NDArray[np.float64] = weighted.reshape(-1, 256).sum(axis=1)
    return errors


def betters_ggml(kind: TensorType, encode: EncodeKind) -> bool:
    """Whether the encoder's error on the probe is less than ggml's, and larger in no super-block."""
    rows, importance = _probe()
    rows = np.delete(rows, _TOO_LARGE, axis=0)
    for weights in (None, importance):
        ours = _errors(kind, encode, rows, weights)
        theirs = _errors(kind, functools.partial(ggml.encode, kind), rows, weights)
        if not (ours <= theirs * (1 + _ROUNDING)).all() or not ours.sum() < theirs.sum():
            return False
    return True


def relative_error_difference(kind: TensorType, encode: EncodeKind) -> float:
    """How far the squared errors of the encoder and of ggml's on the probe's ordinary rows are apart, relative.

    NaN where the encoder's is no number.
    """
    rows, importance = _probe()
    rows = rows[:3]
    apart = []
    for weights in (None, importance):
        ours = _errors(kind, encode, rows, weights).sum()
        theirs = _errors(kind, functools.partial(ggml.encode, kind), rows, weights).sum()
        apart.append(abs(ours - theirs) / theirs)
    return float(np.max(apart))  # unlike Python's max, NaN where one is


class ProbeResults:
    """What probes of this machine found, by name, in a small file that may be missing, damaged or unwritable."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` belongs to one version of the kernels and one kind of processor."""
        name = hashlib.sha256(ggml.library_identity().encode()).hexdigest()[:16]
        self._path = None if folder is None else folder / f"checked-{name}.json"
        self._found: dict[str, bool] = {}
        if self._path is not None:
            with contextlib.suppress(OSError, ValueError):
                found = json.loads(self._path.read_text("utf-8"))
                if isinstance(found, dict):
                    self._found = {name: value for name, value in found.items() if isinstance(value, bool)}

    def of(self, name: str) -> bool | None:
        """Whether that probe passed; None where it was not tried yet."""
        return self._found.get(name)

    def find(self, name: str, probe: Callable[[], bool]) -> bool:
        """Whether that probe passes: as it did before, or else tried now and noted."""
        passed = self._found.get(name)
        if passed is None:
            passed = self._found[name] = probe()
            self._note()
        return passed

    def _note(self) -> None:
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._path.parent) as folder:
                written = Path(folder) / self._path.name
                written.write_text(json.dumps(self._found), "utf-8")
                written.replace(self._path)
