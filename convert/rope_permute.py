"""Undoes the rotary pairing of Hugging Face's query and key weights.

Rotary positions turn the rows of a head in pairs. Hugging Face pairs row i with row i + head_dim/2, llama.cpp with the
row beside it, so the rows of each head are interleaved: 0, d/2, 1, d/2+1, … (conversion/llama.py of llama.cpp
0c1e57098, `LlamaModel.permute`). Heads are independent: any whole number of them can be done at a time.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Number = TypeVar("_Number", bound=np.generic)


def interleave_pairs(rows: NDArray[_Number], head_dim: int) -> NDArray[_Number]:
    """The rows of whole heads, shape (heads * head_dim, n_in), in llama.cpp's order."""
    n_rows, n_columns = rows.shape
    assert n_rows % head_dim == 0, (n_rows, head_dim)
    heads = rows.reshape(n_rows // head_dim, 2, head_dim // 2, n_columns)
    return heads.swapaxes(1, 2).reshape(n_rows, n_columns)
