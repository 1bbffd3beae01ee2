"""No command asks the network unasked: each does its work where there is none, and nobody is asked for anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from tests.cli.without_network import ENDPOINT, Answer, Ran, require_namespace, without_network
from tests.gguf_builder import model_of_file, write_reciting_model
from tests.model_store.store_fixtures import put_in_lm_studio, put_in_store
from tests.train.evaluate.mt_data import drawn, write_bench
from tests.train.evaluate.test_alpaca_eval import fair, reference
from tests.train.feedback.test_feedback import judging, write_prompts
from tests.train.recipe_builder import build_recipe
from zephyr_local.cli.main import app

SENTENCE = "Cows say moo, and they mean it."
_FOREIGN_TEMPLATE = (
    "{% for turn in messages %}{{ turn.role ~ ': ' ~ turn.content ~ '\n' }}{% endfor %}{{ 'answer:\n' }}"
)
_FEW_STEPS = ("--set", "dsft.max_steps=2", "--set", "ddpo.max_steps=2", "--threads", "1")


@dataclass(frozen=True)
class Inputs:
    """What the commands are given; none of them changes it."""

    folder: Path
    model: Path
    recipe: Path
    bench: Sequence[str | Path]
    reference: Path
    prompts: Path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "recipe").mkdir()
    model = write_reciting_model(folder, SENTENCE)
    return Inputs(
        folder, model, build_recipe(folder / "recipe"), write_bench(folder), reference(folder), write_prompts(folder, 2)
    )


@dataclass(frozen=True)
class Given:
    """A user and what he may use."""

    home: Path
    inputs: Inputs

    def run(
        self,
        *arguments: str | Path,
        code: int = 0,
        stdin: str = "",
        answer: Answer | None = None,
        is_python: bool = False,
    ) -> Ran:
        """Run a command, which asks nobody and ends with ``code``."""
        ran = without_network(*arguments, home=self.home, stdin=stdin, answer=answer)
        assert ran.code == code, ran.err
        _assert_that_nobody_was_asked(ran)
        return ran

    @property
    def data(self) -> Path:
        return self.home / "data" / "zephyr-local"


# --- what each command does ---


def chat(given: Given) -> None:
    assert given.run("chat", stdin="What do cows say?").out.strip()  # the bundled model
    ran = given.run("chat", given.inputs.model, "What do cows say?")
    assert ran.out == f"{SENTENCE}\n"
    assert _children(ran) == {"engine"}


def chat_with_foreign_template(given: Given) -> None:
    model = model_of_file(given.inputs.model)
    model.metadata["tokenizer.chat_template"] = ("str", _FOREIGN_TEMPLATE)
    ran = given.run("chat", model.write(given.home / "foreign.gguf"), "What do cows say?")
    assert ran.out == f"{SENTENCE}\n"
    assert _children(ran) == {"engine", "template"}


def saved_chats(given: Given) -> None:
    given.run("chat", "--save", given.inputs.model, "What do cows say?")
    assert given.run("chats", "path").out.strip() == str(given.data / "chats.db")
    assert json.loads(given.run("chats", "list", "--json").out)[0]["id"] == 1
    assert SENTENCE in given.run("chats", "show", "1").out
    assert "moo" in given.run("chats", "search", "moo").out
    assert SENTENCE in given.run("chats", "export", "1", "--format", "markdown").out
    given.run("chats", "title", "1", "Of cows")
    assert "Of cows" in given.run("chats", "list").out
    given.run("chats", "rm", "1", "--yes")
    assert json.loads(given.run("chats", "list", "--json").out) == []


def configuration(given: Given) -> None:
    file = Path(given.run("config", "path").out.strip())
    given.run("config", "set", "temperature", "0.5")
    assert "0.5" in file.read_text()
    assert "0.5" in given.run("config", "show").out
    given.run("config", "unset", "temperature")
    assert "0.5" not in file.read_text()


def models(given: Given) -> None:
    data = given.inputs.model.read_bytes()
    theirs = put_in_lm_studio(given.home / ".lmstudio/models", data, "TheBloke/zephyr-7B-beta-GGUF", "cows.Q4_K_M.gguf")
    own = put_in_store(given.data / "models", data + bytes(32), "org/own-GGUF", "own.gguf")
    found = json.loads(given.run("models", "list", "--json").out)["models"]
    assert {str(theirs), str(own)} <= {model["path"] for model in found}
    assert str(theirs) in given.run("models", "find", "cows").out
    assert json.loads(given.run("models", "show", "cows.Q4_K_M", "--json").out)["owner"] == "lm-studio"
    given.run("models", "alias", "work", "cows.Q4_K_M")
    given.run("models", "add", "my-zephyr", "org/own-GGUF")
    catalogue = json.loads(given.run("models", "list", "--json").out)["catalogue"]
    assert {entry["name"]: entry["here"] for entry in catalogue}["my-zephyr"]
    assert _children(given.run("models", "fit", "zephyr-7b-beta")) == {"probe"}
    assert "recorded" in given.run("models", "verify", "work").out
    given.run("models", "rm", "own")
    assert not own.exists()
    given.run("models", "prune")


def doctor(given: Given) -> None:
    ran = without_network("doctor", "--json", home=given.home)
    assert ran.code in (0, 1), ran.err  # what is wrong with the machine is not the question
    assert json.loads(ran.out)["checks"]["network"]["is_offline"] is False
    _assert_that_nobody_was_asked(ran)
    assert _children(ran) == {"probe"}


def inspect(given: Given) -> None:
    assert "llama.block_count" in given.run("inspect", given.inputs.model).out


def quantize(given: Given) -> None:
    given.run("quantize", given.inputs.recipe / "base", "--q8_0", "-o", given.home / "out.gguf")
    assert given.run("chat", "--template", "zephyr", given.home / "out.gguf", "Hello?", "--max-tokens", "4").out


def convert(given: Given) -> None:
    given.run("convert", given.inputs.recipe / "base", "--f16", "-o", given.home / "out.gguf")
    assert "F16" in given.run("inspect", given.home / "out.gguf").out


def recipes(given: Given) -> None:
    assert "zephyr-7b-beta" in json.loads(given.run("train", "recipes", "--json").out)


def dry_runs(given: Given) -> None:
    """All in one process, for torch takes its time to begin; the first recipe names hub repositories."""
    lines = [
        ["train", "run", "zephyr-7b-beta", "--dry-run", "--json"],
        ["train", "run", str(given.inputs.recipe), "--dry-run", "--json"],
        ["train", "pretrain", "tiny", "--dry-run", "--json"],
        ["train", "dsft", str(given.inputs.recipe), "--dry-run", "--json"],
        ["train", "ddpo", str(given.inputs.recipe), "--dry-run", "--json"],
    ]
    all_of_them = f"from zephyr_local.cli.main import run; assert not any(map(run, {lines!r}))"
    ran = without_network(all_of_them, home=given.home, program=["-c"])
    assert ran.code == 0, ran.err
    _assert_that_nobody_was_asked(ran)
    assert ran.out.count('"stages"') == len(lines)


def ablation(given: Given) -> None:
    """That it goes on only with its own settings; what it does in an hour are runs as that of the slow test below."""
    folder = given.home / "ablation"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"pretrain_steps": 7}))
    assert "pretrain_steps was 7" in given.run("train", "ablation", "-o", folder, code=2).err


def dialogues(given: Given) -> None:
    out = given.home / "out.jsonl"
    given.run("data", "dialogues", given.inputs.recipe / "dialogues.jsonl", "-o", out)
    assert len(out.read_text().splitlines()) == 60


def preferences(given: Given) -> None:
    out, recipe = given.home / "out.jsonl", given.inputs.recipe
    given.run("data", "preferences", recipe / "pairs.jsonl", "-o", out, "--tokenizer", recipe / "base")
    assert len(out.read_text().splitlines()) == 40


def feedback(given: Given) -> None:
    out = given.home / "rated.jsonl"
    who = ("--candidate", given.inputs.model, "--candidate", f"{ENDPOINT}#other", "--judge", f"{ENDPOINT}#judge")
    given.run("data", "feedback", given.inputs.prompts, *who, "-o", out, answer=judging)
    assert json.loads(out.read_text().splitlines()[0])["models"] == ["reciting-zephyr", "other"]


def mt_bench(given: Given) -> None:
    ran = given.run(
        "evaluate", "mt-bench", given.inputs.model, f"{ENDPOINT}#mine", *given.inputs.bench, "--judge",
        f"{ENDPOINT}#judge", "--limit", "2", "--out", given.home / "out", "--json", answer=drawn,
    )  # fmt: skip
    assert [model["model"] for model in json.loads(ran.out)["models"]] == ["reciting-zephyr", "mine"]


def alpaca_eval(given: Given) -> None:
    ran = given.run(
        "evaluate", "alpaca-eval", f"{ENDPOINT}#mine", "--reference", given.inputs.reference, "--judge",
        f"{ENDPOINT}#judge", "--out", given.home / "out", "--json", answer=fair,
    )  # fmt: skip
    assert json.loads(ran.out)["win_rate"] == 50.0


def pairs(given: Given) -> None:
    base, file = given.inputs.recipe / "base", given.inputs.recipe / "pairs.jsonl"
    ran = given.run("evaluate", "pairs", base, file, "--reference", base, "--limit", "4", "--json")
    assert json.loads(ran.out)["pick_the_longer"]["pairs"] == 4
    missing = given.run("evaluate", "pairs", base, file, "--reference", "mistralai/Mistral-7B-v0.1", code=2)
    assert "mistralai/Mistral-7B-v0.1 is no folder" in missing.err


def pull(given: Given) -> None:
    """The one command that is there to ask a hub: it is told that there is none, and leaves nothing behind."""
    ran = without_network("pull", "zephyr-7b-beta", home=given.home)
    assert ran.code == 7, ran.err
    assert ran.err.startswith("zephyr-local: error: "), ran.err
    assert len(ran.err.splitlines()) == 1
    assert ran.attempts
    assert all("huggingface.co" in attempt for attempt in ran.attempts)
    assert not any(path.is_file() for path in (given.data / "models").rglob("*"))


CASES: dict[Callable[[Given], None], Sequence[str]] = {
    chat: ["chat"],
    chat_with_foreign_template: ["chat"],
    saved_chats: [f"chats {verb}" for verb in ("path", "list", "show", "search", "export", "title", "rm")],
    configuration: [f"config {verb}" for verb in ("path", "show", "set", "unset")],
    models: [f"models {verb}" for verb in ("list", "find", "show", "alias", "add", "rm", "verify", "prune", "fit")],
    doctor: ["doctor"],
    inspect: ["inspect"],
    quantize: ["quantize"],
    convert: ["convert"],
    recipes: ["train recipes"],
    dry_runs: ["train run", "train pretrain", "train dsft", "train ddpo"],
    ablation: ["train ablation"],
    dialogues: ["data dialogues"],
    preferences: ["data preferences"],
    feedback: ["data feedback"],
    mt_bench: ["evaluate mt-bench"],
    alpaca_eval: ["evaluate alpaca-eval"],
    pairs: ["evaluate pairs"],
    pull: ["pull"],
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_it_works_without_a_network_and_asks_nobody(case: Callable[[Given], None], inputs: Inputs, tmp_path: Path):
    case(Given(tmp_path, inputs))


def test_no_command_was_forgotten():
    assert {name for names in CASES.values() for name in names} == set(_commands(app, ()))


@pytest.mark.slow
def test_training_asks_nobody(inputs: Inputs, tmp_path: Path):
    """Trainers report to their maker unless told not to, and some look models up by name."""
    given = Given(tmp_path, inputs)
    given.run("train", "run", inputs.recipe, "-o", tmp_path / "run", *_FEW_STEPS, "--export", "q8_0")
    assert list((tmp_path / "run").glob("*.gguf"))


# --- that the tests would notice ---


@pytest.mark.parametrize(
    "asking",
    [
        "socket.create_connection(('203.0.113.1', 80), 5)",
        "socket.create_connection(('2001:db8::1', 80), 5)",
        "socket.getaddrinfo('a-name.invalid', 80)",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('203.0.113.1', 53))",
    ],
)
def test_an_attempt_is_noticed_by_the_tracer(tmp_path: Path, asking: str):
    ran = without_network(f"import socket; {asking}", home=tmp_path, program=["-c"])
    assert ran.code == 1
    assert "OSError" in ran.err or "gaierror" in ran.err
    assert ran.attempts
    assert not ran.asked_nobody


def test_what_goes_to_loopback_is_no_attempt(tmp_path: Path):
    served = (
        "with socket.create_server(('127.0.0.1', 0)) as s: socket.create_connection(('localhost', s.getsockname()[1]))"
    )
    ran = without_network(f"import socket\n{served}", home=tmp_path, program=["-c"])
    assert ran.code == 0, ran.err
    assert ran.asked_nobody


@pytest.mark.parametrize("address", ["203.0.113.1", "2001:db8::1"])
def test_what_native_code_sends_is_counted_by_the_kernel(tmp_path: Path, address: str):
    require_namespace()
    if ":" in address and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this system has no IPv6")
    family, size = ("AF_INET6", 28) if ":" in address else ("AF_INET", 16)
    native = f"""
import ctypes, socket, struct
libc = ctypes.CDLL(None)
to = socket.inet_pton(socket.{family}, "{address}")
head = struct.pack("=HH", socket.{family}, socket.htons(80)) + (b"" if len(to) == 4 else bytes(4))
sockaddr = (head + to).ljust({size}, bytes(1))
asking = socket.socket(socket.{family})
print(libc.connect(asking.fileno(), sockaddr, {size}))
"""
    ran = without_network(native, home=tmp_path, program=["-c"])
    assert ran.out == "-1\n", ran.err
    assert ran.attempts == []
    assert not ran.asked_nobody


def _assert_that_nobody_was_asked(ran: Ran) -> None:
    assert ran.processes, "nothing was traced"
    assert ran.asked_nobody, (ran.attempts, ran.counted)


def _commands(group: click.Group, above: tuple[str, ...]) -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            assert not command.invoke_without_command
            yield from _commands(command, (*above, name))
        else:
            yield " ".join((*above, name))


def _children(ran: Ran) -> set[str]:
    """The roles of zephyr-local's own children that were traced."""
    return {role for role in ("engine", "template", "probe") if any(f'"{role}"]' in line for line in ran.processes)}
