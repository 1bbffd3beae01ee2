"""`zephyr-local config`: what it shows is true, and what it writes means what was asked and keeps the rest."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from zephyr_local.cli.config import command
from zephyr_local.configuration import MAX_BYTES, known_keys
from zephyr_local.errors import InvalidInputError, OutputError

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX's links and modes")

WRITTEN = """\
# Mine.
model = "/m.gguf"  # the good one

# How it answers.
[sampling]
temperature = 0.5   # not too hot
stop = [
    "###",  # as the base model ends
]

# The machine.
[engine]
n_ctx = 8192

[profiles.coder]
system = '''
# Rules
[none]
'''
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("ZEPHYR_LOCAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("zephyr_local.configuration.config_folder", lambda: tmp_path / "zephyr-local")
    return tmp_path / "zephyr-local" / "config.toml"


def config(*arguments: str) -> str:
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def usage(*arguments: str) -> str:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    return done.output


def write(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text.encode())


def text_of(file: Path) -> str:
    return file.read_bytes().decode()


def only_file(file: Path) -> bool:
    return [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="XDG's variables are Linux's")
def test_path_is_told_whether_or_not_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert config("path") == f"{tmp_path}/xdg/zephyr-local/config.toml\n"
    assert not (tmp_path / "xdg").exists()


# --- show ---


def test_show_without_a_file_shows_the_defaults(file: Path):
    lines = config("show").splitlines()
    assert lines[0] == f"{file} (missing)"
    rows = {line.split()[0]: line for line in lines[1:]}
    assert set(rows) == {key.dotted for key in known_keys().values()} | {"profile"}
    assert rows["sampling.temperature"].split() == ["sampling.temperature", "0.7", "default"]
    assert rows["model"].split() == ["model", "-", "default"]
    assert len({line.rindex("default") for line in lines[1:]}) == 1, "aligned"
    assert not file.exists()


def test_show_tells_where_each_value_is_from(file: Path, monkeypatch: pytest.MonkeyPatch):
    write(
        file,
        "system = 'f'\nprofile = 'a'\n[sampling]\ntop_k = 3\nstop = ['x']\n[profiles.a]\nsystem = 'a'\n[profiles.b]",
    )
    monkeypatch.setenv("ZEPHYR_LOCAL_TOP_P", "0.25")

    def rows(*arguments: str) -> dict[str, tuple[str, str]]:
        split = [re.split(r"\s{2,}", line) for line in config("show", *arguments).splitlines()[1:]]
        return {name: (value, origin) for name, value, origin in split}

    found = rows()
    assert config("show").splitlines()[0] == f"{file} (profiles: a, b)"
    assert found["profile"] == ('"a"', "file")
    assert found["system"] == ('"a"', "profile a")
    assert found["sampling.top_k"] == ("3", "file")
    assert found["sampling.stop"] == ('["x"]', "file")
    assert found["sampling.top_p"] == ("0.25", "environment ZEPHYR_LOCAL_TOP_P")
    found = rows("--profile", "b")
    assert found["profile"] == ('"b"', "flag")
    assert found["system"] == ('"f"', "file")
    monkeypatch.setenv("ZEPHYR_LOCAL_PROFILE", "b")
    assert rows()["profile"][-1] == "environment ZEPHYR_LOCAL_PROFILE"
    assert rows("--profile", "")["profile"] == ("-", "flag")


def test_show_as_json(file: Path):
    write(file, "model = 'm.gguf'\n[profiles.a.sampling]\nstop = ['x']")
    found = json.loads(config("show", "--json", "--profile", "a"))
    assert set(found) == {"file", "exists", "profiles", "profile", "settings"}
    assert (found["file"], found["exists"], found["profiles"]) == (str(file), True, ["a"])
    assert found["profile"] == {"value": "a", "from": "flag"}
    assert set(found["settings"]) == {key.dotted for key in known_keys().values()}
    assert found["settings"]["model"] == {"value": str(file.parent / "m.gguf"), "from": "file"}
    assert found["settings"]["sampling.stop"] == {"value": ["x"], "from": "profile a"}
    assert found["settings"]["sampling.seed"] == {"value": None, "from": "default"}


def test_what_is_shown_cannot_move_the_cursor_and_is_aligned_where_it_is_wide(file: Path):
    write(file, 'system = "\\u001b[2J\\u009b\\u202e"\ntemplate = "/日本"\n[profiles.p]\nmodel = "/' + "x" * 500 + '"')
    lines = config("show", "--profile", "p").splitlines()
    assert not any(char in line for line in lines for char in "\x1b\x9b\u202e")
    assert max(map(len, lines[1:])) < 120
    ends = {line.split()[0]: line.rindex("file") for line in lines if line.startswith(("system", "template"))}
    assert ends["system"] - ends["template"] == 2, "each of two characters is two columns wide"


def test_show_names_a_wrong_variable_and_a_missing_profile(file: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InvalidInputError, match=r"^there is no profile 'x'"):
        config("show", "--profile", "x")
    monkeypatch.setenv("ZEPHYR_LOCAL_PROFILE", "y")
    with pytest.raises(InvalidInputError, match=r"^ZEPHYR_LOCAL_PROFILE: there is no profile 'y'"):
        config("show")
    monkeypatch.setenv("ZEPHYR_LOCAL_PROFILE", "")
    monkeypatch.setenv("ZEPHYR_LOCAL_SEED", "x")
    with pytest.raises(InvalidInputError, match=r"^ZEPHYR_LOCAL_SEED: seed is 'x'"):
        config("show")


# --- set ---


@posix
def test_set_makes_a_private_file_in_a_private_folder(file: Path):
    config("set", "temperature", "0.2")
    assert text_of(file) == "[sampling]\ntemperature = 0.2\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    file.chmod(0o644)
    config("set", "temperature", "0.3")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert only_file(file)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("system", "Be brief."), {"system": "Be brief."}),
        (("system", "two\nlines"), {"system": "two\nlines"}),
        (("system", ""), {"system": ""}),
        (("--", "system", "-h is no option here"), {"system": "-h is no option here"}),
        (("plain", "true"), {"plain": True}),
        (("save", "0"), {"save": False}),
        (("theme", "dark"), {"theme": "dark"}),
        (("temperature", "1"), {"sampling": {"temperature": 1.0}}),
        (("sampling.temperature", "1"), {"sampling": {"temperature": 1.0}}),
        (("frequency_penalty", "-0.5"), {"sampling": {"frequency_penalty": -0.5}}),
        (("n_gpu_layers", "-1"), {"engine": {"n_gpu_layers": -1}}),
        (("engine.n_ctx", "512"), {"engine": {"n_ctx": 512}}),
        (("stop", "a b"), {"sampling": {"stop": ["a b"]}}),
        (("stop", '["a", "\\n"]'), {"sampling": {"stop": ["a", "\n"]}}),
        (("stop", "[]"), {"sampling": {"stop": []}}),
        (("model", "/m.gguf"), {"model": "/m.gguf"}),
        (("model", "~/m.gguf"), {"model": "~/m.gguf"}),
        (("template", "zephyr"), {"template": "zephyr"}),
        (("profiles.a.system", "x"), {"profiles": {"a": {"system": "x"}}}),
        (("profiles.a.temperature", "0"), {"profiles": {"a": {"sampling": {"temperature": 0.0}}}}),
        (("profiles.a.sampling.temperature", "0"), {"profiles": {"a": {"sampling": {"temperature": 0.0}}}}),
        (('profiles."a.b c".n_ctx', "64"), {"profiles": {"a.b c": {"engine": {"n_ctx": 64}}}}),
        (("--profile", "a.b c", "n_ctx", "64"), {"profiles": {"a.b c": {"engine": {"n_ctx": 64}}}}),
        (("--profile", "sampling", "engine.n_ctx", "64"), {"profiles": {"sampling": {"engine": {"n_ctx": 64}}}}),
    ],
)
def test_set_writes_each_kind_of_value(file: Path, arguments: tuple[str, ...], expected: dict[str, object]):
    config("set", *arguments)
    assert tomllib.loads(text_of(file)) == expected


