"""Templates from model files: honest ones render as Hugging Face's do, hostile ones end with an error, none stays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import mistral_spm, mistral_vocabulary  # noqa: F401 — fixtures
from tests.hf_tokenizer import hf_tokenizer
from tests.test_chat_template import CONVERSATIONS, as_dicts, chat
from zephyr_local import template_guard
from zephyr_local.chat_template import ZEPHYR_TEMPLATE, ChatTemplate, SpecialTexts, encode_chat
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.errors import EngineError, TemplateError
from zephyr_local.template_worker import ROOM_CHARS

ROOT = Path(__file__).resolve().parent.parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content'] %}\n"
    "    {%- set loop_messages = messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n"
    "\n{{- bos_token }}\n{%- for message in loop_messages %}\n"
    "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
    "        {{- raise_exception('After the optional system message, roles must alternate') }}\n    {%- endif %}\n"
    "    {%- if message['role'] == 'user' %}\n        {%- if loop.first and system_message is defined %}\n"
    "            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}\n"
    "        {%- else %}\n            {{- ' [INST] ' + message['content'] + ' [/INST]' }}\n        {%- endif %}\n"
    "    {%- elif message['role'] == 'assistant' %}\n        {{- ' ' + message['content'] + eos_token}}\n"
    "    {%- endif %}\n{%- endfor %}\n"
)
NAMES_AND_TAGS = (
    "{% set ns = namespace(n=0) %}{% macro turn(m) %}{{ m.role | upper }}: {{ m | tojson(indent=1) }}{% endmacro %}\n"
    "{% if tools is not none %}TOOLS{% endif %}{{ strftime_now('%Y') }}{% for m in messages %}\n"
    "    {% set ns.n = ns.n + m.content | length %}\n"
    "    {% if m.role == 'assistant' %}{% generation %}{{ turn(m) }}{{ eos_token }}{% endgeneration %}\n"
    "    {%- else %}{{ turn(m) }}\n    {% endif %}\n"
    "    {% if loop.index == 5 %}{% break %}{% endif %}\n{% endfor %}{{ ns.n }}{{ [1, none, 2.5, true] }}\n"
)

LOOPS = "{% for m in messages %}{% if m.content == 'loop' %}{% for i in range(99999) %}{% for j in range(99999) %}"
LOOPS += "{% endfor %}{% endfor %}{% endif %}{{ m.content }}{% endfor %}"


def own(source: str) -> ChatTemplate:
    template, notice = ChatTemplate.from_gguf_metadata({"tokenizer.chat_template": source}, "model.gguf")
    assert template.name == "model.gguf's own"
    assert notice is None
    return template


def child_of(template: ChatTemplate) -> int:
    assert template.guard is not None
    assert template.guard._child is not None
    return template.guard._child._process.pid


def has_child(template: ChatTemplate) -> bool:
    assert template.guard is not None
    return template.guard._child is not None


def children() -> set[int]:
    """The template processes that this one has, zombies included."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text()
            if int(state.rpartition(")")[2].split()[1]) == os.getpid() and "template" in child_role(folder, state):
                found.add(int(folder.name))
        except OSError:  # it ended while we looked
            continue
    return found


def child_role(folder: Path, state: str) -> str:
    return (folder / "cmdline").read_text() or ("template" if " Z " in state else "")


