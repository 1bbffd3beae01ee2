"""A session: the file is checked, the template chosen, chats answered, the cache reused between turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.conftest import SETTINGS
from tests.gguf_builder import tiny_model
from zephyr_local.chat_template import ZEPHYR_TEMPLATE
from zephyr_local.chat_types import Message
from zephyr_local.engine.cancel import CancelFlag
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.session import Session
from zephyr_local.errors import ContextExceededError, ModelFileError, TemplateError
from zephyr_local.settings import EngineSettings, Sampling

GREEDY = Sampling(temperature=0, max_tokens=24)
HELLO = [Message("user", "the hen in a den")]


def answer(session: Session, messages: list[Message], sampling: Sampling = GREEDY) -> str:
    return "".join(piece.text for piece in session.stream(messages, sampling))


def test_answers_and_reuses_the_cache(tiny_path: Path) -> None:
    session = Session.open(tiny_path, SETTINGS)
    first = list(session.stream(HELLO, GREEDY))
    finish = first[-1].finish
    assert finish is not None
    assert finish.cached_tokens == 0
    assert finish.prompt_tokens == session.count_tokens(HELLO)
    text = "".join(piece.text for piece in first)
    longer = [*HELLO, Message("assistant", text), Message("user", "and then")]
    second = list(session.stream(longer, GREEDY))[-1].finish
    assert second is not None
    assert second.cached_tokens >= finish.prompt_tokens - 1
    fresh = Session.open(tiny_path, SETTINGS)
    assert answer(fresh, longer) == answer(session, longer)
    session.close()
    session.close()
    fresh.close()


def test_after_a_cancel_the_next_answer_is_that_of_a_fresh_engine(tiny_path: Path) -> None:
    session = Session.open(tiny_path, SETTINGS)
    expected = answer(session, HELLO)
    for cancel_after in range(0, 20, 3):
        cancel = CancelFlag()
        stream = session.stream([*HELLO, Message("user", f"{cancel_after}")], Sampling(temperature=0), cancel)
        if cancel_after == 0:
            cancel.set()
        for index, piece in enumerate(stream):
            if piece.finish is not None:
                assert piece.finish.reason == "cancelled"
            elif index + 1 >= cancel_after:
                cancel.set()
        assert answer(session, HELLO) == expected
    session.close()


def test_notices(tiny_path: Path, tmp_path: Path) -> None:
    assumed = Session.open(tiny_path, SETTINGS)
    assert assumed.notices == ("tiny-zephyr.gguf has no chat template; Zephyr's is used",)
    assert assumed.model_name == "zephyr test"
    assumed.close()
    path = tiny_model(name="", template=ZEPHYR_TEMPLATE).write(tmp_path / "own.gguf")
    past = Session.open(path, EngineSettings(n_ctx=1024, n_threads=1))
    assert past.notices == (
        "n_ctx is 1024, past the 512 tokens that the model was trained for; answers get worse beyond them",
    )
    assert past.model_name == "own"
    past.close()
    default = Session.open(path, EngineSettings(n_threads=1))
    assert default.notices == ()
    assert default.n_ctx == 512  # what it was trained for, where that is less than the default
    default.close()


@pytest.mark.parametrize(
    ("key", "typed", "n_ctx", "told"),
    [
        ("zephyr_local.sliding_window", ("u32", 512), 512, None),
        ("zephyr_local.sliding_window", ("u32", 512), 256, None),
        ("zephyr_local.sliding_window", ("u32", 512), 513, (512, 768, "use --n-ctx 512 (n_ctx=512)")),
        ("zephyr_local.sliding_window", ("u32", 512), None, (512, 1024, "use --n-ctx 512 (n_ctx=512)")),
        ("zephyr_local.sliding_window", ("u32", 1024), None, None),
        # llama.cpp rounds the context up to a multiple of 256, so the window itself would not help.
        ("zephyr_local.sliding_window", ("u32", 600), 600, (600, 768, "use --n-ctx 512 (n_ctx=512)")),
        ("zephyr_local.sliding_window", ("u32", 100), 64, (100, 256, "keep chats shorter than that")),
        ("llama.attention.sliding_window", ("u32", 512), 1024, (512, 1024, "use --n-ctx 512 (n_ctx=512)")),
        ("zephyr_local.sliding_window", ("u32", 0), None, None),
        ("llama.attention.sliding_window", ("u32", 0), None, None),
        ("zephyr_local.sliding_window", ("str", "512"), None, None),
        ("zephyr_local.sliding_window", ("f32", 512.0), None, None),
        ("zephyr_local.sliding_window", ("bool", True), None, None),
        ("zephyr_local.sliding_window", ("i32", -1), None, None),
        ("zephyr_local.sliding_window", ("array[u32]", [512]), None, None),
        ("zephyr_local.sliding_window", None, None, None),
    ],
)
def test_a_context_past_the_window_of_training_is_told(
    tmp_path: Path, key: str, typed: tuple | None, n_ctx: int | None, told: tuple[int, int, str] | None
) -> None:
    model = tiny_model(n_ctx_train=1024, template=ZEPHYR_TEMPLATE)
    if typed is not None:
        model.metadata[key] = typed
    session = Session.open(model.write(tmp_path / "window.gguf"), EngineSettings(n_ctx=n_ctx, n_threads=1))
    session.close()
    if told is None:
        assert session.notices == ()
    else:
        window, in_use, remedy = told
        assert session.n_ctx == in_use
        (notice,) = session.notices
        assert f"attention over the last {window} tokens, and the context is {in_use};" in notice
        assert "llama.cpp computes full attention here" in notice
        assert notice.endswith(remedy)


def test_of_two_windows_the_smaller_counts(tmp_path: Path) -> None:
    model = tiny_model(n_ctx_train=1024, template=ZEPHYR_TEMPLATE)
    model.metadata["zephyr_local.sliding_window"] = ("u32", 4096)
    model.metadata["llama.attention.sliding_window"] = ("u32", 256)
    session = Session.open(model.write(tmp_path / "window.gguf"), EngineSettings(n_threads=1))
    session.close()
    assert "the last 256 tokens" in session.notices[0]


def test_llama_cpp_applies_no_window_to_this_architecture(tmp_path: Path) -> None:
    """What the notice says: with the key of files in use or without it, the logits are those of full attention."""
    model = tiny_model(n_ctx_train=1024)
    plain = model.write(tmp_path / "plain.gguf")
    model.metadata["llama.attention.sliding_window"] = ("u32", 16)
    windowed = model.write(tmp_path / "windowed.gguf")
    tokens = [1, *range(259, 299)] * 4
    logits = []
    for path in (plain, windowed):
        loaded = LlamaModel.load(path, SETTINGS)
        loaded.evaluate(tokens)
        logits.append(loaded.logits())
        loaded.close()
    assert (logits[0] == logits[1]).all()


def test_the_template_is_asked_for_before_anything_is_loaded(tmp_path: Path) -> None:
    path = tiny_model(name="mistral").write(tmp_path / "mistral.gguf")
    progress: list[float] = []
    with pytest.raises(TemplateError, match="--template"):
        Session.open(path, SETTINGS, progress=progress.append)
    assert progress == []
    session = Session.open(path, SETTINGS, template="zephyr", progress=progress.append)
    assert session.notices == ()
    assert progress[-1] == 1.0
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    other = Session.open(path, SETTINGS, template=own)
    assert other.count_tokens(HELLO) < session.count_tokens(HELLO)
    session.close()
    other.close()


def test_a_template_of_the_files_own_is_used(tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{# not known #}"
    own = Session.open(tiny_model(template=source).write(tmp_path / "own.gguf"), SETTINGS)
    file = tmp_path / "own.jinja"
    file.write_text(source)
    trusted = Session.open(tiny_model().write(tmp_path / "none.gguf"), SETTINGS, template=file)
    assert own.notices == ()
    assert answer(own, HELLO) == answer(trusted, HELLO)
    refuses = tiny_model(template="{{ raise_exception('no chats') }}").write(tmp_path / "refuses.gguf")
    refusing = Session.open(refuses, SETTINGS)
    with pytest.raises(TemplateError, match=r"refuses\.gguf's own refuses this chat: no chats"):
        refusing.count_tokens(HELLO)
    for session in (own, trusted, refusing):
        session.close()


def test_a_chat_without_room_for_an_answer(tiny_path: Path) -> None:
    session = Session.open(tiny_path, EngineSettings(n_ctx=256, n_threads=1))
    # Each "x" and its space are two tokens here.
    for n_words in range(100, 130):
        messages = [Message("user", "x " * n_words)]
        n_tokens = session.count_tokens(messages)
        if n_tokens >= 256:
            with pytest.raises(ContextExceededError, match=rf"has {n_tokens} tokens and the context 256"):
                session.stream(messages, GREEDY)
            break
        finish = list(session.stream(messages, Sampling(temperature=0)))[-1].finish
        assert finish is not None
        assert finish.prompt_tokens + finish.completion_tokens <= 256
    else:
        pytest.fail("the chat never became too long")
    session.close()


def test_a_file_that_is_not_runnable_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    model.metadata["llama.expert_count"] = ("u32", 1)
    with pytest.raises(ModelFileError, match="expert_count"):
        Session.open(model.write(tmp_path / "moe.gguf"), SETTINGS)