def test_a_relative_path_is_written_in_full(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config("set", "model", "m.gguf")
    config("set", "template", "t.jinja")
    here = Path.cwd()
    assert tomllib.loads(text_of(file)) == {"model": str(here / "m.gguf"), "template": str(here / "t.jinja")}


def test_set_keeps_comments_and_layout(file: Path):
    write(file, WRITTEN)
    config("set", "temperature", "0.25")
    assert text_of(file) == WRITTEN.replace("0.5 ", "0.25 ")
    write(file, WRITTEN)
    config("set", "system", "x")
    assert text_of(file) == WRITTEN.replace("the good one\n", 'the good one\nsystem = "x"\n')
    write(file, WRITTEN)
    config("set", "top_k", "3")
    assert text_of(file) == WRITTEN.replace("]\n\n# The machine", "]\ntop_k = 3\n\n# The machine")
    write(file, WRITTEN)
    config("set", "--profile", "coder", "plain", "1")
    assert text_of(file) == WRITTEN + "plain = true\n"
    write(file, WRITTEN)
    config("set", "--profile", "poet", "temperature", "1")
    assert text_of(file) == WRITTEN + "\n[profiles.poet.sampling]\ntemperature = 1.0\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only this",
        "system = 'x'",
        "sampling = {top_k = 1}",
        "sampling.top_k = 1",
        "profiles.a.system = 'x'",
        "profiles = {a = {system = 'x'}}",
        "[profiles.a]\nsystem = 'x'\n[sampling]\n[profiles.b]\n[engine]\n[profiles.a.sampling]\ntop_k = 1",
        "[profiles.a.sampling]\ntop_k = 1\n[profiles.b]\n# end",
        WRITTEN,
        WRITTEN.replace("\n", "\r\n"),
    ],
)
def test_whatever_the_layout_only_what_was_asked_changes(file: Path, text: str):
    for arguments, parts, value in (
        (("theme", "dark"), ("theme",), "dark"),
        (("top_p", "0.5"), ("sampling", "top_p"), 0.5),
        (("n_batch", "64"), ("engine", "n_batch"), 64),
        (("profiles.a.model", "/m"), ("profiles", "a", "model"), "/m"),
        (("profiles.a.min_p", "0.5"), ("profiles", "a", "sampling", "min_p"), 0.5),
        (("profiles.new.system", "x"), ("profiles", "new", "system"), "x"),
    ):
        write(file, text)
        expected = tomllib.loads(text)
        config("set", *arguments)
        table = expected
        for part in parts[:-1]:
            table = table.setdefault(part, {})
        table[parts[-1]] = value
        assert tomllib.loads(text_of(file)) == expected
        assert text_of(file).endswith("\n")
        assert [line for line in text.splitlines() if "#" in line and line not in text_of(file)] == []
        config("unset", arguments[0])
        del table[parts[-1]]
        assert _full(tomllib.loads(text_of(file))) == _full(expected)


