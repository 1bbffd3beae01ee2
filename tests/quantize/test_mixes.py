"""The rules alone, without weights: order, fall-backs, and who is counted."""

from __future__ import annotations

import math
import random

import pytest

from tests.quantize.llama_quantize import choose_types
from zephyr_local.errors import InvalidInputError
from zephyr_local.quantize.mixes import (
    MIX_ALONE,
    ChosenType,
    MixOptions,
    ModelFacts,
    TensorShape,
    choose_mix,
    fallback_type,
    file_order,
    may_quantize,
)
from zephyr_local.quantize.types import FileType, TensorType


def test_file_order_counts_layers_as_numbers() -> None:
    names = ["blk.10.attn_v.weight", "token_embd.weight", "blk.2.ffn_up.weight", "blk.2.attn_k.weight", "output.weight"]
    assert sorted(names, key=file_order) == [
        "output.weight",
        "token_embd.weight",
        "blk.2.attn_k.weight",
        "blk.2.ffn_up.weight",
        "blk.10.attn_v.weight",
    ]


@pytest.mark.parametrize(
    ("wanted", "columns", "stored"),
    [
        (TensorType.Q4_K, 512, TensorType.Q4_K),
        (TensorType.Q2_K, 288, TensorType.Q4_0),
        (TensorType.Q3_K, 288, TensorType.Q4_0),
        (TensorType.Q4_K, 288, TensorType.Q5_0),
        (TensorType.Q5_K, 288, TensorType.Q5_1),
        (TensorType.Q6_K, 288, TensorType.Q8_0),
        (TensorType.Q6_K, 272, TensorType.F16),
        (TensorType.Q8_0, 272, TensorType.F16),
        (TensorType.Q4_0, 272, TensorType.F16),
        (TensorType.F32, 17, TensorType.F32),
    ],
)
def test_fall_backs(wanted: TensorType, columns: int, stored: TensorType) -> None:
    assert fallback_type(wanted, columns) is stored


LAYER = {"attn_q": 256, "attn_k": 256, "attn_v": 256, "attn_output": 256, "ffn_down": 256, "ffn_up": 256}


def tensors_of(n_layers: int, columns: int = 256, *, tied: bool = False) -> list[TensorShape]:
    tensors = [TensorShape("token_embd.weight", (512, columns), TensorType.BF16)]
    if not tied:
        tensors.append(TensorShape("output.weight", (512, columns), TensorType.BF16))
    for layer in range(n_layers):
        tensors += [
            TensorShape(f"blk.{layer}.{name}.weight", (n, columns), TensorType.BF16) for name, n in LAYER.items()
        ]
        tensors.append(TensorShape(f"blk.{layer}.attn_norm.weight", (columns,)))
    return tensors


def letters(types: dict[str, TensorType], role: str) -> str:
    """The bits of a role's types, layer by layer: "6644" for two of Q6_K and two of Q4_K."""
    layers = sum(name.endswith("attn_q.weight") for name in types)
    return "".join(types[f"blk.{layer}.{role}.weight"].name[1] for layer in range(layers))


def test_q4_k_m_of_32_layers_is_the_known_mix() -> None:
    """Layers 0-3, 28-31 and each third between get Q6_K for their values and their down projection."""
    tensors = tensors_of(32)
    random.Random(0).shuffle(tensors)  # the order of the source must not matter
    types = choose_types(tensors, FileType.Q4_K_M, ModelFacts(32, 32, 8))
    finer = [layer for layer in range(32) if types[f"blk.{layer}.attn_v.weight"] is TensorType.Q6_K]
    assert finer == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert finer == [layer for layer in range(32) if types[f"blk.{layer}.ffn_down.weight"] is TensorType.Q6_K]
    assert types["output.weight"] is TensorType.Q6_K
    assert types["token_embd.weight"] is TensorType.Q4_K
    assert types["blk.5.attn_q.weight"] is TensorType.Q4_K
    assert types["blk.5.attn_norm.weight"] is TensorType.F32


