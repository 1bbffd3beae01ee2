"""A Jinja template as Hugging Face's tokenizers would render it, in Jinja's sandbox.

The same code renders a file that the user trusts, in this process, and a template that came inside a model file, in the
child of ``template_worker``. Jinja is imported where the first template is made: known templates need none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_RENDERED_CHARS: Final = 16 << 20
CHOOSE_TEMPLATE: Final = (
    "Give --template zephyr, or --template FILE with the Jinja template that the model was trained with"
)
_MAX_SAID_CHARS: Final = 300  # of what a template or Jinja says about a failure

Renderer = Callable[[Iterable[tuple[str, str]], str, str, bool, int], str]
"""(role, content) of each message, the start and end tokens' texts, add_generation_prompt, most characters → text."""


class RenderFailure(Exception):  # noqa: N818 — becomes a TemplateError where the template's name is known
    """A template cannot be parsed or does not render a chat; ``said`` goes on where "the chat template NAME" ends."""

    def __init__(self, said: str, *, memory: bool = False) -> None:
        super().__init__(said)
        self.said = said
        self.memory = memory
        """It ran out of memory."""


def compile_template(source: str, *, guarded: bool = False) -> Renderer:
    """Parse a template; ``guarded`` takes away what no chat template needs.

    Raises RenderFailure, and so does what it returns.
    """
    from jinja2 import TemplateSyntaxError

    environment = _environment()
    if guarded:
        for name in ("lipsum", "cycler", "joiner"):  # objects with more to reach than they are worth
            environment.globals.pop(name)
    try:
        template = environment.from_string(source)
    except TemplateSyntaxError as error:
        raise RenderFailure(f", line {error.lineno}: {_said(error)}") from None
    except MemoryError:
        raise _out_of_memory() from None
    except Exception as error:  # what Jinja makes of it is compiled by Python, which has limits of its own
        raise RenderFailure(f" cannot be parsed: {_said(error)}") from None

    def render(chat: Iterable[tuple[str, str]], bos: str, eos: str, add_generation_prompt: bool, limit: int) -> str:
        parts: list[str] = []
        length = 0
        try:
            for part in template.generate(
                messages=[{"role": role, "content": content} for role, content in chat],
                tools=None,
                documents=None,
                bos_token=bos,
                eos_token=eos,
                add_generation_prompt=add_generation_prompt,
            ):
                parts.append(part)
                length += len(part)
                if length > limit:
                    raise RenderFailure(f" renders over {limit} characters")
            return "".join(parts)
        except RenderFailure:
            raise
        except MemoryError:
            raise _out_of_memory() from None
        except Exception as error:  # a template is a program and can fail like any other
            raise RenderFailure(f" refuses this chat: {_said(error)}") from None

    return render


def _environment() -> ImmutableSandboxedEnvironment:
    """Blocks are trimmed, and there are the few names and tags that templates use besides Jinja's own."""
    from jinja2 import TemplateError as JinjaError
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what a trainer learns from; it renders as if it were not there."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

        def _written(self, caller: Callable[[], str]) -> str:
            return caller()

    def fail(message: object) -> NoReturn:
        raise JinjaError(str(message))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = fail
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = _to_json
    return environment


def _said(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= _MAX_SAID_CHARS else text[:_MAX_SAID_CHARS] + "…"


def _out_of_memory() -> RenderFailure:
    return RenderFailure(" needs more memory than there is", memory=True)


def _strftime_now(layout: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(layout)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    import json

    # Jinja's own escapes HTML, which no model was fed.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