def _full(table: dict[str, object]) -> dict[str, object]:
    inner = {name: _full(value) if isinstance(value, dict) else value for name, value in table.items()}
    return {name: value for name, value in inner.items() if value != {}}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("tempratur", "1"), "tempratur is not known. Perhaps sampling.temperature is meant."),
        (("engine.temperature", "1"), "engine.temperature is not known. It is sampling.temperature."),
        (("--profile", "a", "topk", "1"), "profiles.a.topk is not known. Perhaps profiles.a.sampling.top_k is meant."),
        (("--profile", "a", "profile", "x"), "profiles.a.profile is not known"),
        (("sampling", "1"), "'sampling' is not a key"),
        (("profiles.a", "1"), "'profiles.a' is not a key"),
        (("a..b", "1"), "'a..b' is not a key"),
        (("", "1"), "'' is not a key"),
        (("a = 1\nb", "1"), "is not a key"),
        (("--profile", "\x1b", "system", "x"), "has control characters"),
        (("temperature", "hot"), "temperature is 'hot'. Give a number."),
        (("temperature", "200"), "temperature is 200.0, outside 0 to 100"),
        (("n_ctx", "1.5"), "n_ctx is '1.5'. Give a whole number."),
        (("plain", "maybe"), "plain is 'maybe'. Give true or false."),
        (("theme", "drak"), "theme is 'drak'. Use auto, light, dark, none."),
        (("stop", "["), "stop is '['. Give a list of texts"),
        (("model", ""), "model is ''"),
        (("model", "/\udcff"), "model is not UTF-8"),
        (("profile", "x"), "no profile 'x'"),
    ],
)
def test_set_refuses_what_reading_would_refuse(file: Path, arguments: tuple[str, ...], told: str):
    write(file, WRITTEN)
    with pytest.raises(InvalidInputError) as caught:
        config("set", *arguments)
    assert told in str(caught.value)
    assert text_of(file) == WRITTEN
    assert only_file(file)


