"""Text from tokens: characters, stop strings, limits. Scripted tokens where their order matters."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from tests.engine.conftest import SETTINGS
from tests.engine.scheduling import Answer, Collector, Loop, assert_nothing_leaks
from zephyr_local.chat_types import Finish
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.run import Run
from zephyr_local.engine.scheduler import Scheduler
from zephyr_local.engine.text import StopBuffer, Utf8Buffer
from zephyr_local.errors import ContextExceededError
from zephyr_local.settings import Sampling


class Scripted:
    """Stands in for a model whose tokens follow a script: bytes for each token, None for the end of the turn."""

    n_ctx = 100

    def __init__(self, script: Sequence[bytes | None]) -> None:
        self.script = script

    def is_end_of_generation(self, token: int) -> bool:
        return self.script[token] is None

    def token_to_bytes(self, token: int) -> bytes:
        return self.script[token] or b""


def take(script: Sequence[bytes | None], n_tokens: int = 200, n_prompt: int = 5, **settings: Any) -> Answer:
    """An answer of tokens 0, 1, ..., of which at most ``n_tokens`` are taken before it is cancelled."""
    model: Any = Scripted(script)
    sink = Collector()
    run = Run(list(range(n_prompt)), Sampling(**settings), sink)
    for token in range(n_tokens):
        reason = run.take(token, model)
        if reason is not None:
            run.finish(reason)
            break
        run.tell()
    else:
        run.finish("cancelled")
    assert all(sink.pieces[:-1]), "only the last piece may be empty"
    assert "".join(run.full_text) == "".join(sink.pieces)
    return Answer(run, sink)


def cost(finish: Finish) -> tuple[str, int]:
    return finish.reason, finish.completion_tokens


def test_characters_split_across_tokens_come_whole() -> None:
    emoji = "👩‍👧".encode()
    answer = take([b"a", *(bytes([byte]) for byte in emoji), b"b", None])
    assert answer.sink.pieces == ["a", "👩", "\u200d", "👧", "b", ""]
    assert cost(answer.finish) == ("stop", len(emoji) + 3)
    assert answer.finish.prompt_tokens == 5


def test_invalid_bytes_become_the_replacement_character() -> None:
    assert take([b"a\xff", b"\xe4\xbd", b"x", None]).text == "a��x"
    assert take([b"a", b"\xe4\xbd", None]).sink.pieces == ["a", "�"]
    buffer = Utf8Buffer()
    data = random.Random(1).randbytes(2000)
    assert "".join(buffer.feed(data[i : i + 3]) for i in range(0, 2000, 3)) + buffer.finish() == data.decode(
        errors="replace"
    )


@pytest.mark.parametrize(
    ("script", "stop", "pieces", "n_taken"),
    [
        ([b"one ", b"EN", b"D two", None], ("END",), ["one ", ""], 3),
        ([b"one E", b"N", b"x", None], ("END",), ["one ", "ENx", ""], 4),
        ([b"E", b"E", b"ND", b"z"], ("END",), ["E", ""], 3),
        ([b"aEND"], ("END",), ["a"], 1),
        ([b"E", b"N", None], ("END",), ["EN"], 3),
        ([b"a", b"b", b"c", b"d"], ("abcd", "bc"), ["a"], 3),
        ([b"abcd"], ("abcd", "bc"), ["a"], 1),
        ([b"x\xe2", b"\x82", b"\xac!"], ("€",), ["x", ""], 3),
        ([b"a\n", b"\n", b"b"], ("\n\n",), ["a", ""], 2),
        ([b"a", b"x\xe4", None], ("x\ufffd",), ["a", ""], 3),  # a stop string that the last character completes
    ],
)
def test_stop_strings(script: list[bytes | None], stop: tuple[str, ...], pieces: list[str], n_taken: int) -> None:
    answer = take(script, stop=stop)
    assert answer.sink.pieces == pieces
    assert cost(answer.finish) == ("stop", n_taken)
    assert answer.run.stopped == (answer.text != b"".join(part or b"" for part in script).decode(errors="replace"))


def test_the_outcome_does_not_depend_on_how_text_is_cut() -> None:
    dice = random.Random(2)
    for _ in range(3000):
        text = "".join(dice.choice("abc") for _ in range(dice.randrange(1, 14)))
        stops = ["".join(dice.choice("abc") for _ in range(dice.randrange(1, 5))) for _ in range(dice.randrange(1, 4))]
        outcomes = set()
        for cut in (1, 2, 3, 100):
            buffer = StopBuffer(stops)
            out = "".join(buffer.feed(text[i : i + cut]) for i in range(0, len(text), cut))
            if not buffer.stopped:
                held = buffer.finish()
                assert not held or any(stop.startswith(held) and stop != held for stop in stops)
                out += held
            outcomes.add((out, buffer.stopped))
        assert len(outcomes) == 1
        (out, stopped) = outcomes.pop()
        assert text.startswith(out)
        assert stopped == any(stop in text for stop in stops)


def test_max_tokens_is_exact_even_inside_a_character() -> None:
    answer = take([b"\xf0", b"\x9f", b"\x91", b"\x8b"] * 5, max_tokens=6)
    assert answer.text == "👋�"
    assert cost(answer.finish) == ("length", 6)
    answer = take([b"a", None], max_tokens=1)
    assert (answer.sink.pieces, *cost(answer.finish)) == (["a"], "length", 1)
    answer = take([None], max_tokens=1)
    assert (answer.sink.pieces, *cost(answer.finish)) == ([""], "stop", 1)


def test_the_context_ends_an_answer() -> None:
    answer = take([b"a"] * 200)
    assert cost(answer.finish) == ("length", 95)
    assert len(answer.run.target) == 100


def test_a_cancel_keeps_what_came_and_tells_what_was_held_back() -> None:
    answer = take([b"a", b"b", b"E", b"d"], n_tokens=3, stop=("END",))
    assert answer.sink.pieces == ["a", "b", "E"]
    assert cost(answer.finish) == ("cancelled", 3)


# --- on a real model ---


def test_limits_of_the_loop(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = tiny.context.decode

    def counting(segments: Any, **arguments: Any) -> list[int]:
        decoded.append(sum(len(segment.tokens) for segment in segments))
        return decode(segments, **arguments)

    monkeypatch.setattr(tiny.context, "decode", counting)
    prompt = [1, *tiny.tokenize("the hen")]
    with Loop(tiny, SETTINGS) as loop:
        for max_tokens in (1, 2, 30):
            answer = loop.answer(prompt, Sampling(temperature=0, max_tokens=max_tokens))
            assert cost(answer.finish) == ("length", max_tokens)
            assert len(answer.tokens) == max_tokens
        assert answer.text == b"".join(map(tiny.token_to_bytes, answer.tokens)).decode(errors="replace")
        assert answer.finish.prompt_s > 0
        assert answer.finish.completion_s > 0
        new = [299, 298, 297]
        decoded.clear()
        answer = loop.answer(new, Sampling(temperature=0, max_tokens=4))
        assert sum(decoded) == len(new) + 3  # the last token is not decoded for nothing
        filled = loop.answer(prompt, Sampling(temperature=1.5, seed=5, logit_bias={2: float("-inf")}))
        assert cost(filled.finish) == ("length", tiny.n_ctx - len(prompt))
        with pytest.raises(ContextExceededError, match=r"512 tokens and the context 512"):
            loop.start([300] * 512)
        assert_nothing_leaks(loop)


def test_stop_strings_of_the_loop(tiny: LlamaModel) -> None:
    prompt = [1, *tiny.tokenize("the hen")]
    with Loop(tiny, SETTINGS) as loop:
        text = loop.answer(prompt, Sampling(temperature=0, max_tokens=40)).text
        for start in range(2, len(text) - 3, 3):
            stop = text[start : start + 3]
            answer = loop.answer(prompt, Sampling(temperature=0, max_tokens=40, stop=(stop,)))
            assert answer.text == text[: text.index(stop)]
            assert answer.finish.reason == "stop"
            assert answer.run.stopped


def test_a_scheduler_that_was_closed_takes_nothing(tiny: LlamaModel) -> None:
    scheduler = Scheduler(tiny, SETTINGS)
    scheduler.close()
    scheduler.run()  # ends at once
    with pytest.raises(Exception, match="closed"):
        scheduler.submit(Run([1, 300], Sampling(), Collector()))
