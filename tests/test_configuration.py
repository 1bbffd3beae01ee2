"""The configuration file: what it means, and that whatever is wrong in it is told by file and key."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import get_args

import click
import pytest

from zephyr_local.chat_fit import Policy
from zephyr_local.chat_template import ChatTemplate
from zephyr_local.cli.options import engine_options, sampling_options
from zephyr_local.configuration import (
    BUILT_IN_TEMPLATES,
    MAX_BYTES,
    ChatSettings,
    Entry,
    Overflow,
    checked_value,
    configuration_path,
    environment_entry,
    known_keys,
    read_configuration,
    value_of_text,
)
from zephyr_local.errors import InvalidInputError
from zephyr_local.settings import EngineSettings, Sampling

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

EVERYTHING = """\
model = "models/zephyr.gguf"
system = "Be brief."
template = "zephyr"
profile = "coder"
overflow = "drop-oldest"
theme = "light"
plain = true
save = true
history = false
[sampling]
temperature = 1
stop = ["###", "\\n"]
seed = 7
[engine]
n_ctx = 8192
kv_type = "q8_0"
[profiles.coder]
system = "You write Python."
template = "chat.jinja"
[profiles.coder.sampling]
temperature = 0.1
[profiles."ein Ü.b"]
plain = false
[profiles.sampling.sampling]
top_k = 3
[profiles.profiles.engine]
n_batch = 64
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def refused(file: Path, text: str | bytes) -> str:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidInputError) as caught:
        read_configuration(file)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 1000
    assert str(file) in str(caught.value)
    return str(caught.value).replace(f"{file}", "FILE")


def test_a_missing_file_is_an_empty_configuration(file: Path):
    found = read_configuration(file)
    assert (found.values, found.profiles, found.profile, found.entries(None)) == ({}, {}, None, {})


def test_everything_is_read_and_flattened(file: Path):
    file.write_text(EVERYTHING)
    found = read_configuration(file)
    assert {name: entry.value for name, entry in found.entries("").items()} == {
        "model": file.parent / "models" / "zephyr.gguf",
        "system": "Be brief.",
        "template": "zephyr",
        "overflow": "drop-oldest",
        "theme": "light",
        "plain": True,
        "save": True,
        "history": False,
        "temperature": 1.0,
        "stop": ("###", "\n"),
        "seed": 7,
        "n_ctx": 8192,
        "kv_type": "q8_0",
    }
    assert {entry.origin for entry in found.entries("").values()} == {"file"}
    assert type(found.entries("")["temperature"].value) is float


def test_a_profile_stands_over_the_file(file: Path):
    file.write_text(EVERYTHING)
    found = read_configuration(file)
    entries = found.entries("coder")
    assert entries == found.entries(None), "the file names it"
    assert entries["system"] == Entry("You write Python.", "profile coder")
    assert entries["temperature"] == Entry(0.1, "profile coder")
    assert entries["template"] == Entry(str(file.parent / "chat.jinja"), "profile coder")
    assert entries["seed"] == Entry(7, "file")
    assert found.entries("ein Ü.b")["plain"] == Entry(False, "profile ein Ü.b")
    assert found.entries("sampling")["top_k"] == Entry(3, "profile sampling")
    assert found.entries("profiles")["n_batch"] == Entry(64, "profile profiles")


def test_an_unknown_profile_lists_those_there_are(file: Path):
    file.write_text("[profiles.coder]\n[profiles.poet]\n")
    with pytest.raises(InvalidInputError, match=r"no profile 'x' in .*config\.toml\. There are: coder, poet\."):
        read_configuration(file).entries("x")
    file.write_text("")
    with pytest.raises(InvalidInputError, match="config set --profile"):
        read_configuration(file).entries("x")
    assert "no profile 'x' in FILE, though its key profile names it. There are: coder." in refused(
        file, "profile = 'x'\n[profiles.coder]"
    )


