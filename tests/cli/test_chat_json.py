"""`chat --json` and `--jsonl`: real outputs against the schemas of docs/chat-output.md."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ROOT, zephyr_local
from tests.cli.running import answer_begun, engine_of, first, running
from tests.conftest import skip_or_fail
from tests.gguf_builder import tiny_model, write_counting_model

try:
    import jsonschema
except ImportError:
    jsonschema = None

PAGE = (ROOT / "docs" / "chat-output.md").read_text(encoding="utf-8")
BLOCKS = [
    (heading, kind, text)
    for heading, section in re.findall(r"^## `(--\w+)`\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    for kind, text in re.findall(r"^```json( schema)?\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
]
SCHEMAS = {heading: json.loads(text) for heading, kind, text in BLOCKS if kind}
EXAMPLES = {heading: text for heading, kind, text in BLOCKS if not kind}
CAPITAL = "What is the capital of France?"
POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says w00 w01 …, some hundred words a second."""
    return write_counting_model(tmp_path_factory.mktemp("models"))


def check(form: str, values: Any) -> None:
    if jsonschema is None:
        skip_or_fail("jsonschema", "pip install jsonschema")
    jsonschema.Draft202012Validator(SCHEMAS[form]).validate(values)


def answer_of(stdout: str | bytes) -> dict[str, Any]:
    """The object of --json: one line, which fits the schema."""
    values: dict[str, Any] = json.loads(stdout)
    assert len(stdout.splitlines()) == 1
    check("--json", values)
    return values


def events_of(stdout: str | bytes) -> list[dict[str, Any]]:
    """The events of --jsonl: each fits the schema, they come in order, and one of two ends them."""
    events = [json.loads(line) for line in stdout.splitlines()]
    for event in events:
        check("--jsonl", event)
    names = [event["event"] for event in events]
    assert re.fullmatch(
        "((model )(dropped )*(prefill )*(piece )*)?(finish |error )", "".join(f"{name} " for name in names)
    ), names
    if names[-1] == "finish":
        finish = {name: value for name, value in events[-1].items() if name != "event"}
        check("--json", finish)
        assert "".join(event["text"] for event in events if event["event"] == "piece") == finish["answer"]
        assert [event for event in events if event["event"] == "dropped"] == [
            {"event": "dropped"} | dropped for dropped in finish["dropped"]
        ]
    return events


def run_json(home: Path, *arguments: str | Path, **environment: str) -> dict[str, Any]:
    done = zephyr_local("chat", "--json", *arguments, home=home, environment=environment)
    assert done.returncode == 0, done.stderr
    return answer_of(done.stdout)


def run_jsonl(home: Path, *arguments: str | Path, **environment: str) -> list[dict[str, Any]]:
    done = zephyr_local("chat", "--jsonl", *arguments, home=home, environment=environment)
    assert done.returncode == 0, done.stderr
    return events_of(done.stdout)


def test_the_schemas_are_schemas_and_the_examples_fit_them():
    if jsonschema is None:
        skip_or_fail("jsonschema", "pip install jsonschema")
    assert SCHEMAS.keys() == EXAMPLES.keys() == {"--json", "--jsonl"}
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    answer_of(EXAMPLES["--json"])
    events_of(EXAMPLES["--jsonl"])
    finish = next(part for part in SCHEMAS["--jsonl"]["oneOf"] if part["properties"]["event"] == {"const": "finish"})
    assert finish["properties"] == {"event": {"const": "finish"}} | SCHEMAS["--json"]["properties"]
    assert SCHEMAS["--jsonl"]["$defs"] == SCHEMAS["--json"]["$defs"]


def test_the_page_explains_each_field_and_event():
    json_part, jsonl_part = PAGE.split("\n## `--jsonl`\n")
    assert re.findall(r"^\| `(\w+)` \|", json_part, re.MULTILINE) == SCHEMAS["--json"]["required"]
    told = re.findall(r"^\| `(\w+)` \|", jsonl_part, re.MULTILINE)
    assert sorted(told) == sorted(part["properties"]["event"]["const"] for part in SCHEMAS["--jsonl"]["oneOf"])


