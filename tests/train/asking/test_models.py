"""How a command and a models file name models."""

from __future__ import annotations

from pathlib import Path

import pytest

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.asking.models import ModelsFile
from zephyr_local.train.asking.request import Price

TABLE = """
[big]
url = "https://host/v1"
model = "org/big-model"
api_key_env = "BIG_KEY"
price = {input = 2.5, output = 10}
requests_per_minute = 60
concurrency = 9

[here]
gguf = "models/small.gguf"
temperature = 0.2

[ready]
file = "ready.jsonl"
"""


def read(tmp_path: Path, text: str = TABLE) -> ModelsFile:
    (tmp_path / "models.toml").write_text(text)
    return ModelsFile.read(tmp_path / "models.toml")


def test_a_table_says_all_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    big = read(tmp_path).find("big")
    assert (big.kind, big.name, big.model, big.concurrency) == ("endpoint", "big", "org/big-model", 9)
    assert big.price == Price(2.5, 10)
    assert Price(2.5, 10).of(1_000_000, 100_000) == pytest.approx(3.5)
    monkeypatch.setenv("BIG_KEY", "secret")
    assert big.api_key == "secret"
    assert "secret" not in repr(big)


def test_its_paths_are_relative_to_the_file(tmp_path: Path):
    models = read(tmp_path)
    assert models.find("here").gguf == str(tmp_path / "models/small.gguf")
    assert models.find("here").temperature == 0.2
    assert models.find("ready").file == str(tmp_path / "ready.jsonl")


def test_a_model_is_named_without_a_file():
    models = ModelsFile.read(None)
    assert models.find("bundled").kind == "gguf"
    assert models.find("some/where/zephyr.Q4_K_M.gguf").name == "zephyr.Q4_K_M"
    assert models.find("answers.jsonl").kind == "file"
    assert models.find("gpt4/model_outputs.json").name == "gpt4"
    endpoint = models.find("http://127.0.0.1:8080/v1#org/model")
    assert (endpoint.url, endpoint.model, endpoint.name) == ("http://127.0.0.1:8080/v1", "org/model", "model")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://host/v1", "names no model"),
        ("unknown", "there is no model 'unknown'; .*models.toml has big, here, ready"),
        (".", "is a folder.*zephyr-local quantize"),
    ],
)
def test_what_names_no_model_is_told(tmp_path: Path, text: str, words: str):
    with pytest.raises(InvalidInputError, match=words):
        read(tmp_path).find(text)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('[a]\nurl = "https://h/v1"\nmodel = "m"\nspeed = 1', r"\[a\] in .* has the unknown key speed"),
        ('[a]\nurl = "https://h/v1"\nmodel = "m"\nconcurrency = "4"', "concurrency is '4'"),
        ('[a]\nurl = "https://h/v1"\nmodel = "m"\nconcurrency = true', "concurrency is True"),
        ('[a]\nurl = "https://h/v1"\nmodel = "m"\nconcurrency = 0', "concurrency is 0"),
        ('[a]\nurl = "https://h/v1"\nmodel = "m"\nprice = {input = "x"}', "price.input is 'x'"),
        ('[a]\nurl = "https://h/v1"\nmodel = "m"\nprice = {input = -1, output = 1}', "price.input is -1"),
        ('[a]\nurl = "https://h/v1"\nmodel = "m"\ntimeout_s = 0', "timeout_s is 0"),
        ('[a]\nurl = "https://h/v1"\nmodel = "m"\nprice = {input = 1}', "price has input"),
        ('[a]\nurl = "https://h/v1"\nmodel = "m"\nmax_tokens = -1', "max_tokens is -1"),
        ('[a]\nurl = "https://h/v1"\nmodel = "m"\ntop_p = 7', "top_p is 7"),
        ('[a]\nurl = "https://h/v1"\nmodel = "m"\ntemperature = "hot"', "Give a number"),
        ('[a]\nurl = "https://me:secret@h/v1"\nmodel = "m"', "holds a name or a password"),
        ('[a]\nurl = "https://h/v1?key=x"\nmodel = "m"', "has more than a path"),
        ('[a]\nurl = "https://h/v1"', "has a url and no model"),
        ('[a]\nurl = "host/v1"\nmodel = "m"', "has the url 'host/v1'"),
        ('[a]\ngguf = "a.gguf"\nfile = "b.json"', "has gguf and file"),
        ("[a]\n", "neither url nor gguf nor file"),
        ("a = 1", "a in .* is no table"),
        ("[a", "is not TOML"),
    ],
)
def test_a_file_that_is_wrong_is_told_with_its_place(tmp_path: Path, table: str, words: str):
    with pytest.raises(InvalidInputError, match=words):
        read(tmp_path, table)


def test_a_file_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(InvalidInputError, match="there is no file"):
        ModelsFile.read(tmp_path / "none.toml")