def gone(pid: int, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # its new parent has yet to reap it
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    before = children()
    yield
    import gc

    gc.collect()
    assert children() <= before


# --- honest templates ---


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("source", [CHATML, LLAMA_2, MISTRAL, NAMES_AND_TAGS, ZEPHYR_TEMPLATE + "{##}"])
def test_renders_as_hugging_face_and_as_a_trusted_file_do(
    tmp_path: Path,
    mistral_spm: str,  # noqa: F811
    source: str,
    generation: bool,
) -> None:
    reference = hf_tokenizer(mistral_spm, source)
    path = tmp_path / "own.jinja"
    path.write_text(source, encoding="utf-8", newline="")
    trusted, guarded = ChatTemplate.from_file(path), own(source)
    rendered = 0
    for messages in CONVERSATIONS:
        try:
            expected = reference.apply_chat_template(
                as_dicts(messages), tokenize=False, add_generation_prompt=generation
            )
        except Exception as error:
            for template in (trusted, guarded):
                with pytest.raises(TemplateError, match=re.escape(f"refuses this chat: {error}")):
                    template.render(messages, add_generation_prompt=generation)
        else:
            rendered += 1
            assert guarded.render(messages, add_generation_prompt=generation) == expected
            assert trusted.render(messages, add_generation_prompt=generation) == expected
    assert rendered > 12
    guarded.close()


def test_unusual_text_crosses_unchanged() -> None:
    template = own("{% for m in messages %}[{{ m.content }}]{% endfor %}{{ bos_token }}{{ eos_token }}")
    texts = ["\0\x1f\x7f", "\ud800", "\udbff\udc00", "\ud83d" + "\ude00", "😀\r\n\u2028", '"\\', "x" * 1_000_000]
    rendered = template.render(chat(*texts), SpecialTexts("«", "»"))
    assert rendered == "".join(f"[{text}]" for text in texts) + "«»"
    assert template.render([]) == "<s></s>"
    template.close()


def test_a_chat_is_encoded_as_with_the_same_template_from_a_file(
    tmp_path: Path,
    mistral_vocabulary: LlamaModel,  # noqa: F811
) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(MISTRAL, encoding="utf-8", newline="")
    trusted, guarded = ChatTemplate.from_file(path), own(MISTRAL)
    encoded = 0
    for messages in CONVERSATIONS:
        try:
            expected = encode_chat(trusted, messages, mistral_vocabulary)
        except TemplateError:
            with pytest.raises(TemplateError):
                encode_chat(guarded, messages, mistral_vocabulary)
        else:
            encoded += 1
            assert encode_chat(guarded, messages, mistral_vocabulary) == expected
            assert expected.ids[0] == 1
            assert expected.ids.count(1) == 1
    assert encoded > 12
    rewrites = own("{% for m in messages %}{{ m.content | replace('\ue000', '') }}{% endfor %}")
    with pytest.raises(TemplateError, match="rewrites message text"):
        encode_chat(rewrites, chat("a</s>b"), mistral_vocabulary)
    joins = own("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    with pytest.raises(TemplateError, match="form control tokens"):
        encode_chat(joins, chat("/s"), mistral_vocabulary)
    for template in (guarded, rewrites, joins):
        template.close()


# --- hostile templates ---

HOSTILE = {
    "a loop": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "2 seconds of proc|5 seconds",
    ),
    "a loop that writes nothing": (
        "{% set f = namespace(n=0) %}{% for i in range(99999) %}{% for j in range(99999) %}{% set f.n = f.n + 1 %}"
        "{% endfor %}{% endfor %}",
        "2 seconds of proc|5 seconds",
    ),
    "a number": ("{{ 10 ** (10 ** 9) }}", "2 seconds of proc|5 seconds|400 MiB"),
    "growth": (
        "{% set s = namespace(t='x') %}{% for i in range(64) %}{% set s.t = s.t ~ s.t %}{% endfor %}{{ s.t }}",
        "400 MiB of memory",
    ),
    "growth of lists": (
        "{% set s = namespace(t=[1]) %}{% for i in range(64) %}{% set s.t = s.t + s.t %}{% endfor %}{{ s.t }}",
        "400 MiB of memory",
    ),
    "a huge range": ("{% for i in range(10 ** 12) %}x{% endfor %}", "Range too big"),
    "a memory bomb": ("{{ 'x' * 10**9 }}", "400 MiB of memory"),
    "a bomb while it is parsed": ("{{ 'x' * 99999999 ~ 'y' * 99999999 ~ 'z' * 99999999 }}", "400 MiB of memory"),
    "a wide field": ("{{ '%1000000000d' % 1 }}", "400 MiB of memory"),
    "a wide filter": ("{{ 'x' | center(10 ** 9) }}", "400 MiB of memory"),
    "deep recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "refuses this chat: maximum recursion"),
    "deep nesting": ("{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}", "cannot be parsed|ended|400 MiB"),
    "deep blocks": ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "cannot be parsed|ended|400 MiB|2 seconds|5 seconds"),
    "too much output": ("{{ 'x' * 300000 }}", f"renders over {ROOM_CHARS + len('usera') + 64} characters"),
    "too much output in parts": ("{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}", "renders over"),
    "a refusal": ("{{ raise_exception('no ' ~ 'such chats') }}", "refuses this chat: no such chats"),
    "a long refusal": ("{{ raise_exception('no ' * 99999) }}", "refuses this chat: (no )+n?o?…"),
    "no template": ("{% if %}", "line 1: Expected an expression"),
    "a division": ("{{ 1 / 0 }}", "refuses this chat: division by zero"),
    "an import": ("{% import 'os' as os %}{{ os.getcwd() }}", "refuses this chat"),
    "a file": ("{% include '/etc/passwd' %}", "refuses this chat"),
    "a parent": ("{% extends '/etc/passwd' %}", "refuses this chat"),
    "a change": ("{{ messages.append(1) }}", "refuses this chat"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_template_ends_with_an_error(what: str) -> None:
    source, said = HOSTILE[what]
    template = own(source)
    start = time.monotonic()
    with pytest.raises(TemplateError, match=said) as told:
        template.render(chat("a"))
    assert time.monotonic() - start < 60
    assert told.value.problem.startswith("the chat template model.gguf's own")
    assert "--template zephyr, or --template FILE" in told.value.remedy
    assert len(str(told.value)) < 700
    assert not has_child(template), "after a failure the child is killed"


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__",
        "''.__class__.__mro__[1].__subclasses__()",
        "'' | attr('__class__')",
        "['', '__class__'] | map(attribute='__class__') | list",
        "'{0.__class__.__mro__}'.format('')",
        "'%s' % ''.__class__",
        "'{0.__class__}' | format('')",
        "(''|attr('format_map'))({'a': 1})",
        "raise_exception.__globals__",
        "strftime_now.__globals__['os'].system('id')",
        "namespace.__init__.__globals__",
        "dict.__base__",
        "range.__class__",
        "self.__init__.__globals__",
        "self._TemplateReference__context",
        "cycler.__init__.__globals__.os.popen('id').read()",
        "joiner.__init__.__globals__.os",
        "lipsum.__globals__['os'].popen('id').read()",
        "url_for.__globals__",
        "open('/etc/passwd').read()",
        "__import__('os').system('id')",
        "[].sort()",
        "messages[0].update({'role': 'system'})",
        "(messages | list).__class__",
        "messages.__reduce_ex__(2)",
        "(raise_exception | string).__class__",
    ],
)
def test_there_is_no_way_out_of_the_sandbox(expression: str) -> None:
    template = own("{{ " + expression + " }}")
    try:
        text = template.render(chat("a"))
    except TemplateError as error:
        text = error.problem.partition("refuses this chat: ")[2]
        assert text
        assert "root:" not in text
        assert "uid=" not in text
    else:
        assert text in ("", "[Undefined, Undefined]", "{0.__class__}"), text
    template.close()


