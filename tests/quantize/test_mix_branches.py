"""Every branch of the rules against llama.cpp's own quantizer, run on tiny models: each tensor's type is compared.

A case also says which types its layers show in llama.cpp's file, so that a branch that is not taken fails the test.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.checkpoint_builder import ModelShape, build_checkpoint
from tests.quantize.llama_quantize import choose_types, llama_quantize, tensor_shapes, tensor_types
from zephyr_local.convert.hf_to_gguf import convert_checkpoint
from zephyr_local.errors import InvalidInputError
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.mixes import MIX_ALONE, MixOptions, ModelFacts, choose_mix, may_quantize
from zephyr_local.quantize.types import FileType, TensorType


def tiny(
    n_layers: int,
    n_heads: int = 8,
    n_kv_heads: int = 2,
    *,
    hidden_size: int = 256,
    ffn_size: int = 256,
    head_dim: int | None = None,
) -> ModelShape:
    return ModelShape(hidden_size, ffn_size, n_layers, n_heads, n_kv_heads, head_dim, vocab_size=288)


SHAPES = {
    "two layers": tiny(2),
    # of 9 layers an eighth is one and a sixteenth none; of 17 they are two and one; of 33 four and two
    "9 layers": tiny(9),
    "17 layers": tiny(17),
    "33 layers": tiny(33, 4, 1, head_dim=8, ffn_size=32),
    "1 head shares": tiny(2, 4, 4),
    "2 heads share": tiny(2, 8, 4),
    "3 heads share": tiny(2, 12, 4, head_dim=64),
    "8 heads share": tiny(2, 8, 1),
    # 70B's depth, with narrow heads and layers: their rows of 32 cannot hold K-quants, those of attn_v can
    "70B": tiny(80, 4, 1, head_dim=8, ffn_size=32),
    "70B, 2 heads share": tiny(80, 4, 2, head_dim=8, ffn_size=32),
    "65B": tiny(80, 4, 4, head_dim=8, ffn_size=32),
    "rows of 32s": tiny(2, 4, 2, hidden_size=288, ffn_size=416),
    "rows of 16s": tiny(2, 4, 2, hidden_size=272, ffn_size=400),
    "some rows of 256s": tiny(2, 4, 4, hidden_size=320),
    "tied": ModelShape(ffn_size=256, vocab_size=288, tied=True, architecture="LlamaForCausalLM"),
    "tied, rows of 32s": ModelShape(
        hidden_size=288, n_heads=4, vocab_size=288, tied=True, architecture="LlamaForCausalLM"
    ),
}

Source = Callable[[str], tuple[Path, ModelFacts]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The BF16 GGUF of a shape, made once."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def make(name: str) -> tuple[Path, ModelFacts]:
        shape = SHAPES[name]
        if name not in made:
            path = folder / f"{len(made)}.gguf"
            convert_checkpoint(build_checkpoint(folder / f"checkpoint-{len(made)}", shape), path, FileType.BF16)
            made[name] = path
        return made[name], ModelFacts(shape.n_layers, shape.n_heads, shape.n_kv_heads)

    return make


@dataclass(frozen=True)
class Case:
    shape: str
    file_type: FileType
    # role → the types that llama.cpp's file shows there: of all layers, in any order, or of "output", "token_embd"
    shows: Mapping[str, str]
    options: MixOptions = MIX_ALONE
    importance: bool = False

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self._options() if value]
        return "-".join([self.shape, self.file_type.name, *options, *(["importance"] if self.importance else [])])

    def _options(self) -> list[tuple[str, object]]:
        given = self.options
        named = [("output", given.output_tensor_type), ("embedding", given.token_embedding_type)]
        return [
            *((name, kind.name if kind else None) for name, kind in named),
            ("pure", given.pure),
            ("leave", given.leave_output_tensor),
            ("types", ",".join(f"{pattern}={kind.name}" for pattern, kind in given.tensor_types)),
        ]


def types_of(role: str, types: Mapping[str, TensorType]) -> list[str]:
    """The types of a role, layer by layer, or of the one tensor outside the layers."""
    if f"{role}.weight" in types:
        return [types[f"{role}.weight"].name]
    layers = range(1 + max(int(name.split(".")[1]) for name in types if name.startswith("blk.")))
    return [types[f"blk.{layer}.{role}.weight"].name for layer in layers]


def random_importance(path: Path) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    return {
        tensor.name: generator.random(tensor.n_columns, dtype=np.float32) + np.float32(0.01)
        for tensor in tensor_shapes(path)
        if may_quantize(tensor)
    }


def quantized_both_ways(
    model: Path, facts: ModelFacts, file_type: FileType, options: MixOptions, target: Path, importance: bool = False
) -> tuple[dict[str, TensorType], dict[str, TensorType]]:
    """Our types and llama.cpp's, which quantizes into `target`."""
    weights = random_importance(model) if importance else None
    llama_quantize(model, target, file_type, options, importance=weights, allow_requantize=True)
    ours = choose_types(tensor_shapes(model), file_type, facts, options, has_importance=importance)
    return ours, tensor_types(target)


