"""Side files made to break a reader: each is refused in bounded time and memory, or costs what it describes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import adapter_builder as adapters
from tests.checkpoint_builder import ModelShape, build_checkpoint, change_json, write_json
from zephyr_local.convert import metadata, model_config, vocabulary
from zephyr_local.convert.adapter_config import read_adapter_config
from zephyr_local.convert.checkpoint import open_checkpoint
from zephyr_local.convert.checkpoint_source import open_checkpoint_source
from zephyr_local.convert.hf_to_gguf import convert_checkpoint
from zephyr_local.convert.lora import open_adapter
from zephyr_local.convert.model_config import read_config, read_json, shown
from zephyr_local.errors import CheckpointError
from zephyr_local.gguf_check import MAX_TOKENS
from zephyr_local.quantize.types import FileType

SHAPE = ModelShape(hidden_size=64, ffn_size=96, n_layers=1, n_heads=4, n_kv_heads=2)
DIGITS = "7" * 5000  # more than int() takes of a text


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = build_checkpoint(tmp_path / "checkpoint", SHAPE)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


def refusal(checkpoint: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint_source(checkpoint)
    str(caught.value).encode()
    assert len(str(caught.value)) < 1000
    return caught.value


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


# --- numbers


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1" + "0" * 4000, DIGITS, "1e400", "-" + DIGITS])
@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps", "vocab_size", "num_hidden_layers", "pad_token_id"])
def test_numbers_without_end_in_config(checkpoint: Path, key: str, number: str) -> None:
    change_json(checkpoint / "config.json", **{key: 987654})
    replace_text(checkpoint / "config.json", "987654", number)
    if key == "pad_token_id" and DIGITS not in number:
        open_checkpoint_source(checkpoint)  # no such token: none
        return
    assert "config.json" in str(refusal(checkpoint))


@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps"])
def test_numbers_that_float32_cannot_hold(checkpoint: Path, key: str) -> None:
    change_json(checkpoint / "config.json", **{key: 1e300})
    error = refusal(checkpoint)
    assert "which the GGUF cannot hold" in error.problem
    assert "config.json" in error.remedy


def test_a_temperature_that_float32_cannot_hold(checkpoint: Path) -> None:
    write_json(checkpoint / "generation_config.json", {"temperature": 1e300, "top_k": 7})
    source = open_checkpoint_source(checkpoint)
    assert "general.sampling.temp is left out" in " ".join(source.notices)
    assert source.metadata["general.sampling.top_k"].value == 7


@pytest.mark.parametrize("key", [DIGITS, "12345678901", "²", "-1", ""])
def test_ids_of_added_tokens_decoder(checkpoint: Path, key: str) -> None:
    change_json(checkpoint / "tokenizer_config.json", added_tokens_decoder={key: {"content": "<x>"}})
    assert "added_tokens_decoder" in refusal(checkpoint).problem


@pytest.mark.parametrize("token_id", [1 << 32, 10**4000, -1, "7", 1.0, True])
def test_ids_of_added_tokens(checkpoint: Path, token_id: object) -> None:
    write_json(checkpoint / "added_tokens.json", {"<x>": token_id})
    assert "added_tokens.json has the token id" in refusal(checkpoint).problem


@pytest.mark.parametrize("token_id", [1 << 32, 10**4000, -1])
def test_ids_of_tokenizer_json(checkpoint: Path, token_id: int) -> None:
    write_json(checkpoint / "tokenizer.json", {"added_tokens": [{"id": token_id, "content": "<x>"}]})
    assert "tokenizer.json has the token id" in refusal(checkpoint).problem


# --- shapes of values


@pytest.mark.parametrize("names", [[[]], [{}], ["A", []], ["\ud800"], [["x"] * 1000], ["x" * 100_000]])
def test_architectures_of_any_shape(checkpoint: Path, names: object) -> None:
    change_json(checkpoint / "config.json", architectures=names)
    assert "the architecture is" in refusal(checkpoint).problem


@pytest.mark.parametrize("depth", [50, 900, 100_000])
@pytest.mark.parametrize("key", ["hidden_act", "rope_scaling", "vocab_size", "partial_rotary_factor"])
def test_nested_values_in_config(checkpoint: Path, key: str, depth: int) -> None:
    change_json(checkpoint / "config.json", **{key: "<nested>"})
    replace_text(checkpoint / "config.json", '"<nested>"', "[" * depth + "]" * depth)
    assert "config.json" in refusal(checkpoint).problem


@pytest.mark.parametrize("value", ["x" * 10_000, [["x" * 10_000] * 100] * 100, {"a": {"b": {}}}, 10**4000, "\ud800\n"])
def test_values_in_messages_are_short_and_on_one_line(value: object) -> None:
    text = shown(value)
    assert len(text) <= 200
    assert "\n" not in text
    text.encode()


# --- what gguf-py reads by itself


@pytest.mark.parametrize("key", ["cls", "sep"])
def test_a_post_processor_without_its_tokens(checkpoint: Path, key: str) -> None:
    write_json(checkpoint / "tokenizer.json", {"post_processor": {"type": "RobertaProcessing", key: []}})
    change_json(checkpoint / "tokenizer_config.json", cls_token=..., sep_token=...)
    assert "cannot be understood (IndexError" in refusal(checkpoint).problem


def test_a_nested_chat_template(checkpoint: Path) -> None:
    change_json(checkpoint / "tokenizer_config.json", chat_template=...)
    (checkpoint / "chat_template.json").write_text("[" * 100_000)
    assert "cannot be understood (RecursionError" in refusal(checkpoint).problem


def test_a_chat_template_that_may_not_be_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(metadata._SpecialVocab, "_try_load_from_tokenizer_json", refused)
    assert "Permission denied" in refusal(checkpoint).problem


@pytest.mark.parametrize("bad", ["\ud800", 7, {"a": 1}])
def test_a_template_that_cannot_be_stored(checkpoint: Path, bad: object) -> None:
    change_json(checkpoint / "tokenizer_config.json", chat_template=[{"name": "default", "template": bad}])
    error = refusal(checkpoint)
    assert "tokenizer.chat_template" in error.problem
    assert "tokenizer_config.json" in error.remedy
    assert "in config.json" not in error.remedy


def test_a_token_that_cannot_be_stored(checkpoint: Path) -> None:
    write_json(checkpoint / "added_tokens.json", {"\ud800": 300})
    error = refusal(checkpoint)
    assert "tokenizer.ggml.tokens" in error.problem
    assert "added_tokens.json" in error.remedy


@pytest.mark.parametrize("key", ["tags", "base_model", "datasets", "license", "name", "language"])
def test_a_model_card_that_grows_when_it_is_read(checkpoint: Path, key: str) -> None:
    """YAML's aliases: ten lists of ten of the one before make a text of gigabytes."""
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (checkpoint / "README.md").write_text("\n".join(["---", *lines, f"{key}: *a11", "---", ""]), encoding="utf-8")
    notices = open_checkpoint_source(checkpoint).notices
    assert len(" ".join(notices)) < 10_000


