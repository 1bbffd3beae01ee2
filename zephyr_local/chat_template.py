"""Chats into token ids, so that nothing that a person typed becomes a control token.

A chat template is a small program. Zephyr's is known by the hash of its source and rendered here directly; a file that
the user names is rendered in Jinja's sandbox; any other template that comes inside a model file is rendered in a child
process, in the sandbox and under limits.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from zephyr_local.chat_types import Message
from zephyr_local.errors import ContextExceededError, TemplateError
from zephyr_local.jinja_template import CHOOSE_TEMPLATE, MAX_RENDERED_CHARS, RenderFailure, compile_template
from zephyr_local.template_guard import GuardedTemplate

# The template of HuggingFaceH4/zephyr-7b-beta and of the alignment handbook's recipes, byte for byte.
ZEPHYR_TEMPLATE: Final = (
    "{% for message in messages %}\n"
    "{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n"
    "{{ '<|assistant|>' }}\n"
    "{% endif %}\n"
    "{% endfor %}"
)

MAX_FILE_BYTES: Final = 64 << 10
MAX_CHARACTER_BYTES: Final = 4  # in UTF-8; a token for each byte is the most that plain text can cost
_ATTEMPTS: Final = 100  # one or two do; a vocabulary that was made to be unbreakable must not hold us for ever


def _sha256(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def _zephyr_variants() -> dict[str, bool]:
    """SHA-256 of each source that renders as Zephyr's does → whether it renders the start token itself."""
    variants: dict[str, bool] = {}
    escaped = ZEPHYR_TEMPLATE.replace("|>\n'", "|>\\n'")  # \n written as Jinja's escape: YAML and JSON copies have it
    for source in (ZEPHYR_TEMPLATE, escaped):
        for body in (source, source + "\n"):  # Jinja drops one newline at the end
            variants[_sha256(body)] = False
            for prefix in ("{{ bos_token }}", "{{bos_token}}", "{{- bos_token }}"):
                variants[_sha256(prefix + body)] = True
    return variants


_KNOWN_ZEPHYR: Final[Mapping[str, bool]] = _zephyr_variants()


class Vocabulary(Protocol):
    """What encoding asks of a model: :class:`zephyr_local.engine.llama.LlamaModel` has it."""

    bos_id: int
    eos_id: int
    add_bos: bool
    n_ctx: int
    control_tokens: dict[str, int]
    byte_tokens: dict[int, int]

    def tokenize(self, text: str) -> list[int]: ...

    def least_tokens(self, text: str) -> int: ...

    def token_text(self, token: int) -> str: ...


@dataclass(frozen=True, slots=True)
class SpecialTexts:
    """How the vocabulary writes the tokens that templates name."""

    bos: str = "<s>"
    eos: str = "</s>"


Renderer = Callable[[Sequence[Sequence[Message]], SpecialTexts, bool], list[str]]
"""Several chats at once, for what one costs where a child process renders."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A way to write a chat as text; make one with ``named``, ``from_file`` or ``from_gguf_metadata``."""

    name: str
    source: str
    renderer: Renderer
    guard: GuardedTemplate | None = None
    """What renders it, where that is a child process."""

    def render(
        self,
        messages: Sequence[Message],
        texts: SpecialTexts = SpecialTexts(),
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The chat as text, control tokens written out. For showing it; :func:`encode_chat` is what to run."""
        (text,) = self.renderer([messages], texts, add_generation_prompt)
        return text

    def close(self) -> None:
        """End the child process where there is one; closing twice is fine, and forgetting to keeps none for ever."""
        if self.guard is not None:
            self.guard.close()

    @classmethod
    def named(cls, name: str) -> ChatTemplate:
        """A built-in template: ``zephyr``."""
        if name != "zephyr":
            raise TemplateError(f"there is no built-in chat template {name!r}", CHOOSE_TEMPLATE)
        return cls("zephyr", ZEPHYR_TEMPLATE, _render_zephyr)

    @classmethod
    def from_file(cls, path: Path) -> ChatTemplate:
        """A Jinja template that the user trusts, as Hugging Face's tokenizers would render it."""
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_FILE_BYTES + 1)
            source = data.decode()
        except OSError as error:
            raise TemplateError(f"the chat template {path} cannot be read: {error.strerror}", CHOOSE_TEMPLATE) from None
        except UnicodeDecodeError as error:
            raise TemplateError(
                f"the chat template {path} is not UTF-8 at byte {error.start}", CHOOSE_TEMPLATE
            ) from None
        if len(data) > MAX_FILE_BYTES:
            raise TemplateError(f"the chat template {path} has more than {MAX_FILE_BYTES} bytes", CHOOSE_TEMPLATE)
        return _known(source) or cls(str(path), source, _jinja_renderer(source, str(path)))

    @classmethod
    def from_gguf_metadata(cls, metadata: Mapping[str, object], file_name: str) -> tuple[ChatTemplate, str | None]:
        """The template for a model file, and a line for the user where it had to be assumed.

        A file without one (Zephyr's widely used 2023 files have none) gets Zephyr's if it calls itself Zephyr. One that
        is not known runs in a child process, from the first rendering on; only that tells whether it is sound.
        """
        source = metadata.get("tokenizer.chat_template")
        if isinstance(source, str) and source.strip():
            if len(source.encode("utf-8", "surrogatepass")) > MAX_FILE_BYTES:
                raise TemplateError(
                    f"{file_name}'s chat template has more than {MAX_FILE_BYTES} bytes", CHOOSE_TEMPLATE
                )
            return _known(source) or cls._guarded(source, f"{file_name}'s own"), None
        if not _calls_itself_zephyr(metadata, file_name):
            raise TemplateError(f"{file_name} has no chat template", CHOOSE_TEMPLATE)
        return cls.named("zephyr"), f"{file_name} has no chat template; Zephyr's is used"

    @classmethod
    def _guarded(cls, source: str, name: str) -> ChatTemplate:
        guard = GuardedTemplate(source, name)

        def render(chats: Sequence[Sequence[Message]], texts: SpecialTexts, add_generation_prompt: bool) -> list[str]:
            return guard.render([_pairs(messages) for messages in chats], texts.bos, texts.eos, add_generation_prompt)

        return cls(name, source, render, guard)


