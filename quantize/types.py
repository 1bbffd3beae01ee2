"""The types of tensors and of whole files, with ggml's and llama.cpp's own names and numbers.

Numbers and block sizes: ggml/include/ggml.h (`enum ggml_type`), ggml/src/ggml-common.h (the blocks) and
include/llama.h (`enum llama_ftype`) of llama.cpp 0c1e57098.
"""

from __future__ import annotations

from enum import Enum

from zephyr_local.errors import InvalidInputError


def _as_member_name(text: str) -> str:
    return text.strip().upper().replace("-", "_")


class TensorType(Enum):
    """How the weights of one tensor are stored: ggml's number, weights in a block, bytes of a block."""

    F32 = (0, 1, 4)
    F16 = (1, 1, 2)
    Q4_0 = (2, 32, 18)
    Q4_1 = (3, 32, 20)
    Q5_0 = (6, 32, 22)
    Q5_1 = (7, 32, 24)
    Q8_0 = (8, 32, 34)
    Q2_K = (10, 256, 84)
    Q3_K = (11, 256, 110)
    Q4_K = (12, 256, 144)
    Q5_K = (13, 256, 176)
    Q6_K = (14, 256, 210)
    BF16 = (30, 1, 2)

    def __init__(self, ggml_id: int, block_weights: int, block_bytes: int) -> None:
        self.ggml_id = ggml_id
        self.block_weights = block_weights
        self.block_bytes = block_bytes

    @property
    def is_quantized(self) -> bool:
        """False for the three float types."""
        return self.block_weights > 1

    def fits(self, n_columns: int) -> bool:
        """Whether a row of so many weights is a whole number of blocks."""
        return n_columns % self.block_weights == 0

    def size_bytes(self, n_weights: int) -> int:
        """Bytes of so many weights; they must be a whole number of blocks."""
        assert n_weights % self.block_weights == 0, (self, n_weights)
        return n_weights // self.block_weights * self.block_bytes

    @classmethod
    def parse(cls, text: str) -> TensorType:
        """The member of that name, in any case, with `-` or `_`: ``TensorType.parse("q6_k")``."""
        member = cls.__members__.get(_as_member_name(text))
        if member is None:
            raise InvalidInputError(
                f"{text!r} is not a tensor type that can be written", f"Use one of {', '.join(cls.__members__)}"
            )
        return member


class FileType(Enum):
    """What a whole file is made as: llama.cpp's `ftype` number and the type that most of its tensors get.

    From small to large, as llama-quantize's own table gives the sizes of an 8B model.
    """

    Q2_K = (10, TensorType.Q2_K)
    Q3_K_S = (11, TensorType.Q3_K)
    Q3_K_M = (12, TensorType.Q3_K)
    Q3_K_L = (13, TensorType.Q3_K)
    Q4_0 = (2, TensorType.Q4_0)
    Q4_K_S = (14, TensorType.Q4_K)
    Q4_K_M = (15, TensorType.Q4_K)
    Q4_1 = (3, TensorType.Q4_1)
    Q5_0 = (8, TensorType.Q5_0)
    Q5_K_S = (16, TensorType.Q5_K)
    Q5_K_M = (17, TensorType.Q5_K)
    Q5_1 = (9, TensorType.Q5_1)
    Q6_K = (18, TensorType.Q6_K)
    Q8_0 = (7, TensorType.Q8_0)
    F16 = (1, TensorType.F16)
    BF16 = (32, TensorType.BF16)
    F32 = (0, TensorType.F32)

    def __init__(self, ftype: int, default_type: TensorType) -> None:
        self.ftype = ftype
        self.default_type = default_type

    @classmethod
    def parse(cls, text: str) -> FileType:
        """The member of that name, in any case, with `-` or `_`: ``FileType.parse("q4_k_m")``.

        llama-quantize's short names Q3_K, Q4_K and Q5_K mean the medium mixes, as there.
        """
        name = _as_member_name(text)
        member = cls.__members__.get(_SHORT_NAMES.get(name, name))
        if member is None:
            raise InvalidInputError(
                f"{text!r} is not a file type that can be written", f"Use one of {', '.join(cls.__members__)}"
            )
        return member


_SHORT_NAMES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
