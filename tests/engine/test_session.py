"""A session: the file is checked, the template chosen, chats answered, the cache reused between turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.conftest import SETTINGS
from tests.engine.scheduling import GREEDY, Answer, Collector, Loop, answer_alone, assert_same_answer, chat_answer
from tests.gguf_builder import tiny_model
from tests.llama_eval import Evaluator
from zephyr_local.chat_template import ZEPHYR_TEMPLATE
from zephyr_local.chat_types import Message
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.run import Run
from zephyr_local.engine.session import Session
from zephyr_local.errors import ContextExceededError, ModelFileError, TemplateError
from zephyr_local.settings import EngineSettings, Sampling

HELLO = [Message("user", "the hen in a den")]


def answer(session: Session, messages: list[Message]) -> str:
    return chat_answer(session, SETTINGS, messages, GREEDY)


def n_tokens(session: Session, messages: list[Message]) -> int:
    return len(session.prompt.encode(messages).ids)


def test_answers_and_reuses_the_cache(tiny_path: Path) -> None:
    session = Session.open(tiny_path, SETTINGS)
    with Loop(session.model, SETTINGS) as loop:
        first = loop.answer(session.prompt.encode(HELLO).ids)
        assert first.finish.cached_tokens == 0
        assert first.finish.prompt_tokens == n_tokens(session, HELLO)
        longer = [*HELLO, Message("assistant", first.text), Message("user", "and then")]
        prompt = session.prompt.encode(longer).ids
        second = loop.answer(prompt)
        assert second.finish.cached_tokens >= first.finish.prompt_tokens - 1
    session.close()
    session.close()
    fresh = Session.open(tiny_path, SETTINGS)
    alone = answer_alone(fresh.model, SETTINGS, fresh.prompt.encode(longer).ids, GREEDY)
    assert_same_answer(fresh.model, prompt, alone.tokens, second.tokens)
    fresh.close()


def test_after_a_cancel_the_next_answer_is_that_of_a_fresh_engine(tiny_path: Path, tiny: LlamaModel) -> None:
    session = Session.open(tiny_path, SETTINGS)
    prompt = session.prompt.encode(HELLO).ids
    with Loop(session.model, SETTINGS) as loop:
        expected = loop.answer(prompt)
        for cancel_after in range(0, 20, 3):
            cancelled = CancelledAfter(loop, cancel_after)
            asked = session.prompt.encode([*HELLO, Message("user", f"{cancel_after}")]).ids
            finish = cancelled.start(asked).finish
            assert finish.reason == "cancelled"
            assert_same_answer(tiny, prompt, expected.tokens, loop.answer(prompt).tokens)
    session.close()


class CancelledAfter:
    """Asks for an answer and cancels it at its n-th piece, the first of them before it is asked."""

    def __init__(self, loop: Loop, n_pieces: int) -> None:
        self._loop, self._left, self._run = loop, n_pieces, None

    def start(self, prompt: list[int]) -> Answer:
        run = Run(prompt, Sampling(temperature=0), sink := Collector(on_text=self._seen))
        self._run = run
        if self._left == 0:
            self._loop.scheduler.cancel(run)
        self._loop.scheduler.submit(run)
        return Answer(run, sink)

    def _seen(self, _text: str) -> None:
        self._left -= 1
        if self._left <= 0 and self._run is not None:
            self._loop.scheduler.cancel(self._run)


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
        evaluator = Evaluator(loaded)
        evaluator.evaluate(tokens)
        logits.append(evaluator.logits())
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
    assert n_tokens(other, HELLO) < n_tokens(session, HELLO)
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
    own.close()
    trusted.close()


def test_a_template_that_refuses(tmp_path: Path) -> None:
    always = tiny_model(template="{{ raise_exception('no chats') }}").write(tmp_path / "always.gguf")
    progress: list[float] = []
    with pytest.raises(TemplateError, match=r"always\.gguf's own refuses this chat: no chats"):
        Session.open(always, SETTINGS, progress=progress.append)
    assert progress == [], "told before the load"
    some = "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}{{ messages[0].content }}"
    session = Session.open(tiny_model(template=some).write(tmp_path / "some.gguf"), SETTINGS)
    assert answer(session, HELLO)
    with pytest.raises(TemplateError, match=r"some\.gguf's own refuses this chat: one only"):
        session.prompt.encode([*HELLO, Message("user", "more")])
    session.close()


def test_a_chat_without_room_for_an_answer(tiny_path: Path) -> None:
    settings = EngineSettings(n_ctx=256, n_threads=1)
    session = Session.open(tiny_path, settings)
    with Loop(session.model, settings) as loop:
        # Each "x" and its space are two tokens here.
        for n_words in range(100, 130):
            prompt = session.prompt.encode([Message("user", "x " * n_words)]).ids
            if len(prompt) >= 256:
                with pytest.raises(ContextExceededError, match=rf"has {len(prompt)} tokens and the context 256"):
                    loop.start(prompt)
                break
            finish = loop.answer(prompt, Sampling(temperature=0)).finish
            assert finish.prompt_tokens + finish.completion_tokens <= 256
        else:
            pytest.fail("the chat never became too long")
    session.close()


def test_a_text_by_itself_has_the_start_token(tiny_path: Path, tmp_path: Path) -> None:
    session = Session.open(tiny_path, SETTINGS)
    assert session.text_ids("the hen") == [1, *session.model.tokenize("the hen")]
    assert session.text_ids("") == [1]
    session.close()
    without = tiny_model()
    without.metadata["tokenizer.ggml.add_bos_token"] = ("bool", False)
    session = Session.open(without.write(tmp_path / "zephyr.gguf"), SETTINGS)
    assert session.text_ids("the hen") == session.model.tokenize("the hen")
    session.close()


def test_a_file_that_is_not_runnable_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    model.metadata["llama.expert_count"] = ("u32", 1)
    with pytest.raises(ModelFileError, match="expert_count"):
        Session.open(model.write(tmp_path / "moe.gguf"), SETTINGS)