@pytest.mark.parametrize(
    ("file_type", "attn_v", "attn_output", "ffn_down"),
    [
        (FileType.Q2_K, "4" * 17, "3" * 17, "3" * 17),
        (FileType.Q3_K_S, "3" * 17, "3" * 17, "3" * 17),
        (FileType.Q3_K_M, "55444444444444444", "4" * 17, "54444444444444444"),
        (FileType.Q3_K_L, "5" * 17, "5" * 17, "5" * 17),
        (FileType.Q4_0, "4" * 17, "4" * 17, "4" * 17),
        (FileType.Q4_1, "4" * 17, "4" * 17, "4" * 17),
        (FileType.Q4_K_S, "55554444444444444", "4" * 17, "55444444444444444"),
        (FileType.Q4_K_M, "66446446446446666", "4" * 17, "66446446446446666"),
        (FileType.Q5_0, "5" * 17, "5" * 17, "5" * 17),
        (FileType.Q5_1, "5" * 17, "5" * 17, "5" * 17),
        (FileType.Q5_K_S, "5" * 17, "5" * 17, "5" * 17),
        (FileType.Q5_K_M, "66556556556556666", "5" * 17, "66556556556556666"),
        (FileType.Q6_K, "6" * 17, "6" * 17, "6" * 17),
        (FileType.Q8_0, "8" * 17, "8" * 17, "8" * 17),
    ],
    ids=lambda value: value.name if isinstance(value, FileType) else "",
)
def test_mixes_of_17_layers(file_type: FileType, attn_v: str, attn_output: str, ffn_down: str) -> None:
    types = choose_types(tensors_of(17), file_type, ModelFacts(17, 8, 2))
    found = [letters(types, role) for role in ("attn_v", "attn_output", "ffn_down")]
    assert found == [attn_v, attn_output, ffn_down]
    assert {types[f"blk.{layer}.attn_q.weight"] for layer in range(17)} == {file_type.default_type}
    assert types["output.weight"] is (TensorType.Q8_0 if file_type is FileType.Q8_0 else TensorType.Q6_K)


@pytest.mark.parametrize(
    ("file_type", "facts", "attn_v"),
    [
        (FileType.Q2_K, ModelFacts(2, 8, 8), "33"),
        (FileType.Q2_K, ModelFacts(2, 15, 4), "33"),  # three heads and three quarters
        (FileType.Q2_K, ModelFacts(2, 16, 4), "44"),
        (FileType.Q2_K, ModelFacts(2, 16, 2), "44"),
        (FileType.Q2_K, ModelFacts(80, 64, 8), "5" * 80),
        (FileType.Q2_K, ModelFacts(80, 64, 64), "3" * 80),
        (FileType.Q3_K_S, ModelFacts(80, 64, 8), "5" * 80),
        (FileType.Q4_K_S, ModelFacts(80, 64, 8), "5" * 80),
        (FileType.Q4_K_S, ModelFacts(80, 64, 64), "5555" + "4" * 76),
        (FileType.Q4_0, ModelFacts(80, 64, 8), "4" * 80),
    ],
)
def test_heads_that_share_their_values(file_type: FileType, facts: ModelFacts, attn_v: str) -> None:
    assert letters(choose_types(tensors_of(facts.n_layers), file_type, facts), "attn_v") == attn_v


@pytest.mark.parametrize(
    ("file_type", "first", "others"),
    [(FileType.Q4_0, TensorType.Q4_1, TensorType.Q4_0), (FileType.Q5_0, TensorType.Q5_1, TensorType.Q5_0)],
)
def test_importance_makes_the_first_eighth_of_the_down_projections_finer(
    file_type: FileType, first: TensorType, others: TensorType
) -> None:
    facts = ModelFacts(16, 8, 2)
    with_it = choose_types(tensors_of(16), file_type, facts, has_importance=True)
    without = choose_types(tensors_of(16), file_type, facts)
    assert [with_it[f"blk.{layer}.ffn_down.weight"] for layer in range(16)] == [first] * 2 + [others] * 14
    assert {without[f"blk.{layer}.ffn_down.weight"] for layer in range(16)} == {others}


Q8, F16 = TensorType.Q8_0, TensorType.F16