def _known(source: str) -> ChatTemplate | None:
    renders_bos = _KNOWN_ZEPHYR.get(_sha256(source))
    if renders_bos is None:
        return None
    return ChatTemplate("zephyr", source, _render_zephyr_with_bos if renders_bos else _render_zephyr)


def _calls_itself_zephyr(metadata: Mapping[str, object], file_name: str) -> bool:
    names = [str(value) for key, value in metadata.items() if _NAME_KEY.match(key)]
    return any("zephyr" in name.lower() for name in [*names, file_name])


_NAME_KEY: Final = re.compile(r"general\.(name|basename|base_model\.\d+\.(name|repo_url))\Z")


def _zephyr_text(messages: Sequence[Message], texts: SpecialTexts, add_generation_prompt: bool) -> str:
    turns = [f"<|{message.role}|>\n{message.content}{texts.eos}\n" for message in messages]
    if messages and add_generation_prompt:
        turns.append("<|assistant|>\n")
    return "".join(turns)


def _render_zephyr(chats: Sequence[Sequence[Message]], texts: SpecialTexts, add_generation_prompt: bool) -> list[str]:
    return [_zephyr_text(messages, texts, add_generation_prompt) for messages in chats]


def _render_zephyr_with_bos(
    chats: Sequence[Sequence[Message]], texts: SpecialTexts, add_generation_prompt: bool
) -> list[str]:
    return [texts.bos + text for text in _render_zephyr(chats, texts, add_generation_prompt)]


def _jinja_renderer(source: str, name: str) -> Renderer:
    def failed(failure: RenderFailure) -> TemplateError:
        return TemplateError(f"the chat template {name}{failure.said}", CHOOSE_TEMPLATE)

    try:
        template = compile_template(source)
    except RenderFailure as failure:
        raise failed(failure) from None

    def render(chats: Sequence[Sequence[Message]], texts: SpecialTexts, add_generation_prompt: bool) -> list[str]:
        try:
            return [
                template(_pairs(messages), texts.bos, texts.eos, add_generation_prompt, MAX_RENDERED_CHARS)
                for messages in chats
            ]
        except RenderFailure as failure:
            raise failed(failure) from None

    return render


