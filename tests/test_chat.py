"""Turns, partial answers, branches, and what happens when the context is full."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from tests.scripted_model import FINISH, ScriptedModel
from zephyr_local.chat import Chat
from zephyr_local.chat_fit import SUMMARY_HEADING, SUMMARY_INSTRUCTION, Dropped
from zephyr_local.chat_tree import Siblings
from zephyr_local.chat_types import Message, Reply
from zephyr_local.errors import ContextExceededError, EngineError, InvalidInputError
from zephyr_local.settings import Sampling


def contents(messages: tuple[Message, ...]) -> list[str]:
    return [message.content for message in messages]


def chat_of(*answers: str, n_ctx: int = 1000) -> Chat:
    """A chat that has asked q0, q1 … and got ``answers``."""
    chat = Chat(ScriptedModel(*([answer] for answer in answers), n_ctx=n_ctx))
    for index in range(len(answers)):
        chat.ask(f"q{index}")
    return chat


def script(chat: Chat) -> list[object]:
    return chat.zephyr.answers  # type: ignore[attr-defined, no-any-return]


def test_turns_follow_each_other():
    model = ScriptedModel(["Hel", "lo."], ["Fine."])
    chat = Chat(model, system="Be brief.")
    assert [piece.text for piece in chat.stream("Hi")] == ["Hel", "lo.", ""]
    assert chat.ask("How are you?") == Reply("Fine.", FINISH)
    assert model.asked[1] == (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hello."),
        Message("user", "How are you?"),
    )
    assert chat.messages == (*model.asked[1], Message("assistant", "Fine."))
    assert chat.sent == chat.messages
    assert chat.turns == chat.messages[1:]
    chat.system = None
    assert chat.messages == chat.turns
    chat.clear()
    assert chat.messages == ()


def test_sampling_is_the_calls_else_the_chats_else_the_models():
    model = ScriptedModel(["a"], ["b"], ["c"])
    chat = Chat(model)
    chat.ask("1")
    chat.sampling = Sampling(temperature=0)
    chat.ask("2")
    chat.ask("3", Sampling(top_k=3))
    assert model.sampled == [model.default_sampling, Sampling(temperature=0), Sampling(top_k=3)]


def test_an_answer_cut_short_keeps_what_came():
    model = ScriptedModel(["One ", "two ", "three"])
    chat = Chat(model)
    pieces = chat.stream("Count")
    next(pieces)
    assert chat.turns == (Message("user", "Count"),)
    next(pieces)
    pieces.close()
    assert contents(chat.turns) == ["Count", "One two "]
    assert model.closed == 1


@pytest.mark.parametrize("error", [EngineError("crashed", "Again"), KeyboardInterrupt()])
def test_an_answer_that_fails_keeps_what_came(error: BaseException):
    chat = Chat(ScriptedModel(["One ", error], [error], ["Yes"]))
    with pytest.raises(type(error)):
        list(chat.stream("Count"))
    assert contents(chat.turns) == ["Count", "One "]
    with pytest.raises(type(error)):
        chat.ask("More")
    assert contents(chat.turns) == ["Count", "One "]
    chat.ask("More")
    assert contents(chat.turns) == ["Count", "One ", "More", "Yes"]


def test_an_exception_in_the_consumer_keeps_what_came_and_frees_the_chat():
    chat = Chat(ScriptedModel(["One ", "two"], ["Yes"]))

    def consume() -> None:
        with closing(chat.stream("Count")) as pieces:
            for _ in pieces:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    chat.ask("Still there?")
    assert contents(chat.turns) == ["Count", "One ", "Still there?", "Yes"]


def test_an_iterator_that_is_never_read_changes_nothing():
    chat = Chat(ScriptedModel(["a"]))
    chat.stream("never")
    assert chat.turns == ()
    chat.ask("q")
    assert contents(chat.turns) == ["q", "a"]


def test_an_empty_answer_takes_the_question_back():
    chat = Chat(ScriptedModel([]))
    assert chat.ask("q").text == ""
    assert chat.turns == ()


def test_a_second_answer_meanwhile_is_refused():
    chat = chat_of("a0")
    script(chat).append(["One ", "two"])
    pieces = chat.stream("Count")
    next(pieces)
    for use in (
        lambda: chat.ask("2"),
        lambda: list(chat.regenerate()),
        lambda: list(chat.edit(0, "x")),
        chat.clear,
        chat.undo,
        chat.branch,
        lambda: chat.select(0, 0),
    ):
        with pytest.raises(InvalidInputError, match="an answer is still being given"):
            use()
    refused: list[BaseException] = []

    def on_another_thread() -> None:
        try:
            chat.ask("3")
        except InvalidInputError as error:
            refused.append(error)

    thread = threading.Thread(target=on_another_thread)
    thread.start()
    thread.join()
    assert len(refused) == 1
    assert contents(chat.turns) == ["q0", "a0", "Count"]
    assert contents(Chat.from_json(chat.zephyr, chat.to_json()).turns) == ["q0", "a0"]
    list(pieces)
    assert contents(chat.turns) == ["q0", "a0", "Count", "One two"]


def test_several_chats_share_a_model():
    model = ScriptedModel(["a", "b"], ["c", "d"])
    first, second = Chat(model), Chat(model)
    for _ in zip(first.stream("1"), second.stream("2"), strict=True):
        pass
    assert contents(first.turns) == ["1", "ab"]
    assert contents(second.turns) == ["2", "cd"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"policy": "forget"}, "policy is 'forget'"),
        ({"reserve_tokens": 0}, "reserve_tokens is 0"),
        ({"reserve_tokens": True}, "reserve_tokens is True"),
        ({"system": 5}, "the system prompt is of type int"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, object], match: str):
    with pytest.raises(InvalidInputError, match=match):
        Chat(ScriptedModel(), **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="the question is of type bytes"):
        Chat(ScriptedModel()).stream(b"q")  # type: ignore[arg-type]


# Branches


def test_regenerate_keeps_the_old_answer_as_a_sibling():
    chat = chat_of("a0", "a1")
    script(chat).extend([["a1 again"], [EngineError("x", "y")]])
    assert "".join(piece.text for piece in chat.regenerate()) == "a1 again"
    assert contents(chat.zephyr.asked[-1]) == ["q0", "a0", "q1"]  # type: ignore[attr-defined]
    assert contents(chat.turns) == ["q0", "a0", "q1", "a1 again"]
    with pytest.raises(EngineError):
        list(chat.regenerate())
    assert contents(chat.turns) == ["q0", "a0", "q1", "a1 again"]
    assert chat.siblings(3) == Siblings((Message("assistant", "a1"), Message("assistant", "a1 again")), 1)
    chat.select(3, 0)
    assert contents(chat.turns) == ["q0", "a0", "q1", "a1"]
    assert chat.siblings(-1).current == 0
    chat.clear()
    with pytest.raises(InvalidInputError, match="no question"):
        list(chat.regenerate())


def test_edit_leaves_what_followed_on_another_branch():
    chat = chat_of("a0", "a1", "a2")
    script(chat).append(["b1"])
    list(chat.edit(2, "other"))
    assert contents(chat.zephyr.asked[-1]) == ["q0", "a0", "other"]  # type: ignore[attr-defined]
    assert contents(chat.turns) == ["q0", "a0", "other", "b1"]
    assert contents(chat.siblings(2).messages) == ["q1", "other"]
    chat.select(2, 0)
    assert contents(chat.turns) == ["q0", "a0", "q1", "a1", "q2", "a2"]
    chat.select(2, -1)
    assert contents(chat.turns) == ["q0", "a0", "other", "b1"]
    with pytest.raises(InvalidInputError, match="turn 1 is an answer"):
        list(chat.edit(1, "x"))
    with pytest.raises(InvalidInputError, match="no turn 4, only 4"):
        list(chat.edit(4, "x"))
    with pytest.raises(InvalidInputError, match="no alternative 2, only 2"):
        chat.select(2, 2)


def test_undo_returns_what_it_removes_and_select_brings_it_back():
    chat = chat_of("a0", "a1")
    assert chat.undo() == (Message("user", "q1"), Message("assistant", "a1"))
    assert contents(chat.turns) == ["q0", "a0"]
    assert chat.siblings(2) == Siblings((Message("user", "q1"),), None)
    chat.select(2, -1)
    assert contents(chat.turns) == ["q0", "a0", "q1", "a1"]
    chat.undo()
    chat.undo()
    assert chat.turns == ()
    with pytest.raises(InvalidInputError, match="no turns to undo"):
        chat.undo()


def test_a_branch_is_independent():
    chat = chat_of("a0", "a1")
    chat.system, chat.policy, chat.sampling = "s", "drop_oldest", Sampling(top_k=3)
    script(chat).extend([["b1"], ["c2"]])
    branch = chat.branch(1)
    assert (branch.system, branch.policy, branch.sampling) == ("s", "drop_oldest", Sampling(top_k=3))
    branch.ask("other")
    chat.ask("q2")
    assert contents(branch.turns) == ["q0", "a0", "other", "b1"]
    assert contents(chat.turns) == ["q0", "a0", "q1", "a1", "q2", "c2"]
    assert contents(chat.branch().turns) == contents(chat.turns)
    with pytest.raises(InvalidInputError, match="turn 2 is a question"):
        chat.branch(2)


# The context. Here a question or an answer of one word is 2 tokens.


def test_stop_says_the_numbers_and_takes_the_question_back():
    chat = chat_of("a0", "a1", n_ctx=20)
    chat.reserve_tokens = 10
    script(chat).append(["a2"])
    chat.ask("q2")  # 10 tokens and 10
    with pytest.raises(ContextExceededError) as raised:
        chat.ask("q3")
    assert str(raised.value) == (
        "the chat needs 14 tokens and its answer 10, and the context holds 20. Begin a new chat, let this one drop or "
        "summarise its oldest turns, or load the model with a larger n_ctx."
    )
    assert len(chat.turns) == 6
    assert chat.drops == ()


@pytest.mark.parametrize(
    ("n_ctx", "reserve_tokens", "max_tokens", "reserve"),
    [(400, None, None, 100), (4000, None, None, 256), (400, None, 30, 30), (400, None, 4096, 200), (400, 7, 30, 7)],
)
def test_what_is_reserved(n_ctx: int, reserve_tokens: int | None, max_tokens: int | None, reserve: int):
    chat = Chat(ScriptedModel(["a"], n_ctx=n_ctx), reserve_tokens=reserve_tokens)
    sampling = Sampling(max_tokens=max_tokens)
    with pytest.raises(ContextExceededError, match=f"needs {n_ctx - reserve + 1} tokens and its answer {reserve},"):
        chat.ask("w " * (n_ctx - reserve), sampling)
    chat.ask("w " * (n_ctx - reserve - 1), sampling)


def test_drop_oldest_drops_to_half_and_then_leaves_the_beginning_as_it_is():
    chat = chat_of(*(f"a{index}" for index in range(9)), n_ctx=1000)
    model = chat.zephyr
    assert isinstance(model, ScriptedModel)
    chat.system, chat.policy, chat.reserve_tokens, model.n_ctx = "Be brief.", "drop_oldest", 4, 40
    told: list[Dropped] = []
    chat.on_drop = told.append
    model.answers.extend([["b"]] * 5)
    chat.ask("new")  # 3 + 9·4 + 2 = 41 tokens; 20 hold the system prompt, the question and three pairs
    assert contents(model.asked[-1]) == ["Be brief.", "q6", "a6", "q7", "a7", "q8", "a8", "new"]
    assert chat.drops == (Dropped(chat.turns[:12], tokens_before=41, tokens_after=17),)
    assert told == list(chat.drops)
    assert len(chat.turns) == 20
    assert chat.sent == (*model.asked[-1], Message("assistant", "b"))
    model.counts = 0
    for _ in range(4):
        chat.ask("new")
        assert contents(model.asked[-1])[:2] == ["Be brief.", "q6"]
    assert model.counts == 4
    assert len(chat.drops) == 1
    assert chat.branch().sent == chat.sent


def test_a_drop_belongs_to_its_branch():
    chat = chat_of("a0", "a1", "a2", n_ctx=1000)
    model = chat.zephyr
    assert isinstance(model, ScriptedModel)
    chat.policy, chat.reserve_tokens, model.n_ctx = "drop_oldest", 1, 14
    model.answers.extend([["b"], ["c"], ["d"]])
    chat.ask("new")
    assert contents(model.asked[-1]) == ["q2", "a2", "new"]
    list(chat.regenerate())
    assert contents(model.asked[-1]) == ["q2", "a2", "new"]
    list(chat.edit(2, "other"))
    assert contents(model.asked[-1]) == ["q0", "a0", "other"]
    chat.select(2, 0)
    assert contents(chat.sent)[0] == "q2"


def test_no_more_is_dropped_for_a_long_question_than_must_be():
    chat = chat_of("a0", "a1", "a2", n_ctx=1000)
    model = chat.zephyr
    assert isinstance(model, ScriptedModel)
    chat.policy, chat.reserve_tokens, model.n_ctx, model.counted_up_to = "drop_oldest", 1, 30, 31
    model.answers.append(["b"])
    chat.ask("w " * 20)  # 33 tokens, more than are counted; a pair less leaves 29, and half of the context none
    assert contents(model.asked[-1])[:-1] == ["q1", "a1", "q2", "a2"]
    assert chat.drops == (Dropped(chat.turns[:2], tokens_before=None, tokens_after=29),)


def test_a_question_that_fits_alone_no_more_is_refused():
    chat = chat_of("a0", n_ctx=1000)
    model = chat.zephyr
    assert isinstance(model, ScriptedModel)
    chat.policy, chat.reserve_tokens, model.n_ctx = "drop_oldest", 1, 20
    with pytest.raises(ContextExceededError, match=r"needs 31 tokens .* Shorten the question"):
        chat.ask("w " * 30)
    model.counted_up_to = 25
    chat.policy = "summarise"
    with pytest.raises(ContextExceededError, match=r"needs more than 20 tokens .* Shorten the question"):
        chat.ask("w " * 30)
    assert len(chat.turns) == 2
    assert chat.drops == ()


def summarising(*answers: str | BaseException, n_ctx: int = 160) -> tuple[Chat, ScriptedModel]:
    """A chat of 38 pairs (152 tokens) that is about to summarise: all that fits with the 8 of the answer."""
    chat = chat_of(*(f"a{index}" for index in range(38)))
    model = chat.zephyr
    assert isinstance(model, ScriptedModel)
    chat.policy, chat.reserve_tokens, model.n_ctx = "summarise", 8, n_ctx
    model.answers.extend([answer] for answer in answers)
    return chat, model


def test_summarise_puts_the_models_summary_into_the_system_message():
    chat, model = summarising(" They said a lot. ", "b", "c")
    chat.system = "Be brief."
    told: list[Dropped] = []
    chat.on_drop = told.append
    chat.ask("new")  # 3 + 152 + 2 tokens; half of the context less 20 for the summary holds 3 + 2 + 13 pairs
    request, sent = model.asked[-2:]
    assert request == (Message("system", "Be brief."), *chat.turns[:50], Message("user", SUMMARY_INSTRUCTION))
    assert model.sampled[-2] == Sampling(temperature=0.0, max_tokens=20)
    system = Message("system", f"Be brief.\n\n{SUMMARY_HEADING}They said a lot.")
    assert sent == (system, *chat.turns[50:76], Message("user", "new"))
    dropped = Dropped(chat.turns[:50], tokens_before=157, tokens_after=67, summary="They said a lot.")
    assert (told, chat.drops) == ([dropped], (dropped,))
    assert chat.messages[0] == Message("system", "Be brief.")
    chat.system = None
    chat.ask("and")
    assert model.asked[-1][0] == Message("system", f"{SUMMARY_HEADING}They said a lot.")
    assert len(chat.drops) == 1


def test_the_next_summary_is_made_of_the_last_one():
    chat, model = summarising("First.", *["b"] * 22, "Second.", "c")
    for _ in range(22):
        chat.ask("new")
    chat.ask("newer")
    assert model.asked[-2][0].content == f"{SUMMARY_HEADING}First."
    assert model.asked[-1][0].content == f"{SUMMARY_HEADING}Second."
    assert [dropped.summary for dropped in chat.drops] == ["First.", "Second."]


@pytest.mark.parametrize(
    ("summary", "problem"),
    [
        ("w " * 100, "the summary does not fit the context"),
        ("  ", "the model wrote no summary"),
        (ContextExceededError("x", "y"), "the model wrote no summary"),
    ],
)
def test_without_a_summary_turns_are_dropped(summary: str | BaseException, problem: str):
    chat, model = summarising(summary, "b")
    chat.ask("new")
    assert model.asked[-1] == (*chat.turns[38:76], Message("user", "new"))
    assert chat.drops == (Dropped(chat.turns[:38], tokens_before=154, tokens_after=78, problem=problem),)


def test_a_summary_that_cannot_be_asked_for_is_not():
    chat, model = summarising("b", n_ctx=40)
    chat.ask("new")
    assert len(model.asked) == 39
    assert chat.drops[0].problem == "the turns that a summary would be made of do not fit the context"
    chat, model = summarising("b", n_ctx=40)
    chat.ask("w " * 29)
    assert chat.drops[0].problem == "there is no room for a summary beside the question"
    assert chat.drops[0].tokens_after == 30


def test_a_summary_that_fails_takes_the_question_back():
    chat, model = summarising(EngineError("crashed", "Again"))
    with pytest.raises(EngineError):
        chat.ask("new")
    assert len(chat.turns) == 76
    assert chat.drops == ()
    chat.on_drop = lambda _dropped: 1 / 0
    model.answers.append(["Summary."])
    with pytest.raises(ZeroDivisionError):
        chat.ask("new")
    assert len(chat.turns) == 76
    assert [dropped.summary for dropped in chat.drops] == ["Summary."]
