"""Text from tokens: characters, stop strings, limits. Scripted tokens where their order matters."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from zephyr_local.chat_types import Finish, Piece
from zephyr_local.engine.cancel import CancelFlag
from zephyr_local.engine.generation import StopBuffer, TokenRun, Utf8Buffer, stream_text
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.errors import ContextExceededError
from zephyr_local.settings import Sampling


class Scripted:
    """Stands in for a model whose sampler follows a script: bytes for each token, None for the end of the turn."""

    n_ctx = 100

    def __init__(self, script: Sequence[bytes | None], cancel_at: tuple[int, CancelFlag] | None = None) -> None:
        self.script, self.sampled, self.decoded, self.cancel_at = script, 0, 0, cancel_at

    def sampler(self, sampling: Sampling, recent: Sequence[int]) -> Any:
        class Nothing:
            def close(self) -> None: ...

        return Nothing()

    def evaluate(self, tokens: Sequence[int], cancel: CancelFlag) -> int:
        return 3

    def sample(self, sampler: object) -> int:
        self.sampled += 1
        return self.sampled - 1

    def append(self, token: int, cancel: CancelFlag) -> None:
        from zephyr_local.engine.cancel import Cancelled

        if self.cancel_at is not None and token >= self.cancel_at[0]:
            self.cancel_at[1].set()
            raise Cancelled
        self.decoded += 1

    def is_end_of_generation(self, token: int) -> bool:
        return self.script[token] is None

    def token_to_bytes(self, token: int) -> bytes:
        return self.script[token] or b""


def run(script: Sequence[bytes | None], **settings: Any) -> tuple[list[str], Finish, Scripted]:
    model = Scripted(script)
    pieces = list(stream_text(model, [1, 2, 3, 4, 5], Sampling(**settings)))  # type: ignore[arg-type]
    finish = pieces[-1].finish
    assert finish is not None
    assert all(piece.finish is None for piece in pieces[:-1])
    assert all(piece.text for piece in pieces[:-1])
    return [piece.text for piece in pieces], finish, model


def test_characters_split_across_tokens_come_whole() -> None:
    emoji = "👩‍👧".encode()
    pieces, finish, _ = run([b"a", *(bytes([byte]) for byte in emoji), b"b", None])
    assert pieces == ["a", "👩", "\u200d", "👧", "b", ""]
    assert (finish.reason, finish.completion_tokens) == ("stop", len(emoji) + 3)
    assert (finish.prompt_tokens, finish.cached_tokens) == (5, 3)


def test_invalid_bytes_become_the_replacement_character() -> None:
    assert "".join(run([b"a\xff", b"\xe4\xbd", b"x", None])[0]) == "a��x"
    assert run([b"a", b"\xe4\xbd", None])[0] == ["a", "�"]
    buffer = Utf8Buffer()
    data = random.Random(1).randbytes(2000)
    assert "".join(buffer.feed(data[i : i + 3]) for i in range(0, 2000, 3)) + buffer.finish() == data.decode(
        errors="replace"
    )


@pytest.mark.parametrize(
    ("script", "stop", "pieces", "reason"),
    [
        ([b"one ", b"EN", b"D two", None], ("END",), ["one ", ""], "stop"),
        ([b"one E", b"N", b"x", None], ("END",), ["one ", "ENx", ""], "stop"),
        ([b"E", b"E", b"ND", b"z"], ("END",), ["E", ""], "stop"),
        ([b"aEND"], ("END",), ["a"], "stop"),
        ([b"E", b"N", None], ("END",), ["EN"], "stop"),
        ([b"a", b"b", b"c", b"d"], ("abcd", "bc"), ["a"], "stop"),
        ([b"abcd"], ("abcd", "bc"), ["a"], "stop"),
        ([b"x\xe2", b"\x82", b"\xac!"], ("€",), ["x", ""], "stop"),
        ([b"a\n", b"\n", b"b"], ("\n\n",), ["a", ""], "stop"),
    ],
)
def test_stop_strings(script: list[bytes | None], stop: tuple[str, ...], pieces: list[str], reason: str) -> None:
    found, finish, model = run(script, stop=stop)
    assert found == pieces
    assert finish.reason == reason
    assert finish.completion_tokens == model.sampled


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
    pieces, finish, model = run([b"\xf0", b"\x9f", b"\x91", b"\x8b"] * 5, max_tokens=6)
    assert "".join(pieces) == "👋�"
    assert (finish.reason, finish.completion_tokens) == ("length", 6)
    assert (model.sampled, model.decoded) == (6, 5)  # the last token is not decoded for nothing
    pieces, finish, model = run([b"a", None], max_tokens=1)
    assert (pieces, finish.reason, model.sampled) == (["a", ""], "length", 1)
    pieces, finish, _ = run([None], max_tokens=1)
    assert (pieces, finish.reason, finish.completion_tokens) == ([""], "stop", 1)


def test_the_context_ends_an_answer() -> None:
    _, finish, model = run([b"a"] * 200)
    assert (finish.reason, finish.completion_tokens) == ("length", 95)
    assert model.decoded == 94
    with pytest.raises(ContextExceededError, match=r"100 tokens and the context 100"):
        stream_text(model, [1] * 100, Sampling())  # type: ignore[arg-type]


def test_cancelling_keeps_what_came() -> None:
    cancel = CancelFlag()
    model = Scripted([b"a", b"b", b"c", b"d"], (2, cancel))
    pieces = list(stream_text(model, [1], Sampling(), cancel))  # type: ignore[arg-type]
    assert "".join(piece.text for piece in pieces) == "abc"
    assert pieces[-1].finish is not None
    assert pieces[-1].finish.reason == "cancelled"


def test_on_a_real_model(tiny: LlamaModel) -> None:
    prompt = [1, *tiny.tokenize("the hen")]
    pieces = list(stream_text(tiny, prompt, Sampling(temperature=0, max_tokens=30)))
    tokens = list(TokenRun(tiny, prompt, Sampling(temperature=0, max_tokens=30)))
    assert "".join(p.text for p in pieces) == b"".join(map(tiny.token_to_bytes, tokens)).decode(errors="replace")
    assert isinstance(pieces[-1], Piece)
    finish = pieces[-1].finish
    assert finish is not None
    assert finish.completion_tokens >= len(tokens)
    assert finish.prompt_s > 0
    filled = list(TokenRun(tiny, prompt, Sampling(temperature=1.5, seed=5)))
    assert len(filled) <= tiny.n_ctx - len(prompt)
    assert len(tiny.cached_tokens) <= tiny.n_ctx