def test_set_takes_a_key_and_a_value(file: Path):
    assert "Missing argument 'VALUE'" in usage("set", "system")
    assert "unexpected extra argument" in usage("set", "system", "two", "words")
    assert not file.exists()


@pytest.mark.parametrize("text", [b"temperature", b"\xff", b"#" * (MAX_BYTES + 1)])
def test_a_file_that_cannot_be_read_is_left(file: Path, text: bytes):
    file.parent.mkdir()
    file.write_bytes(text)
    for arguments in (("set", "system", "x"), ("unset", "system"), ("show",)):
        with pytest.raises(InvalidInputError, match=r"config\.toml is "):
            config(*arguments)
    assert file.read_bytes() == text


def test_a_text_that_is_too_long_is_refused(file: Path):
    with pytest.raises(InvalidInputError, match="over the limit"):
        config("set", "system", "x" * MAX_BYTES)
    assert not file.exists()


def test_a_file_with_a_wrong_key_can_be_mended(file: Path):
    write(file, "tempratur = 1\n[sampling]\ntop_k = -1\n")
    config("set", "top_k", "5")
    config("unset", "tempratur")
    assert text_of(file) == "[sampling]\ntop_k = 5\n"


def test_a_key_in_place_of_a_table_is_told(file: Path):
    write(file, "sampling = 1\n")
    with pytest.raises(InvalidInputError, match=r"^sampling is no table"):
        config("set", "top_k", "5")
    config("unset", "sampling")
    config("set", "top_k", "5")
    assert text_of(file) == "[sampling]\ntop_k = 5\n"


# --- unset ---


def test_unset_keeps_the_rest(file: Path):
    write(file, WRITTEN)
    config("unset", "temperature")
    assert text_of(file) == WRITTEN.replace("temperature = 0.5   # not too hot\n", "")
    write(file, WRITTEN)
    config("unset", "--profile", "coder", "system")
    assert tomllib.loads(text_of(file))["profiles"] == {"coder": {}}
    config("unset", "profiles.coder")
    assert "profiles" not in _full(tomllib.loads(text_of(file)))


def test_unset_tells_what_is_not_set_and_what_is_needed(file: Path):
    with pytest.raises(InvalidInputError, match="temperature is not set in"):
        config("unset", "temperature")
    text = "profile = 'a'\n[profiles.a]\n"
    write(file, text)
    with pytest.raises(InvalidInputError, match=r"no profile 'a' .*though its key profile names it"):
        config("unset", "profiles.a")
    assert text_of(file) == text


# --- the file ---


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(file: Path, monkeypatch: pytest.MonkeyPatch):
    write(file, WRITTEN)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, refuse)
            with pytest.raises(OutputError, match=r"config\.toml cannot be written: No space left on device\. Check"):
                config("set", "temperature", "1")
        assert text_of(file) == WRITTEN
        assert only_file(file)


@posix
def test_a_link_goes_on_pointing_where_it_points(file: Path, tmp_path: Path):
    file.parent.mkdir()
    for target in (tmp_path / "dotfiles" / "zephyr.toml", tmp_path / "new" / "zephyr.toml"):
        file.unlink(missing_ok=True)
        file.symlink_to(target)
        if target.parent.name == "dotfiles":
            target.parent.mkdir()
            target.write_text("# mine\n")
        config("set", "system", "x")
        assert file.is_symlink()
        assert tomllib.loads(text_of(target)) == {"system": "x"}
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert [path.name for path in target.parent.iterdir()] == ["zephyr.toml"]
        assert only_file(file)


def test_set_tells_what_it_wrote_beside_stdout(file: Path, capsys: pytest.CaptureFixture[str]):
    command.main(["set", "--profile", "a b", "system", "x\x1b"], standalone_mode=False)
    assert capsys.readouterr() == ("", f'profiles."a b".system = "x\\u001b" in {file}\n')
