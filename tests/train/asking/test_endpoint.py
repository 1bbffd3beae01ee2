"""One try at an endpoint: what is an answer, what may pass, what will not, and what ends everything."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.stand_in_endpoint import Fault, StandIn
from zephyr_local.chat_types import Message
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.asking.endpoint import Endpoint
from zephyr_local.train.asking.models import ModelSpec
from zephyr_local.train.asking.request import RefusedError, Request, TransientError

ASKED = Request(
    (Message("system", "Be brief."), Message("user", "What is 1 + 1?")), temperature=0.25, max_tokens=7, sample=3
)


def endpoint(stand_in: StandIn, **more: object) -> Endpoint:
    given = {"name": "judge", "url": stand_in.url, "model": "some/model", "timeout_s": 1.0, **more}
    return Endpoint(ModelSpec(**given))  # type: ignore[arg-type]


def fails_with(fault: Fault, **more: object) -> StandIn:
    return StandIn(lambda _messages: "Two, as everybody knows.", lambda _number: fault, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_goes_out_as_openai_wants_it(stream: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", "secret")
    with StandIn(lambda messages: f"said after {len(messages)}") as stand_in:
        answer = endpoint(stand_in, stream=stream, api_key_env="A_KEY").ask(ASKED)
        assert (answer.text, answer.finish_reason, answer.estimated) == ("said after 2", "stop", False)
        assert (answer.prompt_tokens, answer.completion_tokens) == (7, 3)
        (served,) = stand_in.served
        assert served.headers["Authorization"] == "Bearer secret"
        body = served.body
        assert body["messages"][1] == {"role": "user", "content": "What is 1 + 1?"}
        sampled = {key: body[key] for key in ("model", "temperature", "max_tokens", "seed")}
        assert sampled == {"model": "some/model", "temperature": 0.25, "max_tokens": 7, "seed": 3}
        assert body.get("stream", False) is stream


def test_openais_key_is_for_openai_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    openai = ModelSpec(name="m", url="https://api.openai.com/v1", model="m")
    assert openai.api_key == "secret"
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InvalidInputError, match="the variable OPENAI_API_KEY of m is not set"):
        Endpoint(openai)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with StandIn(lambda _messages: "yes") as stand_in:
        endpoint(stand_in).ask(ASKED)
        assert "Authorization" not in stand_in.served[0].headers


def test_the_limit_may_have_another_name():
    with StandIn(lambda _messages: "yes") as stand_in:
        endpoint(stand_in, max_tokens_key="max_completion_tokens").ask(ASKED)
        assert stand_in.served[0].body["max_completion_tokens"] == 7
        assert "max_tokens" not in stand_in.served[0].body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [Fault.ORDER, Fault.LATE])
def test_an_answer_is_found_wherever_it_stands(fault: Fault, stream: bool):
    with fails_with(fault) as stand_in:
        assert endpoint(stand_in, stream=stream).ask(ASKED).text == "Two, as everybody knows."


def test_a_choice_that_comes_twice_is_one():
    with fails_with(Fault.DUPLICATE) as stand_in:
        assert endpoint(stand_in).ask(ASKED).text == "Two, as everybody knows."


def test_counts_that_are_not_given_are_taken_high():
    with fails_with(Fault.NO_USAGE) as stand_in:
        answer = endpoint(stand_in).ask(ASKED)
    assert answer.estimated
    assert answer.prompt_tokens == ASKED.most_prompt_tokens > 30
    assert answer.completion_tokens == 7


@pytest.mark.parametrize(
    ("fault", "reason", "billed"),
    [
        (Fault.BUSY, "HTTP 429", False),
        (Fault.ERROR, "HTTP 500", True),
        (Fault.OVERLOADED, "HTTP 529", False),
        (Fault.CUT, "an answer that was cut off", True),
        (Fault.DROPPED, "no connection", True),
        (Fault.SLOW, "no whole answer in time", True),
        (Fault.GARBAGE, "an answer that is not JSON", True),
        (Fault.NOT_AN_ANSWER, "an answer without the one choice that was asked for", True),
        (Fault.CONFLICT, "an answer without the one choice that was asked for", True),
        (Fault.HUGE, "an answer of more than 16 MiB", True),
    ],
)
def test_what_may_pass_is_told_with_whether_it_may_be_billed(fault: Fault, reason: str, billed: bool):
    with fails_with(fault) as stand_in, pytest.raises(TransientError) as caught:
        endpoint(stand_in).ask(ASKED)
    assert (caught.value.reason, caught.value.may_be_billed) == (reason, billed)


@pytest.mark.parametrize(
    ("fault", "reason"), [(Fault.CUT, "a stream that was cut off"), (Fault.SLOW, "no whole answer in time")]
)
def test_a_stream_without_its_end_is_no_answer(fault: Fault, reason: str):
    with fails_with(fault) as stand_in, pytest.raises(TransientError, match=reason):
        endpoint(stand_in, stream=True).ask(ASKED)


def test_a_slow_answer_ends_at_the_deadline_though_bytes_keep_coming():
    with fails_with(Fault.SLOW) as stand_in:
        began = time.monotonic()
        with pytest.raises(TransientError):
            endpoint(stand_in, timeout_s=0.6).ask(ASKED)
        assert time.monotonic() - began < 6  # its body would take twenty seconds


@pytest.mark.parametrize("fault", [Fault.BUSY_RETRY_AFTER, Fault.BUSY_RETRY_AT])
def test_a_wish_to_be_left_alone_is_read_in_seconds_and_as_a_date(fault: Fault):
    with fails_with(fault, retry_after_s=30.0) as stand_in, pytest.raises(TransientError) as caught:
        endpoint(stand_in).ask(ASKED)
    assert caught.value.retry_after_s == pytest.approx(30, abs=2)


def test_nobody_there_is_no_connection_and_costs_nothing():
    with StandIn(lambda _messages: "yes") as stand_in:
        gone = endpoint(stand_in)
    with pytest.raises(TransientError, match="no connection") as caught:
        gone.ask(ASKED)
    assert not caught.value.may_be_billed


def test_a_question_that_is_turned_down_is_told_with_what_was_said():
    with fails_with(Fault.BAD_REQUEST) as stand_in, pytest.raises(RefusedError, match="HTTP 400: as asked: 400"):
        endpoint(stand_in).ask(ASKED)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault.FORBIDDEN, "HTTP 401.*the key wants api_key_env"),
        (Fault.QUOTA, "quota is used up"),
        (Fault.REDIRECT, "HTTP 302"),
    ],
)
def test_what_fails_every_question_ends_the_run(fault: Fault, words: str):
    with fails_with(fault) as stand_in, pytest.raises(InvalidInputError, match=words):
        endpoint(stand_in).ask(ASKED)


def test_a_redirect_does_not_carry_the_key_elsewhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", "secret")
    with fails_with(Fault.REDIRECT) as stand_in:
        with pytest.raises(InvalidInputError):
            endpoint(stand_in, api_key_env="A_KEY").ask(ASKED)
        assert len(stand_in.served) == 1


def test_a_wrong_path_is_told():
    with StandIn(lambda _messages: "yes") as stand_in, pytest.raises(InvalidInputError, match="HTTP 404: no such path"):
        endpoint(stand_in, url=stand_in.url.replace("/v1", "/v2")).ask(ASKED)


def test_an_empty_answer_is_an_answer():
    with fails_with(Fault.EMPTY) as stand_in:
        answer = endpoint(stand_in).ask(ASKED)
    assert (answer.text, answer.prompt_tokens) == ("", 7)


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0c", "\n"])
def test_a_stream_is_cut_at_line_ends_alone(separator: str):
    text = f"one{separator}two"
    with StandIn(lambda _messages: text, ascii_only=False) as stand_in:
        assert endpoint(stand_in, stream=True).ask(ASKED).text == text


def test_a_name_that_nobody_knows_costs_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with StandIn(lambda _messages: "yes") as stand_in, pytest.raises(TransientError, match="no connection") as caught:
        endpoint(stand_in, url="http://nobody.invalid/v1").ask(ASKED)
    assert not caught.value.may_be_billed


def test_a_netrc_does_not_take_the_keys_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "netrc").write_text("default login somebody password something")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("A_KEY", " secret\n")
    with StandIn(lambda _messages: "yes") as stand_in:
        endpoint(stand_in, api_key_env="A_KEY").ask(ASKED)
        endpoint(stand_in).ask(ASKED)
        assert [one.headers.get("Authorization") for one in stand_in.served] == ["Bearer secret", None]


def test_a_key_that_an_endpoint_repeats_is_not_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", "as asked")  # which the stand-in says of every fault
    with fails_with(Fault.BAD_REQUEST) as stand_in, pytest.raises(RefusedError) as caught:
        endpoint(stand_in, api_key_env="A_KEY").ask(ASKED)
    assert str(caught.value) == "HTTP 400: …: 400"


@pytest.mark.parametrize(("value", "words"), [("", "the variable A_KEY of judge is not set"), ("a\tb", "cannot have")])
def test_a_key_that_cannot_be_sent_is_told_without_it(value: str, words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", value)
    with StandIn(lambda _messages: "yes") as stand_in, pytest.raises(InvalidInputError, match=words) as caught:
        endpoint(stand_in, api_key_env="A_KEY")
    assert not value or value not in str(caught.value)


def test_a_seed_can_be_left_out():
    with StandIn(lambda _messages: "yes") as stand_in:
        endpoint(stand_in, seed=False).ask(ASKED)
        assert "seed" not in stand_in.served[0].body