def test_an_answer_is_one_object(tmp_path: Path):
    values = run_json(tmp_path, "-p", CAPITAL)
    assert values["answer"] == "The capital of France is Paris."
    assert values["model"] == "zephyr-tiny"
    assert values["finish_reason"] == "stop"
    assert values["completion_tokens"] == 8
    assert values["cached_tokens"] == 0
    assert values["dropped"] == []
    assert values["chat"] is None


def test_the_events_of_an_answer(tmp_path: Path):
    events = run_jsonl(tmp_path, "-p", CAPITAL, "--save")
    assert events[0] == {"event": "model", "model": "zephyr-tiny", "n_ctx": 1024, "notices": []}
    prompt = events[-1]["prompt_tokens"]
    assert events[1] == {"event": "prefill", "done": prompt, "total": prompt}
    assert len([event for event in events if event["event"] == "piece"]) > 1
    assert events[-1]["answer"] == "The capital of France is Paris."
    assert events[-1]["chat"] == 1


def test_an_answer_that_was_cut(tmp_path: Path):
    assert run_json(tmp_path, "-p", CAPITAL, "--max-tokens", "2")["finish_reason"] == "length"
    finish = run_jsonl(tmp_path, "-p", CAPITAL, "--max-tokens", "2")[-1]
    assert (finish["finish_reason"], finish["completion_tokens"]) == ("length", 2)
    values = run_json(tmp_path, "-p", CAPITAL, "--stop", "capital")
    assert (values["finish_reason"], values["answer"]) == ("stop", "The ")


def test_an_answer_with_nothing_in_it(tmp_path: Path):
    values = run_json(tmp_path, "-p", CAPITAL, "--stop", "The")
    assert (values["finish_reason"], values["answer"]) == ("stop", "")
    assert run_jsonl(tmp_path, "-p", CAPITAL, "--stop", "The")[-1]["answer"] == ""
    assert zephyr_local("chat", "-p", CAPITAL, "--stop", "The", home=tmp_path).stdout == "\n"


def test_control_characters_are_escaped_and_do_not_end_a_line(tmp_path: Path):
    name = "zephyr \x1b[31m \x9b31m \u2028\u2029 \u202e\x85\x7f 日本"
    named = tiny_model(name=name).write(tmp_path / "named.gguf")
    stop = ("--max-tokens", "1", "-p", "Hello")
    done = zephyr_local("chat", named, "--jsonl", *stop, home=tmp_path)
    assert done.returncode == 0
    assert events_of(done.stdout)[-1]["model"] == name
    assert "日本" in done.stdout
    assert not set(done.stdout) & set("\x1b\x9b\u2028\u2029\u202e\x85\x7f")
    assert answer_of(zephyr_local("chat", named, "--json", *stop, home=tmp_path).stdout)["model"] == name


def test_what_was_dropped_is_told(tmp_path: Path):
    arguments = ("--n-ctx", "256", "--overflow", "drop-oldest", "-p", f"Please tell me. {CAPITAL} " * 9)
    run_json(tmp_path, *arguments, "--save")
    second = run_json(tmp_path, *arguments, "--continue")
    assert [dropped["turns"] for dropped in second["dropped"]] == [2]
    assert second["dropped"][0]["tokens_before"] > second["dropped"][0]["tokens_after"] == second["prompt_tokens"]
    assert second["dropped"][0]["summary"] is None
    events = run_jsonl(tmp_path, "--n-ctx", "256", "--chat", "1", *arguments[-2:])
    assert [event["turns"] for event in events if event["event"] == "dropped"] == [2]
    shown = zephyr_local("chats", "show", "1", home=tmp_path).stdout
    assert shown.count("## You") == 3, "the chat still has what the model is not shown"


# --- interrupted, and failed ---


@POSIX
@pytest.mark.parametrize("form", ["--json", "--jsonl"])
def test_an_interrupted_answer_has_what_came(counting: Path, tmp_path: Path, form: str):
    arguments = ("chat", counting, "-p", "Hello", "--save", form)
    with running(*arguments, home=tmp_path) as process:
        read = first(process, "piece")[0] if form == "--jsonl" else b""
        if form == "--json":
            answer_begun(tmp_path)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert b"rror" not in stderr
    values = answer_of(stdout) if form == "--json" else events_of(read + stdout)[-1]
    assert values["finish_reason"] == "cancelled"
    assert values["answer"].startswith(" w00")
    assert (values["prompt_tokens"], values["completion_s"]) == (None, None)
    shown = zephyr_local("chats", "show", str(values["chat"]), home=tmp_path).stdout
    assert "(interrupted)" in shown
    assert values["answer"].strip() in shown