Q8, Q6, F16, F32 = TensorType.Q8_0, TensorType.Q6_K, TensorType.F16, TensorType.F32

BY_LAYER = [
    Case(
        "9 layers",
        FileType.Q3_K_M,
        {"attn_v": "Q5_K Q4_K", "ffn_down": "Q4_K", "attn_output": "Q4_K", "attn_q": "Q3_K"},
    ),
    Case("17 layers", FileType.Q3_K_M, {"attn_v": "Q5_K Q4_K", "ffn_down": "Q5_K Q4_K", "attn_output": "Q4_K"}),
    Case("33 layers", FileType.Q3_K_M, {"attn_v": "Q5_K Q4_K", "ffn_down": "Q5_1 Q5_0"}),
    Case("9 layers", FileType.Q4_K_S, {"attn_v": "Q5_K Q4_K", "ffn_down": "Q5_K Q4_K", "attn_output": "Q4_K"}),
    Case("17 layers", FileType.Q4_K_S, {"attn_v": "Q5_K Q4_K", "ffn_down": "Q5_K Q4_K"}),
    Case("9 layers", FileType.Q4_K_M, {"attn_v": "Q6_K Q4_K", "ffn_down": "Q6_K Q4_K", "attn_output": "Q4_K"}),
    Case("17 layers", FileType.Q4_K_M, {"attn_v": "Q6_K Q4_K", "ffn_down": "Q6_K Q4_K"}),
    Case("33 layers", FileType.Q4_K_M, {"attn_v": "Q6_K Q4_K", "ffn_down": "Q8_0 Q5_0"}),
    Case("17 layers", FileType.Q5_K_M, {"attn_v": "Q6_K Q5_K", "ffn_down": "Q6_K Q5_K", "attn_output": "Q5_K"}),
    Case("17 layers", FileType.Q4_0, {"ffn_down": "Q4_0", "output": "Q6_K"}),
    Case("17 layers", FileType.Q5_0, {"ffn_down": "Q5_0", "output": "Q6_K"}),
]
EVERY_LAYER = [
    Case("two layers", FileType.Q3_K_S, {"attn_v": "Q3_K", "attn_output": "Q3_K", "ffn_down": "Q3_K"}),
    Case(
        "two layers", FileType.Q3_K_L, {"attn_v": "Q5_K", "attn_output": "Q5_K", "ffn_down": "Q5_K", "ffn_up": "Q3_K"}
    ),
    Case("two layers", FileType.Q4_1, {"attn_v": "Q4_1", "output": "Q6_K", "token_embd": "Q4_1"}),
    Case("two layers", FileType.Q5_1, {"attn_v": "Q5_1", "output": "Q6_K", "token_embd": "Q5_1"}),
    Case("two layers", FileType.Q5_K_S, {"attn_v": "Q5_K", "output": "Q6_K", "token_embd": "Q5_K"}),
    Case("two layers", FileType.Q6_K, {"attn_v": "Q6_K", "output": "Q6_K", "token_embd": "Q6_K"}),
    Case("two layers", FileType.Q8_0, {"attn_v": "Q8_0", "output": "Q8_0", "token_embd": "Q8_0"}),
    Case("two layers", FileType.F16, {"attn_v": "F16", "attn_norm": "F32", "output": "F16"}),
    Case("two layers", FileType.F32, {"attn_v": "F32", "attn_norm": "F32", "output": "F32"}),
]
BY_HEADS = [
    Case(f"{name} share", FileType.Q2_K, {"attn_v": kind, "ffn_down": "Q3_K", "attn_output": "Q3_K", "attn_q": "Q2_K"})
    for name, kind in (("2 heads", "Q3_K"), ("3 heads", "Q3_K"), ("8 heads", "Q4_K"))
] + [
    Case("1 head shares", FileType.Q2_K, {"attn_v": "Q3_K"}),
    Case("two layers", FileType.Q2_K, {"attn_v": "Q4_K"}),  # 4 heads share
]
BY_SIZE = [
    Case("70B", FileType.Q2_K, {"attn_v": "Q5_K", "attn_k": "Q2_K"}),
    Case("70B, 2 heads share", FileType.Q2_K, {"attn_v": "Q5_K", "attn_k": "Q2_K"}),
    Case("70B", FileType.Q3_K_S, {"attn_v": "Q5_K", "attn_k": "Q3_K"}),
    Case("70B", FileType.Q3_K_M, {"attn_v": "Q5_K", "ffn_down": "Q5_1 Q5_0"}),
    Case("70B", FileType.Q4_K_S, {"attn_v": "Q5_K", "attn_k": "Q4_K"}),
    Case("70B", FileType.Q4_K_M, {"attn_v": "Q6_K Q5_K", "attn_k": "Q4_K"}),
    Case("70B", FileType.Q5_K_M, {"attn_v": "Q6_K Q5_K"}),
    Case("70B", FileType.Q4_0, {"attn_v": "Q4_0"}),
    Case("70B", FileType.Q4_K_M, {"attn_v": "Q4_K"}, MixOptions(pure=True)),
    Case("70B", FileType.Q3_K_S, {"attn_v": "Q4_K"}, MixOptions(tensor_types=(("attn_v", TensorType.Q4_K),))),
    Case("65B", FileType.Q2_K, {"attn_v": "Q3_K"}),
    Case("65B", FileType.Q3_K_S, {"attn_v": "Q3_K"}),
    Case("65B", FileType.Q4_K_S, {"attn_v": "Q5_K Q4_K"}),
]
BY_IMPORTANCE = [
    Case("17 layers", FileType.Q4_0, {"ffn_down": "Q4_1 Q4_0", "attn_v": "Q4_0"}, importance=True),
    Case("17 layers", FileType.Q5_0, {"ffn_down": "Q5_1 Q5_0", "attn_v": "Q5_0"}, importance=True),
    Case("9 layers", FileType.Q4_1, {"ffn_down": "Q4_1"}, importance=True),
    Case("9 layers", FileType.Q4_K_M, {"ffn_down": "Q6_K Q4_K"}, importance=True),
    Case("9 layers", FileType.Q4_0, {"ffn_down": "Q4_0"}, MixOptions(pure=True), importance=True),
]
BY_ROWS = [
    *(
        Case("rows of 32s", file_type, {"attn_q": kind, "attn_v": values, "output": "Q8_0"})
        for file_type, kind, values in (
            (FileType.Q2_K, "Q4_0", "Q4_0"),
            (FileType.Q3_K_M, "Q4_0", "Q5_1"),
            (FileType.Q4_K_S, "Q5_0", "Q5_1"),
            (FileType.Q4_K_M, "Q5_0", "Q5_0 Q8_0"),
            (FileType.Q5_K_S, "Q5_1", "Q5_1"),
            (FileType.Q6_K, "Q8_0", "Q8_0"),
            (FileType.Q4_0, "Q4_0", "Q4_0"),
        )
    ),
    *(
        Case("rows of 16s", file_type, {"attn_q": "F16", "ffn_down": "F16", "output": "F16"})
        for file_type in (FileType.Q2_K, FileType.Q4_0, FileType.Q5_K_M, FileType.Q8_0)
    ),
    Case("some rows of 256s", FileType.Q4_K_S, {"attn_q": "Q5_0", "ffn_down": "Q4_K", "output": "Q8_0"}),
]
TIED = [
    Case("tied", FileType.Q4_K_S, {"token_embd": "Q6_K"}),
    Case("tied", FileType.Q8_0, {"token_embd": "Q8_0"}),
    Case("tied", FileType.Q4_K_S, {"token_embd": "Q4_K"}, MixOptions(pure=True)),
    Case("tied", FileType.Q4_K_S, {"token_embd": "Q5_1"}, MixOptions(output_tensor_type=TensorType.Q5_1)),
    Case("tied", FileType.Q4_K_S, {"token_embd": "F16"}, MixOptions(token_embedding_type=F16)),
    Case("tied", FileType.F16, {"token_embd": "Q8_0"}, MixOptions(token_embedding_type=Q8)),
    Case("tied", FileType.Q4_K_S, {"token_embd": "Q2_K"}, MixOptions(tensor_types=(("embd", TensorType.Q2_K),))),
    Case("tied, rows of 32s", FileType.Q4_K_S, {"token_embd": "Q8_0"}),
    # only in place of a missing output.weight does this option fall back
    Case("tied, rows of 32s", FileType.Q4_0, {"token_embd": "Q5_0"}, MixOptions(output_tensor_type=TensorType.Q4_K)),
]
OPTIONS = [
    Case("9 layers", FileType.Q4_K_M, {"attn_v": "Q4_K", "output": "Q4_K"}, MixOptions(pure=True)),
    Case("rows of 32s", FileType.Q4_K_M, {"attn_v": "Q5_0", "output": "Q5_0"}, MixOptions(pure=True)),
    Case("two layers", FileType.Q4_K_M, {"output": "BF16"}, MixOptions(leave_output_tensor=True)),
    Case("two layers", FileType.F16, {"output": "BF16", "attn_q": "F16"}, MixOptions(leave_output_tensor=True)),
    Case("two layers", FileType.Q4_K_M, {"output": "Q2_K"}, MixOptions(output_tensor_type=TensorType.Q2_K)),
    Case("two layers", FileType.Q4_K_M, {"output": "F32"}, MixOptions(output_tensor_type=F32)),
    Case("two layers", FileType.F16, {"output": "Q8_0", "token_embd": "F16"}, MixOptions(output_tensor_type=Q8)),
    Case("two layers", FileType.F16, {"token_embd": "Q6_K", "output": "F16"}, MixOptions(token_embedding_type=Q6)),
    Case("two layers", FileType.Q4_K_S, {"token_embd": "Q8_0", "output": "Q6_K"}, MixOptions(token_embedding_type=Q8)),
    Case(
        "two layers",
        FileType.Q4_K_S,
        {"token_embd": "Q8_0", "output": "F16", "attn_v": "Q4_K"},
        MixOptions(output_tensor_type=F16, token_embedding_type=Q8, pure=True),
    ),
    # a role before a pattern
    Case(
        "two layers",
        FileType.Q4_K_S,
        {"token_embd": "Q8_0", "output": "F16", "attn_v": "Q5_0"},
        MixOptions(((".", TensorType.Q5_0),), output_tensor_type=F16, token_embedding_type=Q8),
    ),
    Case("two layers", FileType.Q4_K_S, {"output": "Q5_0"}, MixOptions((("^output", TensorType.Q5_0),))),
    Case(
        "two layers", FileType.Q4_K_S, {"ffn_down": "Q5_0"}, MixOptions((("ffn_", TensorType.Q5_0), ("_down|_v", Q8)))
    ),
    Case("two layers", FileType.Q4_K_S, {"ffn_down": "Q8_0"}, MixOptions((("down", Q8), ("ffn_", TensorType.Q5_0)))),
    Case("two layers", FileType.Q4_K_S, {"attn_q": "F32 Q4_K"}, MixOptions(((r"BLK\.1\.attn_Q", F32),))),
    Case("two layers", FileType.Q4_K_S, {"attn_q": "Q8_0", "attn_v": "Q4_K"}, MixOptions((("attn_q", Q8),), pure=True)),
    # a pattern that asks for what is the default all the same
    Case("9 layers", FileType.Q4_K_M, {"attn_v": "Q4_K"}, MixOptions((("attn_v", TensorType.Q4_K),))),
    # norms are never meant, but a pattern may meet them among others
    Case("two layers", FileType.Q4_K_S, {"attn_norm": "F32", "attn_q": "Q8_0"}, MixOptions((("attn", Q8),))),
    Case("rows of 32s", FileType.Q4_0, {"attn_q": "Q8_0", "attn_v": "Q4_0"}, MixOptions((("attn_q", Q6),))),
    Case(
        "rows of 16s", FileType.Q4_0, {"attn_q": "F16", "attn_v": "F32"}, MixOptions((("attn_q", Q6), ("attn_v", F32)))
    ),
]
CASES = BY_LAYER + EVERY_LAYER + BY_HEADS + BY_SIZE + BY_IMPORTANCE + BY_ROWS + TIED + OPTIONS


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_type_is_llama_quantizes(case: Case, source: Source, tmp_path: Path) -> None:
    model, facts = source(case.shape)
    target = tmp_path / "theirs.gguf"
    ours, theirs = quantized_both_ways(model, facts, case.file_type, case.options, target, case.importance)
    assert {role: set(types_of(role, theirs)) for role in case.shows} == {
        role: set(names.split()) for role, names in case.shows.items()
    }
    assert list(ours.items()) == list(theirs.items())