@pytest.mark.parametrize(
    ("file_type", "options", "output", "token_embd", "attn_v"),
    [
        (FileType.Q4_K_M, MixOptions(pure=True), "Q4_K", "Q4_K", "444"),
        (FileType.Q4_K_M, MixOptions(leave_output_tensor=True), "BF16", "Q4_K", "446"),
        (FileType.F16, MixOptions(leave_output_tensor=True), "BF16", "F16", "111"),
        (FileType.Q4_K_M, MixOptions(output_tensor_type=Q8), "Q8_0", "Q4_K", "446"),
        (FileType.Q4_K_M, MixOptions(output_tensor_type=Q8, pure=True), "Q8_0", "Q4_K", "444"),
        (FileType.F16, MixOptions(output_tensor_type=Q8), "Q8_0", "F16", "111"),
        (FileType.Q4_K_M, MixOptions(token_embedding_type=F16), "Q6_K", "F16", "446"),
        (FileType.Q4_K_M, MixOptions((("attn_v", Q8),)), "Q6_K", "Q4_K", "888"),
        (FileType.Q4_K_M, MixOptions((("attn_v", Q8),), pure=True), "Q4_K", "Q4_K", "888"),
        (FileType.Q4_K_M, MixOptions(((".", Q8),)), "Q8_0", "Q8_0", "888"),
        (FileType.Q4_K_M, MixOptions((("1.attn_v", F16), (".", Q8))), "Q8_0", "Q8_0", "818"),
        (FileType.Q4_K_M, MixOptions((("attn_v", Q8), ("attn_v|ffn_down", F16))), "Q6_K", "Q4_K", "888"),
        (FileType.Q4_K_M, MixOptions(((".", Q8),), TensorType.Q5_0, F16), "Q5_0", "F16", "888"),
        (FileType.Q4_K_M, MixOptions(((".", Q8),), leave_output_tensor=True), "BF16", "Q8_0", "888"),
        # the third that is counted is the finer one
        (FileType.Q4_K_S, MixOptions(((r"BLK\.1\.ATTN_V", Q8),)), "Q6_K", "Q4_K", "585"),
        (FileType.Q4_K_M, MixOptions(((r"blk\.0\.attn_v", Q8),)), "Q6_K", "Q4_K", "844"),
        # \\D is not \\d, as it becomes where llama-quantize lower-cases patterns
        (FileType.Q4_K_M, MixOptions(((r"blk\.\d\.attn_\D\.", Q8),)), "Q6_K", "Q4_K", "888"),
    ],
)
def test_precedence(file_type: FileType, options: MixOptions, output: str, token_embd: str, attn_v: str) -> None:
    types = choose_types(tensors_of(3), file_type, ModelFacts(3, 8, 2), options)
    found = (types["output.weight"].name, types["token_embd.weight"].name, letters(types, "attn_v"))
    assert found == (output, token_embd, attn_v)
    assert types["blk.1.attn_norm.weight"] is TensorType.F32


@pytest.mark.parametrize(
    ("file_type", "options", "token_embd"),
    [
        (FileType.Q4_K_S, MIX_ALONE, "Q6_K"),
        (FileType.Q8_0, MIX_ALONE, "Q8_0"),
        (FileType.Q4_K_S, MixOptions(pure=True), "Q4_K"),
        (FileType.Q4_K_S, MixOptions(output_tensor_type=TensorType.Q5_K), "Q5_K"),
        (FileType.Q4_K_S, MixOptions((("embd", Q8),), output_tensor_type=TensorType.Q5_K), "Q8_0"),
        (FileType.F16, MixOptions(token_embedding_type=Q8), "Q8_0"),
    ],
)
def test_a_tied_embedding(file_type: FileType, options: MixOptions, token_embd: str) -> None:
    types = choose_types(tensors_of(2, tied=True), file_type, ModelFacts(2, 8, 2), options)
    assert types["token_embd.weight"].name == token_embd


def test_what_a_source_stores_is_kept_where_no_type_is_chosen() -> None:
    vector, norm, row = (
        ("blk.0.attn_q.bias", (64,)),
        ("blk.0.attn_norm.weight", (64,)),
        ("blk.0.ffn_up.weight", (1, 64)),
    )
    of_gguf = [TensorShape(name, shape, F16) for name, shape in (vector, norm, row)]
    assert not any(map(may_quantize, of_gguf))
    assert set(choose_types(of_gguf, FileType.Q8_0, ModelFacts(1, 8, 2)).values()) == {F16}
    of_checkpoint = [TensorShape.of_checkpoint(name, shape, F16) for name, shape in (vector, norm, row)]
    assert {tensor.stored for tensor in of_checkpoint} == {TensorType.F32}
    assert TensorShape.of_checkpoint("output.weight", (2, 64), F16).stored is F16


@pytest.mark.parametrize(
    ("file_type", "columns", "options", "chosen"),
    [
        (FileType.Q4_K_M, 256, MIX_ALONE, ("Q6_K", "Q6_K")),
        (FileType.Q4_K_M, 288, MIX_ALONE, ("Q8_0", "Q6_K")),
        (FileType.Q4_0, 288, MIX_ALONE, ("Q8_0", "Q6_K")),
        (FileType.Q4_0, 272, MIX_ALONE, ("F16", "Q6_K")),
        (FileType.Q2_K, 288, MixOptions(pure=True), ("Q4_0", "Q2_K")),
        (FileType.Q2_K, 288, MixOptions((("output", TensorType.Q5_K),)), ("Q5_1", "Q5_K")),
        (FileType.Q2_K, 288, MixOptions(output_tensor_type=Q8), ("Q8_0", "Q8_0")),
    ],
)
def test_what_the_output_matrix_gets_and_should_have_had(
    file_type: FileType, columns: int, options: MixOptions, chosen: tuple[str, str]
) -> None:
    mix = choose_mix(tensors_of(2, columns), file_type, ModelFacts(2, 8, 2), options)
    kind, wanted = (TensorType[name] for name in chosen)
    found = next(tensor for tensor in mix if tensor.name == "output.weight")
    assert found == ChosenType("output.weight", kind, wanted)


