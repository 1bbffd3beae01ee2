"""What an application is given: the models that are here, and one fetched at its first run."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.gguf_builder import tiny_model
from tests.model_store.store_fixtures import put_everywhere, put_in_store
from tests.stand_in_hub import StandInHub
from zephyr_local import (
    EngineSettings,
    InvalidInputError,
    ModelNotFoundError,
    OfflineError,
    PullProgress,
    Zephyr,
    local_models,
    pull_model,
)
from zephyr_local.data import bundled_model_path
from zephyr_local.memory.plan import Machine
from zephyr_local.model_store.library import store_folder
from zephyr_local.model_store.registry import recorded

REPOSITORY = "org/zephyr-GGUF"


class Stop(Exception):
    pass


@pytest.fixture
def connected(home: Path, monkeypatch: pytest.MonkeyPatch, hub: StandInHub) -> StandInHub:
    hub.connect(monkeypatch, home)
    return hub


# --- the models that are here ---


def test_the_bundled_model_is_always_here(home: Path) -> None:
    (model,) = local_models()
    assert (model.name, model.path, model.place) == ("zephyr-tiny", bundled_model_path(), "bundled")
    assert model.needed_bytes is not None
    assert 1 << 20 < model.needed_bytes < 1 << 28
    assert (model.missing_bytes, model.n_ctx, model.problem) == (0, 1024, None)


def test_models_of_every_place_are_told(home: Path) -> None:
    owners = ("zephyr-local", "ollama", "lm-studio", "gpt4all")
    paths = put_everywhere(home, {owner: tiny_model(seed=n).build() for n, owner in enumerate(owners)})
    _, *found = local_models()
    assert {model.place: model.path for model in found} == paths
    assert all(model.missing_bytes == 0 for model in found)


def test_what_cannot_be_loaded_says_why(home: Path) -> None:
    put_in_store(store_folder(), b"GGUF but not one", file="broken.Q8_0.gguf")
    _, broken = local_models()
    assert (broken.file_type, broken.needed_bytes, broken.missing_bytes) == ("Q8_0", None, None)
    assert broken.problem


def test_what_does_not_fit_says_by_how_much(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(1 << 20, frozenset())
    monkeypatch.setattr("zephyr_local.model_list.machine_known", lambda: machine)
    (model,) = local_models()
    assert model.needed_bytes is not None
    assert model.missing_bytes == model.needed_bytes - (1 << 20)


def test_the_context_that_fits_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (usual,) = local_models()
    (small,) = local_models(EngineSettings(n_ctx=256))
    assert usual.needed_bytes is not None
    assert small.needed_bytes is not None
    between = (usual.needed_bytes + small.needed_bytes) // 2
    monkeypatch.setattr("zephyr_local.model_list.machine_known", lambda: Machine(between, frozenset()))
    (model,) = local_models()
    assert model.missing_bytes == 0
    assert model.n_ctx is not None
    assert 256 <= model.n_ctx < 1024


def test_the_functions_are_found_however_they_are_asked_for() -> None:
    code = (
        "import zephyr_local; from zephyr_local import LocalModel, PullProgress\n"
        "assert callable(zephyr_local.local_models) and callable(zephyr_local.pull_model)\n"
        "import sys; assert 'numpy' not in sys.modules and 'llama_cpp' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- one that is fetched ---


def test_a_model_is_fetched_once(connected: StandInHub) -> None:
    connected.add(REPOSITORY, {"z.Q4_K_M.gguf": tiny_model(seed=1).build(), "z.Q8_0.gguf": tiny_model(seed=2).build()})
    told: list[PullProgress] = []
    path = pull_model(f"hf:{REPOSITORY}:q8_0", on_progress=told.append)
    assert path.read_bytes() == tiny_model(seed=2).build()
    assert path.is_relative_to(store_folder())
    assert told[-1].done_bytes == told[-1].total_bytes == path.stat().st_size
    record = recorded(path)
    assert record is not None
    assert record.command == "zephyr_local.pull_model"
    sent = connected.sent_bytes()
    assert pull_model(f"hf:{REPOSITORY}:q8_0") == path
    assert connected.sent_bytes() == sent
    with Zephyr(f"hf:{REPOSITORY}:q8_0") as zephyr:
        assert zephyr.n_ctx > 0


def test_a_name_that_leaves_the_type_open_is_refused(connected: StandInHub) -> None:
    connected.add(REPOSITORY, {"z.Q4_K_M.gguf": tiny_model(seed=1).build(), "z.Q8_0.gguf": tiny_model(seed=2).build()})
    with pytest.raises(InvalidInputError, match="Q4_K_M, Q8_0"):
        pull_model(f"hf:{REPOSITORY}")
    with pytest.raises(ModelNotFoundError):
        pull_model(f"hf:{REPOSITORY}:q5_k_m")
    with pytest.raises(InvalidInputError, match="not known"):
        pull_model("no-such-model")


def test_one_that_was_stopped_goes_on(connected: StandInHub) -> None:
    data = tiny_model(n_embd=256, n_ff=512).build()
    connected.add(REPOSITORY, {"z.Q8_0.gguf": data})

    def stop(progress: PullProgress) -> None:
        if progress.done_bytes:
            raise Stop

    with pytest.raises(Stop):
        pull_model(f"hf:{REPOSITORY}", on_progress=stop)
    assert not list(store_folder().rglob("*.gguf"))
    done: list[Path] = []
    worker = threading.Thread(target=lambda: done.append(pull_model(f"hf:{REPOSITORY}")))
    worker.start()
    worker.join(60)
    assert done[0].read_bytes() == data


def test_it_asks_nobody_where_the_user_is_offline(
    home: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZEPHYR_LOCAL_OFFLINE", "1")
    with pytest.raises(OfflineError):
        pull_model("zephyr-7b-beta:q4_k_m")