@dataclass(frozen=True)
class Counted:
    file_type: FileType
    role: str
    pattern: str
    finer: str
    layers: tuple[int, ...]  # those that have the finer type in llama.cpp's file
    importance: bool = False


@pytest.mark.parametrize(
    "case",
    [
        Counted(FileType.Q3_K_M, "attn_v", "attn_k", "Q5_K", (0, 1)),
        Counted(FileType.Q3_K_M, "attn_v", r"blk\.0\.attn_v", "Q5_K", (1, 2)),
        Counted(FileType.Q3_K_M, "ffn_down", r"blk\.[0-4]\.ffn_down", "Q5_K", (5,)),
        Counted(FileType.Q4_K_S, "attn_v", r"blk\.[02]\.attn_v", "Q5_K", (1, 3, 4, 5)),
        Counted(FileType.Q4_K_S, "ffn_down", r"blk\.0\.ffn_down", "Q5_K", (1, 2)),
        # 14 of 17 are counted: the last eighth never comes
        Counted(FileType.Q4_K_M, "attn_v", r"blk\.[5-7]\.attn_v", "Q6_K", (0, 1, 4, 10, 13, 16)),
        Counted(FileType.Q5_K_M, "ffn_down", r"blk\.[5-7]\.ffn_down", "Q6_K", (0, 1, 4, 10, 13, 16)),
        Counted(FileType.Q4_0, "ffn_down", r"blk\.1\.ffn_down", "Q4_1", (0, 2), importance=True),
    ],
    ids=lambda case: f"{case.file_type.name}-{case.pattern}",
)
def test_a_tensor_with_a_type_of_its_own_is_not_counted(case: Counted, source: Source, tmp_path: Path) -> None:
    """The mix gives the next layer what the named one would have had; the number of layers stays as it is."""
    model, facts = source("17 layers")
    options = MixOptions(((case.pattern, Q8),))  # Q8_0, so that the named layers are none of the finer ones
    target = tmp_path / "theirs.gguf"
    ours, theirs = quantized_both_ways(model, facts, case.file_type, options, target, case.importance)
    found = types_of(case.role, theirs)
    assert tuple(layer for layer, kind in enumerate(found) if kind == case.finer) == case.layers
    assert ours == theirs