@linux
def test_the_limits_of_the_child() -> None:
    template = own("{{ messages[0].content }}")
    template.render(chat("a"))
    limits: dict[str, tuple[str, str]] = {}
    for line in Path(f"/proc/{child_of(template)}/limits").read_text().splitlines()[1:]:
        soft, hard = line[26:].split()[:2]
        limits[line[:26].strip()] = (soft, hard)
    assert limits["Max file size"] == ("0", "0")
    assert limits["Max core file size"] == ("0", "0")
    assert limits["Max processes"] == ("0", "0")
    assert limits["Max open files"] == ("16", "16")
    soft, hard = limits["Max cpu time"]
    assert int(soft) <= 4
    assert hard == "60"
    soft, hard = limits["Max address space"]
    assert soft == hard
    assert 400 << 20 < int(soft) < 1 << 30
    template.close()


# --- the life of the child ---


def test_one_child_serves_the_turns_of_a_chat_until_it_is_closed() -> None:
    template = own(CHATML)
    assert not has_child(template), "none before it is needed"
    template.render(chat("a"))
    first = child_of(template)
    for turn in range(20):
        template.render(chat(str(turn)))
    assert child_of(template) == first
    template.close()
    template.close()
    assert not has_child(template)
    assert "a<|im_end|>" in template.render(chat("a"))
    assert child_of(template) != first
    template.close()