@pytest.mark.parametrize(
    "pattern", ["attn_(v", "*", "a{2,1}", "a{99999999999999}", "(" * 5000 + ")" * 5000, "", "[[:alpha:]]"]
)
def test_no_regular_expression(pattern: str) -> None:
    with pytest.raises(InvalidInputError, match=r"is not a regular expression|is empty"):
        MixOptions(((pattern, Q8),))


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(InvalidInputError, match="both be left as it is and become Q8_0"):
        MixOptions(output_tensor_type=Q8, leave_output_tensor=True)


@pytest.mark.parametrize(
    ("file_type", "options", "tied", "match"),
    [
        (FileType.F16, MixOptions((("attn_v", Q8),)), False, "no effect in an F16 file"),
        (FileType.Q4_K_M, MixOptions((("attn_v", Q8), ("attn_w", F16))), False, "'attn_w' for F16 matches no tensor"),
        (FileType.Q4_K_M, MixOptions((("attn_norm", Q8),)), False, "'attn_norm' for Q8_0 matches no tensor"),
        (FileType.Q4_K_M, MixOptions((("^output", Q8),), leave_output_tensor=True), False, "matches no tensor"),
        (FileType.Q4_K_M, MixOptions((("^output", Q8),)), True, "matches no tensor"),
        (FileType.Q4_K_M, MixOptions((("attn", Q8), ("attn_v", F16))), False, "'attn_v' for F16 has no effect"),
        (FileType.Q4_K_M, MixOptions((("^output", F16),), Q8), False, r"'\^output' for F16 has no effect"),
        (FileType.Q4_K_M, MixOptions(leave_output_tensor=True), True, "no effect: this model has no output.weight"),
        (FileType.Q4_K_M, MixOptions(output_tensor_type=Q8, pure=True), True, "has no output.weight"),
        (FileType.F16, MixOptions(output_tensor_type=Q8), True, "has no output.weight"),
        (FileType.Q4_K_M, MixOptions((), Q8, F16), True, "has no output.weight"),
    ],
)
def test_options_without_effect(file_type: FileType, options: MixOptions, tied: bool, match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        choose_types(tensors_of(2, tied=tied), file_type, ModelFacts(2, 8, 2), options)


@pytest.mark.parametrize(
    ("options", "columns", "match"),
    [
        (
            MixOptions(output_tensor_type=TensorType.Q5_K),
            288,
            "output.weight cannot be Q5_K: its rows have 288 weights",
        ),
        (MixOptions(token_embedding_type=Q8), 272, "token_embd.weight cannot be Q8_0: .* 272 weights.* blocks of 32"),
    ],
)
def test_types_of_roles_do_not_fall_back(options: MixOptions, columns: int, match: str) -> None:
    """llama.cpp would abort the process."""
    with pytest.raises(InvalidInputError, match=match) as caught:
        choose_types(tensors_of(2, columns), FileType.Q4_0, ModelFacts(2, 8, 2), options)
    assert caught.value.remedy.startswith("Choose one of F32, F16, ")
    assert ("Q8_0" in caught.value.remedy) == (columns == 288)


def test_names_of_types() -> None:
    assert TensorType.parse(" q4-k ") is TensorType.parse("Q4_K") is TensorType.Q4_K
    assert FileType.parse("q3_k") is FileType.Q3_K_M
    assert FileType.parse("Q4-K") is FileType.Q4_K_M
    assert FileType.parse("Q5_K") is FileType.Q5_K_M
    with pytest.raises(InvalidInputError, match=r"'q4_k_m' is not a tensor type .* F32, F16, Q4_0"):
        TensorType.parse("q4_k_m")
    with pytest.raises(InvalidInputError, match=r"'iq4_xs' is not a file type .* Q2_K, Q3_K_S"):
        FileType.parse("iq4_xs")


def test_file_types_stand_from_small_to_large() -> None:
    tensors = tensors_of(32)

    def size(file_type: FileType) -> int:
        types = choose_types(tensors, file_type, ModelFacts(32, 32, 8))
        return sum(types[t.name].size_bytes(math.prod(t.shape)) for t in tensors)

    sizes = [size(file_type) for file_type in FileType]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("kind", TensorType)
def test_numbers_and_blocks_are_ggufs(kind: TensorType) -> None:
    import gguf

    number = gguf.GGMLQuantizationType[kind.name]
    assert kind.ggml_id == number
    assert (kind.block_weights, kind.block_bytes) == gguf.GGML_QUANT_SIZES[number]


@pytest.mark.parametrize("file_type", FileType)
def test_file_types_are_ggufs(file_type: FileType) -> None:
    import gguf

    assert any(
        member.value == file_type.ftype and member.name.endswith(file_type.name) for member in gguf.LlamaFileType
    )