@pytest.mark.parametrize("seed", range(24))
def test_any_options_together(seed: int, source: Source, tmp_path: Path) -> None:
    chooser = random.Random(seed)
    name = chooser.choice(["9 layers", "17 layers", "rows of 32s", "rows of 16s", "some rows of 256s", "33 layers"])
    model, facts = source(name)
    parts = [
        "attn_v",
        "attn_k",
        "ffn_",
        "ffn_down",
        r"blk\.[0-3]\.",
        r"\.1\.",
        "output",
        "embd",
        r"\d+\.attn_(q|output)",
    ]
    fitting = [kind for kind in TensorType if kind.fits(SHAPES[name].hidden_size)]
    named = [None, None, *fitting]
    options = MixOptions(
        tuple((chooser.choice(parts), chooser.choice(list(TensorType))) for _ in range(chooser.randrange(4))),
        output_tensor_type=chooser.choice(named),
        token_embedding_type=chooser.choice(named),
        pure=chooser.random() < 0.2,
    )
    if options.output_tensor_type is None and chooser.random() < 0.3:
        options = MixOptions(options.tensor_types, leave_output_tensor=True)
    file_type = chooser.choice([kind for kind in FileType if kind.default_type.is_quantized])
    importance = chooser.random() < 0.5
    for pair in options.tensor_types[::-1]:  # llama.cpp takes patterns that have no effect, ours refuses them
        with contextlib.suppress(InvalidInputError):
            choose_types(tensor_shapes(model), file_type, facts, options)
            break
        rest = tuple(other for other in options.tensor_types if other is not pair)
        options = replace(options, tensor_types=rest)
    ours, theirs = quantized_both_ways(model, facts, file_type, options, tmp_path / "theirs.gguf", importance)
    assert ours == theirs


