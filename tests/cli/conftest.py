"""A user who has nothing yet, a hub on loopback, and the command in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import skip_or_fail
from tests.model_store.conftest import home  # noqa: F401 — the fixture
from tests.stand_in_hub import StandInHub


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


Cli = Callable[..., Ran]


@pytest.fixture
def cli(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:  # noqa: F811
    """Runs `zephyr-local` with these words, both outputs in pipes: in this process, which is quick."""
    from zephyr_local.cli.main import run

    def ran(*words: str | Path, code: int = 0) -> Ran:
        arguments: Sequence[str] = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", ["zephyr-local", *arguments])
        capsys.readouterr()
        got = run(list(arguments))
        out, err = capsys.readouterr()
        assert got == code, (got, out, err)
        return Ran(got, out, err)

    return ran


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:  # noqa: F811
    """A hub that this process asks; for one that a test starts there is ``hub_environment``."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        skip_or_fail("huggingface_hub", 'pip install "zephyr-local[hub]"')
    with StandInHub() as stand_in:
        stand_in.connect(monkeypatch, home / "hf-home")
        monkeypatch.delenv("HF_HOME", raising=False)
        yield stand_in


@pytest.fixture
def hub_environment(hub: StandInHub) -> dict[str, str]:
    """What a process needs that is to ask the hub, in the home of this one."""
    # The two that the tests set are not taken away but overruled.
    asks = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
    return {"HF_ENDPOINT": hub.url, **asks}