# --- sizes


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "tokenizer.model",
     "chat_template.json", "chat_template.jinja", "additional_chat_templates/more.jinja"],
)  # fmt: skip
def test_side_files_that_are_too_large(checkpoint: Path, name: str) -> None:
    path = checkpoint / name
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.truncate(model_config.MAX_JSON_BYTES + 1)  # a hole: no disk is taken
    error = refusal(checkpoint)
    assert f"{path.name} has 67108865 bytes, more than the 67108864 that are read" in error.problem


@pytest.mark.parametrize("name", ["README.md", "generation_config.json"])
def test_descriptions_that_are_too_large_are_left_out(checkpoint: Path, name: str) -> None:
    with (checkpoint / name).open("wb") as file:
        file.truncate(model_config.MAX_JSON_BYTES + 1)
    (notice,) = open_checkpoint_source(checkpoint).notices
    assert "67108865 bytes" in notice


def test_a_file_of_just_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}
    model_config.require_readable(tmp_path / "x.json", 8)
    with pytest.raises(CheckpointError, match="8 bytes, more than the 7"):
        model_config.require_readable(tmp_path / "x.json", 7)


@pytest.mark.parametrize("vocab_size", [MAX_TOKENS + 1, 1 << 24])
def test_more_tokens_than_the_runtime_loads(checkpoint: Path, vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_padded", lambda *_: pytest.fail("the tokens were made before they were counted"))
    change_json(checkpoint / "config.json", vocab_size=vocab_size, hidden_size=1)
    assert f"vocab_size is {vocab_size}, not a whole number from 1 to {MAX_TOKENS}" in refusal(checkpoint).problem


def test_as_many_tokens_as_the_runtime_loads(checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", vocab_size=MAX_TOKENS)
    assert read_config(checkpoint).vocab_size == MAX_TOKENS


def test_an_adapter_with_more_tokens_than_the_runtime_loads(tmp_path: Path) -> None:
    shape = ModelShape(hidden_size=2, ffn_size=2, n_layers=1, n_heads=1, n_kv_heads=1)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    adapter = adapters.build_adapter(
        tmp_path / "adapter",
        shape,
        dtype="BF16",
        saved=dict.fromkeys(names, (MAX_TOKENS + 1, 2)),
        modules_to_save=["embed_tokens", "lm_head"],
    )
    base = build_checkpoint(tmp_path / "base", shape)
    with pytest.raises(CheckpointError, match=f"gives its base {MAX_TOKENS + 1} tokens, above the limit"):
        open_checkpoint(base, open_adapter(adapter))


# --- patterns and names of an adapter

COSTLY = {
    "repeated group": "(a+)+$",
    "repeated branches": r"(\w|.)*x",
    "group repeated by what flags hide": r"(?x:(a+) *)$",
    "group repeated behind a comment": "(a+)(?#x)*$",
    "group repeated a few times": "(a|a){30}x",
    "counted repeats": "a{2}" * 9,
    "repeats": ".*.*.*.*.*.*.*x",
    "lazy repeats": ".*?" * 7 + "x",
    "optional characters": ".?" * 40 + "!",
    "optional groups": "(.)?" * 40 + "!",
    "branches": "(.|.)" * 40 + ".*!",
    "branches of escapes": r"(\)|\))" * 40 + "!",
    "branches of classes": "([(|]|[^]|])" * 40 + "!",
    "branches in branches": "(a|" * 30 + "a" + ")." * 30 + "(.|.|.)" * 14 + "!",
    "a few groups of many branches": f"({'|'.join('.' * 200)})" * 8,
    "words that begin with one another": f"({'|'.join('a' * n for n in range(1, 100))})" * 5 + "!",
    "reference": r"(a)\1",
    "named reference": "(?P<a>a)(?P=a)",
    "condition": "(a)?(?(1)b|c)",
    "open": "(",
    "long": "x" * 20_000,
    "open and closed": "a)|(b",
    "flag": "a(?i)",
}


@pytest.mark.parametrize("pattern", COSTLY.values(), ids=COSTLY.keys())
@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"])
def test_patterns_that_no_module_name_needs_are_refused(tmp_path: Path, key: str, pattern: str) -> None:
    value: object = {pattern: 8} if key.endswith("_pattern") else pattern
    folder = adapters.build_adapter(tmp_path, SHAPE, **{key: value})
    with pytest.raises(CheckpointError, match=key):
        open_adapter(folder)


@pytest.mark.parametrize("key", ["layers_pattern", "modules_to_save"])
def test_patterns_are_weighed_with_what_stands_around_them(tmp_path: Path, key: str) -> None:
    folder = adapters.build_adapter(tmp_path, SHAPE, **{key: [".*" * 5]})
    with pytest.raises(CheckpointError, match=f"{key} holds a pattern that is too costly"):
        open_adapter(folder)


PROJECTIONS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
BLOCKS = "self_attn|attention|attn|mlp|feed_forward|ffn|dense"
ORDINARY = [
    f".*({PROJECTIONS})",
    r".*\.layers\.\d+\.(self_attn|mlp)\..*proj",
    rf"^(?!.*visual).*(?:{PROJECTIONS}).*",
    rf"model\.layers\.({'|'.join(map(str, range(32)))})\..*(q|v)_proj",
    r"(model\.)?layers\.[0-9]{1,3}\.self_attn\.[qkvo]_proj",
    # as Unsloth writes it
    rf"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:{BLOCKS}).*?(?:{PROJECTIONS}).*?)"
    rf"|(?:\bmodel\.layers\.[\d]{{1,}}\.(?:{BLOCKS})\.(?:(?:{PROJECTIONS})))",
]


@pytest.mark.parametrize("pattern", ORDINARY)
def test_patterns_that_people_write_are_read(tmp_path: Path, pattern: str) -> None:
    settings: dict[str, object] = {
        "target_modules": pattern,
        "rank_pattern": {pattern: 4},
        "modules_to_save": ["lm_head"],
    }
    config = read_adapter_config(adapters.build_adapter(tmp_path, SHAPE, **settings))
    assert config.targets("model.layers.31.self_attn.q_proj")
    assert not config.targets("model.layers.31.input_layernorm")
    assert config.scaling("model.layers.31.self_attn.q_proj")[0] == 4


def test_a_rank_for_each_module(tmp_path: Path) -> None:
    names = [f"model.layers.{n}.self_attn.{letter}_proj" for n in range(512) for letter in "qkvo"]
    patterns = {rf"^{name}$": 4 for name in names}
    folder = adapters.build_adapter(tmp_path, SHAPE, rank_pattern=patterns, target_modules=names)
    assert read_adapter_config(folder).scaling(names[-1])[0] == 4


def test_many_costly_patterns_cost_as_much_as_one(tmp_path: Path) -> None:
    patterns = {f".*.*.*x{n}": 4 for n in range(100)}
    read_adapter_config(adapters.build_adapter(tmp_path / "one", SHAPE, rank_pattern={".*.*.*x": 4}))
    with pytest.raises(CheckpointError, match="rank_pattern holds a pattern that is too costly"):
        read_adapter_config(adapters.build_adapter(tmp_path / "many", SHAPE, rank_pattern=patterns))


@pytest.mark.parametrize(
    "module", ["model.layers." + "7" * 5000 + ".self_attn.q_proj", "a." * 100_000 + "q_proj", "x" * 49 + ".q_proj"]
)
def test_names_that_no_module_has_are_refused(tmp_path: Path, module: str) -> None:
    folder = adapters.build_adapter(tmp_path, SHAPE, layers_to_transform=[0, 1])
    for letter, shape in (("A", (8, 64)), ("B", (64, 8))):
        tensor = {f"base_model.model.{module}.lora_{letter}.weight": ("F32", np.zeros(shape, np.float32))}
        adapters.change_tensors(folder, lambda tensors, more=tensor: tensors.update(more))
    with pytest.raises(CheckpointError, match=f"has {len(module)} characters, above the limit") as refused:
        open_adapter(folder)
    assert len(str(refused.value)) < 1000


# --- the same input, the same bytes

_PRINT_METADATA = """
import pathlib, sys
from zephyr_local.convert.checkpoint_source import open_checkpoint_source
for key, value in open_checkpoint_source(pathlib.Path(sys.argv[1])).metadata.items():
    sys.stdout.write(f"{key} {value.pack().hex()}\\n")
"""


def test_named_templates_have_one_order(checkpoint: Path) -> None:
    names = [f"use_{letter}" for letter in "qwertyuiop"]
    templates = [{"name": name, "template": f"{{{{ {name} }}}}"} for name in ["default", *names]]
    change_json(checkpoint / "tokenizer_config.json", chat_template=templates)
    printed = [
        subprocess.run(
            [sys.executable, "-c", _PRINT_METADATA, str(checkpoint)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    value = open_checkpoint_source(checkpoint).metadata["tokenizer.chat_templates"].value
    assert value == sorted(names)


def test_templates_in_files_have_one_order(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_json(checkpoint / "tokenizer_config.json", chat_template=...)
    folder = checkpoint / "additional_chat_templates"
    folder.mkdir()
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    for name in "bca":
        (folder / f"{name}.jinja").write_text(name)
    orders = []
    glob = Path.glob
    for backwards in (False, True):
        monkeypatch.setattr(Path, "glob", lambda *args, b=backwards: iter(sorted(glob(*args), reverse=b)))
        orders.append(json.dumps([key for key in open_checkpoint_source(checkpoint).metadata if "template" in key]))
    assert orders[0] == orders[1]
    assert "tokenizer.chat_template.a" in orders[0]


def test_a_model_and_an_adapter_in_one_folder(tmp_path: Path) -> None:
    """transformers would load the adapter, this converter the model: neither is done without a word."""
    folder = build_checkpoint(tmp_path / "both", ModelShape(n_layers=1))
    write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    with pytest.raises(CheckpointError, match="holds both a model"):
        convert_checkpoint(folder, tmp_path / "out.gguf", FileType.F16)