def test_a_quantized_source_keeps_what_is_left_alone(source: Source, tmp_path: Path) -> None:
    model, facts = source("two layers")
    llama_quantize(model, tmp_path / "q8_0.gguf", FileType.Q8_0)
    options = MixOptions(leave_output_tensor=True)
    ours, theirs = quantized_both_ways(
        tmp_path / "q8_0.gguf", facts, FileType.Q4_K_M, options, tmp_path / "theirs.gguf"
    )
    assert theirs["output.weight"] is TensorType.Q8_0
    assert theirs["output_norm.weight"] is TensorType.F32
    assert ours == theirs


def test_what_fell_back_is_known(source: Source) -> None:
    model, facts = source("some rows of 256s")
    chosen = choose_mix(tensor_shapes(model), FileType.Q4_K_S, facts)
    fallen = {
        tensor.name: (tensor.wanted.name, tensor.kind.name) for tensor in chosen if tensor.kind is not tensor.wanted
    }
    assert fallen["output.weight"] == ("Q6_K", "Q8_0")
    assert fallen["blk.1.attn_v.weight"] == ("Q5_K", "Q5_1")
    assert not any("ffn_down" in name or "norm" in name for name in fallen)


@pytest.mark.parametrize("file_type", [kind for kind in FileType if kind.default_type.is_quantized])
def test_the_bytes_with_importance_are_llama_quantizes(file_type: FileType, source: Source, tmp_path: Path) -> None:
    """Pure, so that all types but the fall-backs are of one kind; the embedding has no weights, as in practice."""
    model, _ = source("two layers")
    importance = random_importance(model)
    del importance["token_embd.weight"]
    target = tmp_path / "theirs.gguf"
    llama_quantize(model, target, file_type, MixOptions(pure=True), importance=importance)
    sources = {tensor.name: tensor for tensor in gguf.GGUFReader(model).tensors}
    changed = 0
    for found in gguf.GGUFReader(target).tensors:
        kind = TensorType[found.tensor_type.name]
        if not kind.is_quantized:
            continue
        stored = sources[found.name]
        raw = np.ascontiguousarray(stored.data).view(np.uint8).reshape(-1)
        rows = ggml.decode(TensorType[stored.tensor_type.name], raw, int(stored.shape[0]))
        theirs = found.data.tobytes()
        assert ggml.encode(kind, rows, importance.get(found.name)).tobytes() == theirs, found.name
        changed += ggml.encode(kind, rows).tobytes() != theirs
    # Q8_0 has no use for the weights; the others differ with them in every tensor that has some
    assert changed == (0 if file_type is FileType.Q8_0 else len(importance))