@POSIX
def test_interrupted_before_the_answer_began(counting: Path, tmp_path: Path):
    with running(
        "chat", counting, "--jsonl", "-p", "w01 " * 1500, "--n-batch", "8", "--save", home=tmp_path
    ) as process:
        read, prefill = first(process, "prefill")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert prefill["done"] < prefill["total"]
    assert process.returncode == 130, stderr
    finish = events_of(read + stdout)[-1]
    assert (finish["answer"], finish["finish_reason"], finish["chat"]) == ("", "cancelled", None)
    assert zephyr_local("chats", "list", "--json", home=tmp_path).stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "code"),
    [
        (("none.gguf", "Hello"), "", 3),
        (("README.md", "Hello"), "", 1),
        (("-p", "Hello", "--continue"), "", 2),
        ((), "", 2),
        ((), "word " * 5000, 5),
        ((), b"\xff", 2),
    ],
)
def test_an_error_is_an_event_and_no_object(tmp_path: Path, arguments: tuple[str, ...], stdin: str | bytes, code: int):
    done = zephyr_local("chat", "--jsonl", *arguments, stdin=stdin, home=tmp_path)
    event = events_of(done.stdout)[-1]
    assert (event["event"], event["exit_code"], done.returncode) == ("error", code, code)
    assert f"{event['problem']}. {event['remedy']}." in done.stderr
    done = zephyr_local("chat", "--json", *arguments, stdin=stdin, home=tmp_path)
    assert (done.stdout, done.returncode) == ("", code)
    assert event["problem"] in done.stderr


@pytest.mark.parametrize("form", ["--json", "--jsonl"])
def test_wrong_usage_has_no_events(tmp_path: Path, form: str):
    for arguments in (("--temperature", "hot"), ("--n-ctx", "1"), ("--no-such-flag",)):
        done = zephyr_local("chat", form, "-p", "Hello", *arguments, home=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the engine is found in /proc")
@pytest.mark.parametrize("form", ["--json", "--jsonl"])
def test_an_engine_that_is_killed_is_an_error_and_not_a_finish(counting: Path, tmp_path: Path, form: str):
    with running("chat", counting, "-p", "Hello", "--save", form, home=tmp_path) as process:
        read = first(process, "piece")[0] if form == "--jsonl" else b""
        if form == "--json":
            answer_begun(tmp_path)
        os.kill(engine_of(process), signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 6, stderr
    if form == "--json":
        assert stdout == b""
    else:
        event = events_of(read + stdout)[-1]
        assert (event["event"], event["exit_code"]) == ("error", 6)
        assert "SIGKILL" in event["problem"]
    assert "(interrupted)" in zephyr_local("chats", "show", "1", home=tmp_path).stdout


# --- what is configured ---


def test_flag_before_environment_before_profile_before_file(tmp_path: Path):
    def seen(*arguments: str, **environment: str) -> tuple[int, int]:
        events = run_jsonl(tmp_path, "-p", CAPITAL, *arguments, **environment)
        return events[0]["n_ctx"], events[-1]["completion_tokens"]

    assert seen() == (1024, 8)
    path = tmp_path / "config" / "zephyr-local" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(
        "[engine]\nn_ctx = 256\n[sampling]\nmax_tokens = 1\n[profiles.coder.engine]\nn_ctx = 512\n"
        "[profiles.other.sampling]\nmax_tokens = 5\n"
    )
    assert seen() == (256, 1)
    assert seen("--profile", "coder") == (512, 1)
    assert seen("--profile", "other") == (256, 5)
    environment = {"ZEPHYR_LOCAL_N_CTX": "768", "ZEPHYR_LOCAL_PROFILE": "coder"}
    assert seen(**environment) == (768, 1)
    assert seen("--n-ctx", "1280", "--max-tokens", "3", **environment) == (1280, 3)
    assert seen("--n-ctx", "1280", ZEPHYR_LOCAL_N_CTX="wrong, but it does not count") == (1280, 1)