@linux
def test_a_template_that_nobody_closes_takes_its_child_along() -> None:
    template = own(CHATML)
    template.render(chat("a"))
    pid = child_of(template)
    del template
    import gc

    gc.collect()
    assert not Path(f"/proc/{pid}").exists()


def test_threads_share_a_template() -> None:
    template = own(CHATML)

    def render(number: int) -> bool:
        return f"user\nturn {number}<|im_end|>" in template.render(chat(f"turn {number}"))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(render, range(200)))
    template.close()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="sends signals")
def test_a_child_that_is_killed() -> None:
    template = own(LOOPS)
    assert template.render(chat("a")) == "a"
    first = child_of(template)
    timer = threading.Timer(0.3, os.kill, (first, signal.SIGKILL))
    timer.start()
    with pytest.raises(TemplateError, match="was ended by SIGKILL"):
        template.render(chat("loop"))
    timer.join()
    assert template.render(chat("b")) == "b"
    second = child_of(template)
    assert second != first
    os.kill(second, signal.SIGKILL)  # between two renderings
    time.sleep(0.2)
    assert template.render(chat("c")) == "c"
    template.close()


def test_closed_while_it_renders() -> None:
    template = own(LOOPS)
    assert template.render(chat("a")) == "a"
    timer = threading.Timer(0.3, template.close)
    timer.start()
    with pytest.raises(TemplateError):
        template.render(chat("loop"))
    timer.join()
    assert not has_child(template)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="sends signals")
def test_the_deadline_holds_where_no_processor_time_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    template = own("{{ messages[0].content }}")
    template.render(chat("a"))
    os.kill(child_of(template), signal.SIGSTOP)
    monkeypatch.setattr(template_guard, "DEADLINE_S", 1.0)
    with pytest.raises(TemplateError, match="takes more than 1 seconds"):
        template.render(chat("x" * 1_000_000))  # more than a pipe holds
    monkeypatch.undo()
    assert template.render(chat("b")) == "b"
    template.close()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("", r"its process ended with code 0\."),
        ("sys.exit('no module named jinja2')", r"ended with code 1 \(no module named jinja2\)"),
        ("os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        ("send(b'{}'); take()", "own ended with code 0"),
        ("send(b'{}'); take(); send(b'nonsense')", "nonsense"),
        ("send(b'{}'); take(); send(b'[' * 60000)", "nonsense"),
        ("send(b'{}'); take(); send(b'[1]')", "nonsense"),
        ("""send(b'{}'); take(); send(b'{"ok": ["a", "b"]}')""", "nonsense"),
        ("""send(b'{}'); take(); send(b'{"ok": [1]}')""", "nonsense"),
        ("""send(b'{}'); take(); send(b'{"ok": "a"}')""", "nonsense"),
        ("send(b'{}'); take(); os.write(1, b'\\xff' * 9)", "answers with more than"),
        ("send(b'{}'); take(); os.write(1, b'\\x00\\x00\\x01\\x00abc')", "ended with code 0"),
    ],
)
def test_a_child_that_is_not_believed(monkeypatch: pytest.MonkeyPatch, program: str, said: str) -> None:
    helpers = (
        "import os, sys\ndef send(body): os.write(1, len(body).to_bytes(4, 'big') + body)\n"
        "def take(): os.read(0, int.from_bytes(os.read(0, 4), 'big'))\n"
    )

    def start(role: str) -> subprocess.Popen[bytes]:
        assert role == "template"
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-c", helpers + program], stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0
        )

    template = own("{{ messages[0].content }}")
    monkeypatch.setattr(template_guard, "start_child", start)
    with pytest.raises(TemplateError, match=said):
        template.render(chat("a"))
    monkeypatch.undo()
    assert template.render(chat("a")) == "a"
    template.close()


