"""Messages survive the pipe as they are; anything else is refused."""

from __future__ import annotations

import io
import json
import struct

import pytest

from zephyr_local.chat_types import Finish, Message, TokenLogprob
from zephyr_local.engine import protocol
from zephyr_local.engine.worker import joined
from zephyr_local.errors import ContextExceededError, EngineError
from zephyr_local.settings import EngineSettings, Sampling

FINISH = Finish("stop", 1, 0, 2, 0.25, 1e-9)
MESSAGES = [
    protocol.Load(1, "/tmp/\udcff.gguf", EngineSettings(n_ctx=512), None, False),
    protocol.Load(1, "m.gguf", EngineSettings(kv_type="f32"), "zephyr", True),
    protocol.Generate(2, (Message("user", "a\n\U0001f9ff\udce4\0"),), Sampling(stop=("x",), logit_bias={5: -1.5})),
    protocol.Generate(2, (), Sampling(logit_bias={2: float("-inf")}, seed=7, logprobs=3)),
    protocol.CountTokens(3, (Message("system", ""), Message("assistant", "b"))),
    protocol.Tokenize(4, ""),
    protocol.Embed(5, "x"),
    protocol.Devices(6),
    protocol.Cancel(7),
    protocol.Hello(protocol.VERSION),
    protocol.LoadProgress(1, 0.5),
    protocol.Loaded(1, "name", ("a", "b"), 512, 32000),
    protocol.PrefillProgress(2, 3, 4),
    protocol.TextEvent(2, "text", (TokenLogprob(5, "t", -0.5, (TokenLogprob(6, "u", -1.0),)),)),
    protocol.TextEvent(2, "\ud800 \N{WOMAN}\n", ()),
    protocol.Finished(2, "", FINISH),
    protocol.Result(3, (1.0, 2.5), ("x",)),
    protocol.Failed(3, "EngineError", "what", "remedy"),
    protocol.NativeLog(30, "line"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_round_trip(message: protocol.Request | protocol.Event) -> None:
    frame = protocol.encode(message)
    assert protocol.read(io.BytesIO(frame)) == message
    for cut in range(len(frame)):
        assert protocol.read(io.BytesIO(frame[:cut])) is None


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", b"null", b"\xff", b'["Load"]', b'["os.system", ["ls"]]', b'["Cancel", ["1"]]',
        b'["Cancel", [1, 2]]', b'["Cancel", [true]]', b'["Cancel", {"id": 1}]', b'["Hello", [1.5]]',
        b'["Tokenize", [1, null]]', b'["LoadProgress", [1, "0.5"]]', b'["Generate", [1, [["robot", "x"]], []]]',
        b'["Finished", [1, "", ["other", 1, 1, 1, 1, 1], []]]', b"[" * 100_000,
        b'["TextEvent", [true, "a", []]]', b'["TextEvent", [1, 2, []]]', b'["TextEvent", [1, "a", [1]]]',
        b'["TextEvent", [1, "a"]]', b'["TextEvent", 1]', b'["TextEvent", {"1": 1}]', b'["Cancel", [1]] ["Cancel", [1]]',
        json.dumps(["Load", [1, "p", [None, 0, None, -1, "f16", True, 4], None, False]]).encode(),  # n_batch 0
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.decode(body)


def test_a_frame_that_claims_too_much_is_refused() -> None:
    with pytest.raises(protocol.ProtocolError, match="claims"):
        protocol.read(io.BytesIO(struct.pack("<I", 0xFFFFFFFF) + b"x"))


def test_errors_keep_their_kind() -> None:
    error = protocol.error_of(protocol.failure(1, ContextExceededError("too long", "Shorten it")))
    assert isinstance(error, ContextExceededError)
    assert str(error) == "too long. Shorten it."
    assert "KeyError" in protocol.error_of(protocol.failure(1, KeyError("x"))).problem
    for kind in ("Nonsense", "Final", "annotations", "__name__"):
        assert type(protocol.error_of(protocol.Failed(1, kind, "a", "b"))) is EngineError


def test_text_that_gathered_is_joined_and_keeps_its_order() -> None:
    text, log = protocol.TextEvent, protocol.NativeLog(10, "line")
    progress, end = protocol.PrefillProgress(1, 1, 2), protocol.Finished(1, "!", FINISH)
    assert joined([text(1, "a"), text(2, "x"), log, text(1, "b"), text(2, "y"), end]) == [
        text(1, "ab"),
        text(2, "xy"),
        log,
        end,
    ]
    assert joined([text(1, "a"), progress, text(1, "b")]) == [text(1, "a"), progress, text(1, "b")]