def test_paths_count_from_the_folder_of_the_file(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("USERPROFILE", "/home/someone")
    for text, expected in (("~/m.gguf", Path("/home/someone/m.gguf")), ("/m.gguf", Path("/m.gguf"))):
        file.write_text(f"model = '{text}'\ntemplate = '{text}'")
        entries = read_configuration(file).entries(None)
        assert (entries["model"].value, entries["template"].value) == (expected, str(expected))
    assert "whose home folder is not known" in refused(file, "model = '~nobody-of-this-name/m.gguf'")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a = ", "FILE is not TOML: Invalid value (at line 1, column 5, the end)"),
        ("a = 1\nb = @", "FILE is not TOML: Invalid value (at line 2, column 5)"),
        ("a = 1\na = 2", "FILE is not TOML: Cannot overwrite a value (at line 2, column 6, the end)"),
        (b"system = '\xff'", "FILE is not UTF-8 (byte 10)"),
        ("seed = " + "9" * 5000, "FILE is not TOML: "),
        ("seed = " + "[" * 100_000, "FILE is nested too deeply"),
        ("#" * (MAX_BYTES + 1), f"FILE is over the limit of {MAX_BYTES} bytes"),
        ("systen = 'x'", "FILE: systen is not known. Perhaps system is meant."),
        ("temperature = 1", "FILE: temperature is not known. It is sampling.temperature."),
        ("tempratur = 1", "FILE: tempratur is not known. Perhaps sampling.temperature is meant."),
        ("[sampling]\nn_ctx = 1", "FILE: sampling.n_ctx is not known. It is engine.n_ctx."),
        ("[engine]\nn_ctxx = 1", "FILE: engine.n_ctxx is not known. Perhaps engine.n_ctx is meant."),
        (
            "[engine]\nzzzz = 1",
            "zzzz is not known. Known are: n_ctx, n_batch, n_threads, n_gpu_layers, kv_type, check_memory.",
        ),
        ("[engine]\ncheck_tensors = true", "engine.check_tensors is not known"),
        ("[sampling]\nlogprobs = 1", "sampling.logprobs is not known"),
        ("[profiles.a]\nprofile = 'a'", "profiles.a.profile is not known"),
        ("[profiles.a.sampling]\nsystem = 'a'", "profiles.a.sampling.system is not known. It is profiles.a.system."),
        ("[profiles.'a b']\nn_ctx = 1", 'profiles."a b".n_ctx is not known. It is profiles."a b".engine.n_ctx.'),
        ("'' = 1", 'FILE: "" is not known'),
        (f"{'x' * 100_000} = 1", "FILE: xxx"),
        ("sampling = 1", "FILE: sampling is a whole number. Write it as a table, [sampling]."),
        ("[[profiles]]", "FILE: profiles is a list. Write it as a table"),
        ("profiles.a = 'x'", "FILE: profiles.a is a text. Write it as a table, [profiles.a]."),
        ("[profiles.'']", "the profile's name '' is empty or has control characters"),
        ('[profiles."\\u001b[2J"]', "the profile's name '\\x1b[2J' is empty or has control characters"),
        ("profile = 1", "FILE: profile is a whole number. Give a text in quotes."),
        ("system = 1", "FILE: system is a whole number. Give a text in quotes."),
        ("system = 2020-01-01", "FILE: system is a date or time. Give a text in quotes."),
        ("plain = 1", "FILE: plain is a whole number. Give true or false."),
        ("plain = 'yes'", "FILE: plain is a text. Give true or false."),
        ("overflow = 'x'", "FILE: overflow is 'x'. Use stop, drop-oldest, summarise."),
        ("theme = 'drak'", "FILE: theme is 'drak'. Use auto, light, dark, none."),
        (f"theme = '{'x' * 100_000}'", "FILE: theme is 'xxx"),
        ("model = ''", "FILE: model is ''. Give the path of a file, or leave it out."),
        ('model = "a\\u0000b"', "FILE: model is 'a\\x00b'. Give the path of a file"),
        ("[sampling]\ntemperature = 200", "FILE: sampling.temperature is 200.0, outside 0 to 100. The default is 0.7."),
        ("[sampling]\ntemperature = nan", "FILE: sampling.temperature is nan, outside 0 to 100"),
        ("[sampling]\ntemperature = '1'", "FILE: sampling.temperature is a text. Give a number."),
        ("[sampling]\ntemperature = true", "FILE: sampling.temperature is true or false. Give a number."),
        ("[sampling]\ntop_k = 1.0", "FILE: sampling.top_k is a number. Give a whole number."),
        ("[sampling]\ntop_k = true", "FILE: sampling.top_k is true or false. Give a whole number."),
        (f"[sampling]\ntop_k = 0x{'f' * 10_000}", "FILE: sampling.top_k is a number of over 64 bits"),
        (f"[sampling]\ntop_p = 0x{'f' * 10_000}", "FILE: sampling.top_p is a whole number. Give a number."),
        ("[sampling]\nstop = 'x'", 'FILE: sampling.stop is a text. Give a list of texts, such as ["###"].'),
        (f"[sampling]\nstop = [0x{'f' * 10_000}]", "FILE: sampling.stop is a list of other things than texts"),
        ("[sampling]\nstop = ['']", "FILE: sampling.stop is [''"),
        ("[profiles.a.engine]\nn_ctx = 1", "FILE: profiles.a.engine.n_ctx is 1, outside 8 to 1048576"),
        ("[engine]\nkv_type = 'q4_0'", "FILE: engine.kv_type is 'q4_0'. Use f16, f32, q8_0."),
    ],
)
def test_what_is_wrong_is_told(file: Path, text: str | bytes, told: str):
    assert told in refused(file, text)


def test_what_is_no_file_is_refused(file: Path):
    file.mkdir()
    with pytest.raises(InvalidInputError, match=re.escape(f"{file} is not a file")):
        read_configuration(file)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_configuration(Path(f"{file}\0"))
    if os.name != "nt":
        os.mkfifo(file.with_name("pipe"))
        with pytest.raises(InvalidInputError, match="pipe is not a file"):
            read_configuration(file.with_name("pipe"))