def test_a_child_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(role: str) -> subprocess.Popen[bytes]:
        raise EngineError("the template process could not be started: too many", "Wait")

    template = own("{{ messages[0].content }}")
    monkeypatch.setattr(template_guard, "start_child", start)
    with pytest.raises(TemplateError, match="cannot be rendered: the template process could not be started: too many"):
        template.render(chat("a"))
    monkeypatch.undo()
    assert template.render(chat("a")) == "a"
    template.close()


def run(program: str, **options: Any) -> subprocess.Popen[str]:
    """A program of its own; ``own`` makes a template and ``pid`` tells its child's."""
    head = (
        "import os, sys, time\nfrom zephyr_local.chat_template import ChatTemplate\n"
        "from zephyr_local.chat_types import Message\n"
        "def own(s): return ChatTemplate.from_gguf_metadata({'tokenizer.chat_template': s}, 'm.gguf')[0]\n"
        "def pid(t): return t.guard._child._process.pid if t.guard._child else 0\n"
        "def chat(text): return [Message('user', text)]\n"
        f"template = own({LOOPS!r})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", head + textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        **options,
    )


@linux
@pytest.mark.parametrize("end", ["", "os._exit(0)", "raise SystemExit", "os.kill(os.getpid(), 9)"])
def test_the_child_ends_with_its_parent(end: str) -> None:
    program = run(f"template.render(chat('a'))\nprint(pid(template), flush=True)\n{end}\n")
    output, _ = program.communicate(timeout=60)
    assert output.strip().isdigit(), output
    assert gone(int(output))


@linux
def test_the_child_ends_with_its_parent_in_the_middle_of_a_rendering() -> None:
    program = run("template.render(chat('a'))\nprint(pid(template), flush=True)\ntemplate.render(chat('loop'))\n")
    assert program.stdout is not None
    pid = int(program.stdout.readline())
    time.sleep(0.2)
    program.kill()
    program.communicate(timeout=60)
    assert gone(pid)


@linux
def test_the_child_ends_with_its_parent_though_another_process_holds_the_pipe() -> None:
    program = run(
        """
        template.render(chat('a'))
        print(pid(template), flush=True)
        os.set_inheritable(template.guard._child._requests, True)
        import subprocess
        null = subprocess.DEVNULL
        holder = subprocess.Popen(['sleep', '60'], close_fds=False, stdout=null, stderr=null)
        os.kill(os.getpid(), 9)
        """,
        process_group=0,
    )
    output, _ = program.communicate(timeout=60)
    try:
        assert gone(int(output))
    finally:
        os.killpg(program.pid, signal.SIGKILL)


@linux
def test_a_forked_process_starts_its_own_child() -> None:
    program = run(
        """
        template.render(chat('a'))
        before = pid(template)
        forked = os.fork()
        if not forked:
            assert pid(template) == 0
            assert template.render(chat('b')) == 'b'
            assert pid(template) not in (0, before)
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 7
        assert template.render(chat('c')) == 'c'
        assert pid(template) == before
        template.close()
        print('well')
        """
    )
    output, _ = program.communicate(timeout=60)
    assert output == "well\n"


@linux
def test_a_child_whose_processor_time_runs_out_is_replaced() -> None:
    """Here the limit that it inherits leaves none for a second request."""
    program = run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
        for _ in range(3):
            assert template.render(chat('a')) == 'a'
            assert pid(template) == 0
        print('well')
        """
    )
    output, _ = program.communicate(timeout=60)
    assert output == "well\n"


def test_an_interrupt_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    template = own(LOOPS)
    assert template.render(chat("a")) == "a"

    def interrupt(descriptor: int, most_bytes: int) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(template_guard, "read_frame", interrupt)
    with pytest.raises(KeyboardInterrupt):
        template.render(chat("loop"))
    monkeypatch.undo()
    assert not has_child(template)
    assert template.render(chat("b")) == "b"
    template.close()


def test_a_template_over_64_kib_is_refused() -> None:
    with pytest.raises(TemplateError, match="has more than 65536 bytes"):
        own("x" * 65_537)
    template = own("x" * 65_536)
    assert template.render(chat("a")) == "x" * 65_536
    template.close()
