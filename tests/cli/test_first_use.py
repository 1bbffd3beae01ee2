"""A chat template that is not the one the catalogue knows is shown before it is used, and once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import zephyr_local
from tests.gguf_builder import TinyModel, model_of_file, tiny_model, write_reciting_model
from tests.model_store.store_fixtures import put, put_in_hub_cache, put_in_store
from zephyr_local.chat_template import ZEPHYR_TEMPLATE
from zephyr_local.cli.first_use import find_model
from zephyr_local.errors import ModelNotFoundError
from zephyr_local.model_store.registry import registry_path
from zephyr_local.settings import EngineSettings

BETA = "TheBloke/zephyr-7B-beta-GGUF"
FILE = "zephyr-7b-beta.Q4_0.gguf"
NAME = Path("zephyr-7b-beta")
OTHER = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{% endfor %}"


def store(home: Path) -> Path:
    return home / ".local/share/zephyr-local/models"


def put_model(home: Path, template: str | None, model: TinyModel | None = None) -> Path:
    made = model or tiny_model()
    if template is not None:
        made.metadata["tokenizer.chat_template"] = ("str", template)
    return put_in_store(store(home), made.build(), BETA, FILE)


def told(capsys: pytest.CaptureFixture[str], name: Path = NAME, template: str | None = None) -> str:
    find_model(name, EngineSettings(), template=template)
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_another_template_is_shown_before_its_first_use_and_not_again(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put_model(home, OTHER)
    assert find_model(NAME, EngineSettings(), template=None) == (path, None)
    err = capsys.readouterr().err
    assert err == (
        f"note: {FILE} brings a chat template that is not zephyr-7b-beta's (zephyr); it is run in a guarded process. "
        f"To use zephyr-7b-beta's: --template zephyr. This is it, shown once:\n{OTHER}\n"
    )
    assert told(capsys) == ""
    assert told(capsys, Path("zephyr-7b-beta:q4_0")) == ""
    put_model(home, OTHER.replace("[", "("))
    assert OTHER.replace("[", "(") in told(capsys)
    put_model(home, OTHER)
    assert told(capsys) == ""


def test_a_template_that_the_user_chose_goes_without_and_is_not_remembered(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_model(home, OTHER)
    for template in ("zephyr", "my.jinja"):
        assert told(capsys, template=template) == ""
    assert not registry_path().exists()
    assert OTHER in told(capsys)


@pytest.mark.parametrize("template", [None, "", " \n", ZEPHYR_TEMPLATE, "{{ bos_token }}" + ZEPHYR_TEMPLATE])
def test_the_catalogues_own_template_and_none_are_not_shown(
    home: Path, capsys: pytest.CaptureFixture[str], template: str | None
) -> None:
    put_model(home, template)
    assert told(capsys) == ""
    assert not registry_path().exists()


def test_a_model_that_the_catalogue_does_not_know_has_no_other_template(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tiny_model(template=OTHER)
    put_in_store(store(home), made.build(), "org/other-GGUF", "other.gguf")
    assert told(capsys, Path("other")) == ""


def test_another_tools_file_of_the_catalogues_repository_is_looked_at_as_well(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in_hub_cache(home / ".cache/huggingface/hub", tiny_model(template=OTHER).build(), BETA, FILE)
    assert OTHER in told(capsys)


def test_a_template_cannot_move_the_cursor_and_a_long_one_is_cut(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_model(home, "\x1b[2J\x9b1m\u202e" + "a" * 5000 + OTHER)
    err = told(capsys)
    assert not set(err) & {"\x1b", "\x9b", "\u202e"}
    assert "^[[2J\\x9b1m\\u202eaaa" in err
    assert err.endswith("aaa…\n")
    assert len(err) < 4400


def test_where_nothing_can_be_remembered_it_is_shown_each_time(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_model(home, OTHER)
    put(registry_path(), b"no database" * 500)
    for _ in range(2):
        assert OTHER in told(capsys)


def test_a_damaged_file_is_left_to_the_load(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_in_store(store(home), b"GGUF and no more", BETA, FILE)
    assert told(capsys) == ""


def test_a_word_that_is_no_model_may_have_been_a_question(home: Path) -> None:
    put_model(home, None)
    with pytest.raises(ModelNotFoundError, match=r"a question of one word goes after --prompt\.$"):
        find_model(Path("hello"), EngineSettings(), template=None, is_one_word=True)
    with pytest.raises(ModelNotFoundError) as refused:
        find_model(Path("hello"), EngineSettings(), template=None)
    assert "--prompt" not in str(refused.value)


def test_chat_shows_it_beside_the_answer_and_only_once(home: Path, tmp_path: Path) -> None:
    made = model_of_file(write_reciting_model(tmp_path, "All is well that ends well."))
    put_model(home, OTHER + "{{ '\n' }}", made)
    for times in (1, 0):
        ran = zephyr_local("chat", NAME, "--prompt", "Is it?", "--temperature", "0")
        assert (ran.returncode, ran.stdout) == (0, "All is well that ends well.\n")
        assert ran.stderr.count("This is it, shown once:") == times