def test_a_byte_order_mark_and_windows_line_ends_are_read(file: Path):
    file.write_bytes(b"\xef\xbb\xbfsystem = 'x'\r\n[engine]\r\nn_ctx = 512\r\n")
    assert {name: entry.value for name, entry in read_configuration(file).entries(None).items()} == {
        "system": "x",
        "n_ctx": 512,
    }


def test_the_keys_are_the_fields_and_the_flags():
    fields = [field for settings in (ChatSettings, Sampling, EngineSettings) for field in dataclasses.fields(settings)]
    names = [field.name for field in fields]
    assert len(names) == len(set(names)), "a name in two tables would have one variable for two things"

    @sampling_options
    @engine_options
    def command() -> None: ...

    flags = {parameter.name for parameter in click.command(command).params}
    assert {name for name, key in known_keys().items() if key.section} == flags
    assert {name for name, key in known_keys().items() if not key.section} == {
        field.name for field in dataclasses.fields(ChatSettings)
    }
    defaults = {field.name: field.default for field in fields}
    assert {name: key.default for name, key in known_keys().items()} == {name: defaults[name] for name in known_keys()}
    assert {known_keys()[n].kind for n in ("model", "system", "seed", "top_p", "plain", "save", "stop", "kv_type")} == {
        Path,
        str,
        int,
        float,
        bool,
        tuple,
    }


@pytest.mark.parametrize("name", known_keys())
def test_a_refusal_begins_with_the_name(name: str):
    key = known_keys()[name]
    for value in (-(10**15), "\0", [""], {}, None):
        if name == "system" and value == "\0":  # which a chat takes as it takes what is typed
            continue
        with pytest.raises(InvalidInputError) as caught:
            checked_value(key, value, Path())
        assert caught.value.problem.startswith(f"{name} ")


def test_the_choices_are_those_of_the_chat():
    assert [name.replace("-", "_") for name in get_args(Overflow)] == list(get_args(Policy))
    assert [ChatTemplate.named(name).name for name in BUILT_IN_TEMPLATES] == list(BUILT_IN_TEMPLATES)


def test_texts_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    for name, text, value in (
        ("plain", "1", True),
        ("plain", "False", False),
        ("n_ctx", "512", 512),
        ("temperature", "0", 0.0),
        ("stop", "two words", ("two words",)),
        ("stop", '["a b", "c"]', ("a b", "c")),
        ("dry_sequence_breakers", "\n", ("\n",)),
        ("model", "m.gguf", Path("m.gguf")),
        ("template", "t.jinja", "t.jinja"),
        ("system", "Grüß Gott", "Grüß Gott"),
    ):
        key = known_keys()[name]
        monkeypatch.setenv(key.variable, text)
        assert environment_entry(key) == Entry(value, f"environment {key.variable}")
        monkeypatch.setenv(key.variable, "")
        assert environment_entry(key) is None
        monkeypatch.delenv(key.variable)
        assert environment_entry(key) is None


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("plain", "maybe", "plain is 'maybe'. Give true or false."),
        ("n_ctx", "many", "n_ctx is 'many'. Give a whole number."),
        ("n_ctx", "9" * 5000, "n_ctx is '999"),
        ("n_ctx", "1", "n_ctx is 1, outside 8"),
        ("temperature", "inf", "temperature is inf, outside 0 to 100"),
        ("stop", "[INST]", "stop is '[INST]'. Give a list of texts"),
        ("stop", "[1]", "stop is a list of other things than texts"),
        ("stop", "[" * 100_000, "stop is '[[["),
        ("overflow", "DROP", "overflow is 'DROP'. Use stop, drop-oldest, summarise."),
        ("system", "\udcff", "system is not UTF-8"),
    ],
)
def test_a_wrong_text_is_refused(name: str, text: str, told: str, monkeypatch: pytest.MonkeyPatch):
    key = known_keys()[name]
    with pytest.raises(InvalidInputError, match=re.escape(told)):
        value_of_text(key, text)
    if len(text) < 1000:
        monkeypatch.setenv(key.variable, text)
        with pytest.raises(InvalidInputError, match=re.escape(f"{key.variable}: {told}")):
            environment_entry(key)


def test_the_file_is_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("zephyr_local.configuration.config_folder", lambda: tmp_path)
    assert configuration_path() == tmp_path / "config.toml"
    (tmp_path / "config.toml").write_text("system = 'x'")
    assert read_configuration().values == {"system": "x"}


def test_the_page_names_every_key_with_its_default():
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    named = dict(rows)
    assert len(rows) == len(named)
    assert set(named) == {key.dotted for key in known_keys().values()} | {"profile"}
    for key in known_keys().values():
        told = named[key.dotted]
        if key.default in (None, ()):
            assert not told.startswith("`"), f"{key.dotted} has no default to quote"
        else:
            default = str(key.default).lower() if isinstance(key.default, bool) else key.default
            shown = " ".join(repr(text).strip("'") for text in default) if isinstance(default, tuple) else f"{default}"
            assert told == f"`{shown}`"


def test_the_example_of_the_page_is_read(file: Path):
    example = PAGE.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0]
    file.write_text(example, encoding="utf-8")
    assert read_configuration(file).profiles