def _pairs(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


# --- text → ids ---


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """A chat as the model sees it."""

    ids: list[int]
    tail_text: str
    """The plain text after the last control token, with which an answer begins its part of the chat."""
    tail_ids: list[int]


def encode_chat(
    template: ChatTemplate,
    messages: Sequence[Message],
    vocabulary: Vocabulary,
    known_parts: Mapping[str, Sequence[int]] = {},
    *,
    answer_start: str = "",
    add_generation_prompt: bool = True,
) -> EncodedChat:
    """The chat as token ids; the start token is in front where the vocabulary asks for one.

    ``known_parts`` gives the ids of texts between control tokens that are to be used instead of tokenising these.
    ``answer_start`` stands behind the chat: an answer that was begun, and is to be gone on with.

    Control ids come from the template alone: each control token's text inside a message is broken with a random nonce
    before the chat is rendered, the rendering is split at the control tokens that remain, and the parts between them,
    the nonce removed, are tokenised as plain text. For text without control tokens the ids are Hugging Face's.
    Raises TemplateError, and ContextExceededError for a chat that cannot fit.
    """
    begun = [Message("assistant", answer_start)] if answer_start else []
    _check_size([*messages, *begun], vocabulary)
    texts = SpecialTexts(bos=vocabulary.token_text(vocabulary.bos_id), eos=vocabulary.token_text(vocabulary.eos_id))
    split_at = re.compile(
        "(" + "|".join(re.escape(t) for t in sorted(vocabulary.control_tokens, key=len, reverse=True)) + ")"
    )
    nonce = _nonce([*messages, *begun], split_at)
    guarded = [Message(m.role, _break(m.content, split_at, nonce)) for m in messages]
    blank = [Message(m.role, nonce if m.content else "") for m in messages]
    rendered, expected = template.renderer([guarded, blank], texts, add_generation_prompt)
    rendered += _break(answer_start, split_at, nonce)
    if split_at.findall(rendered) != split_at.findall(expected):
        raise TemplateError(
            f"the chat template {template.name} lets message text form control tokens",
            "Use another template, or change the message",
        )
    ids: list[int] = []
    text, part_ids = "", list[int]()
    for index, part in enumerate(split_at.split(rendered)):
        if index % 2:
            ids.append(vocabulary.control_tokens[part])
            continue
        text = _unbreak(part, nonce, template.name)
        known = known_parts.get(text)
        part_ids = list(known) if known is not None else _encode_plain(text, vocabulary)
        ids += part_ids
    if vocabulary.add_bos and ids[:1] != [vocabulary.bos_id]:
        ids.insert(0, vocabulary.bos_id)
    return EncodedChat(ids, text, part_ids)


def _check_size(messages: Sequence[Message], vocabulary: Vocabulary) -> None:
    """Refuse what cannot fit before it costs anything: what falls back to bytes tokenises in quadratic time."""
    most = MAX_CHARACTER_BYTES * sum(len(message.content) for message in messages)
    if not vocabulary.n_ctx or most <= vocabulary.n_ctx:
        return  # without having a model look at the whole of its vocabulary
    least = sum(vocabulary.least_tokens(message.content) for message in messages)
    if least > vocabulary.n_ctx:
        raise ContextExceededError(
            f"the chat needs {least} tokens or more and the context holds {vocabulary.n_ctx}",
            "Shorten or clear the chat, or load the model with a larger n_ctx",
        )


def _nonce(messages: Sequence[Message], split_at: re.Pattern[str]) -> str:
    """A string that is in none of the messages, holds no control token, and that no template writes."""
    for _ in range(_ATTEMPTS):
        nonce = f"\ue000{secrets.token_hex(8)}\ue001"  # two private-use characters and chance
        if not split_at.search(nonce) and not any(nonce in message.content for message in messages):
            return nonce
    raise _unbreakable()


def _break(content: str, split_at: re.Pattern[str], nonce: str) -> str:
    # Until nothing is left: breaking one token may leave another that began inside it.
    for _ in range(_ATTEMPTS):
        broken = split_at.sub(lambda found: found.group()[0] + nonce + found.group()[1:], content)
        if broken == content:
            return content
        content = broken
    raise _unbreakable()


def _unbreakable() -> TemplateError:
    return TemplateError(
        "the vocabulary has a control token that cannot be told from text, such as one of a single character",
        "Use another model file",
    )


def _unbreak(part: str, nonce: str, template_name: str) -> str:
    text = part.replace(nonce, "")
    if nonce[1:-1] in text.lower():
        raise TemplateError(
            f"the chat template {template_name} rewrites message text, so control tokens in it cannot be told apart",
            "Use another template",
        )
    return text


def _encode_plain(text: str, vocabulary: Vocabulary) -> list[int]:
    """Tokens of text that must not hold control tokens, whatever the vocabulary's merges can form."""
    if not text:
        return []
    ids = vocabulary.tokenize(text)
    control = {token: written for written, token in vocabulary.control_tokens.items()}
    if control.keys().isdisjoint(ids):
        return ids
    safe: list[int] = []
    for token in ids:
        if token in control:  # merged from ordinary pieces: spell it out
            safe += [vocabulary.byte_tokens[byte] for byte in control[token].encode() if byte in vocabulary.byte_tokens]
        else:
            safe.append(token)
    return safe
