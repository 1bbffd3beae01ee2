"""Which file `pull` takes where the name leaves it open: the largest that fits memory, disk and limits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.pulling import (
    BETA,
    GB,
    MIB,
    beta,
    entry,
    large,
    model,
    run_limited,
    store,
)
from tests.stand_in_hub import StandInHub, sha256


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of this system")
def test_without_a_type_the_largest_comes_that_fits_the_memory(
    hub: StandInHub, hub_environment: dict[str, str], home: Path
) -> None:
    types = ("Q2_K", "Q4_K_M", "Q8_0", "F16")
    hub.add(BETA, {beta(file_type): model(seed) for seed, file_type in enumerate(types)})
    pull = ("pull", "zephyr-7b-beta")
    dry = run_limited(6 * GB, *pull, "--dry-run", "--json", environment=hub_environment)
    made = json.loads(dry.stdout)
    assert (dry.returncode, made["type"], made["dry_run"], made["fetched_bytes"]) == (0, "Q4_K_M", True, 0)
    assert made["missing_bytes"] == made["size_bytes"] == len(model(1))
    assert "Q4_K_M, 164 kB: with a context of 4096 tokens it takes 4.95 GB of the 5." in made["why"]
    assert "; Q8_0 needs 8.28 GB of memory, and 5." in made["why"]
    assert dry.stderr == f"note: {made['why']}\n"
    assert (hub.sent_bytes(), list(home.rglob("*.gguf"))) == (0, [])
    for words, file_type in ((("--n-ctx", "16384"), "Q2_K"), (("--no-check-memory",), "Q8_0")):
        asked = run_limited(6 * GB, *pull, "--dry-run", "--json", *words, environment=hub_environment)
        assert json.loads(asked.stdout)["type"] == file_type


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of this system")
def test_where_nothing_fits_the_memory_it_says_how_much_is_missing_and_what_would_fit(
    hub: StandInHub, hub_environment: dict[str, str], home: Path
) -> None:
    hub.add(BETA, {beta("Q2_K"): model(1), beta("Q4_K_M"): model(2)})
    small = run_limited(2 * GB, "pull", "zephyr-7b-beta", environment=hub_environment)
    assert (small.returncode, small.stdout) == (4, "")
    assert "nothing of zephyr-7b-beta fits: the smallest, Q2_K, needs 3.30 GB of memory, and 1." in small.stderr
    assert "GB too little with a context of 4096 tokens (ulimit -d is the limit)" in small.stderr
    assert "Free memory, or take a smaller model." in small.stderr
    longer = run_limited(44 * GB // 10, "pull", "zephyr-7b-beta", "--n-ctx", "32768", environment=hub_environment)
    assert longer.returncode == 4
    assert "Q2_K fits with --n-ctx 11264; or free memory." in longer.stderr
    assert hub.sent_bytes() == 0
    named = run_limited(2 * GB, "pull", "zephyr-7b-beta:q2_k", environment=hub_environment)
    assert named.returncode == 0
    assert "GB too little with a context of 4096 tokens" in named.stderr
    assert "it is fetched all the same, as zephyr-7b-beta:q2_k names it" in named.stderr
    assert (store(home) / beta("Q2_K")).read_bytes() == model(1)


def test_a_model_of_unknown_shape_needs_at_least_its_size(cli: Cli, hub: StandInHub) -> None:
    hub.add("org/huge", {})
    hub.listed = [entry("huge.Q8_0.gguf", 1 << 45)]
    ran = cli("pull", "hf:org/huge", code=4)
    assert "the smallest, Q8_0, needs at least 35,184.37 GB of memory" in ran.err
    hub.listed.append(entry("huge.Q2_K.gguf", 5000))
    made = cli("pull", "hf:org/huge", "--dry-run", "--json").json
    assert made["type"] == "Q2_K"
    assert "; Q8_0 needs at least 35,184.37 GB of memory" in made["why"]


def test_a_type_that_the_disk_cannot_hold_is_refused_with_the_next_smaller_one(cli: Cli, hub: StandInHub) -> None:
    hub.add("org/huge", {})
    hub.listed = [entry("huge.Q8_0.gguf", 1 << 46), entry("huge.Q4_0.gguf", 1 << 45), entry("huge.Q2_K.gguf", 5000)]
    ran = cli("pull", "hf:org/huge:q4_0", code=1)
    assert "huge.Q4_0 needs 35,184.37 GB of disk, and " in ran.err
    assert ran.err.endswith("(ZEPHYR_LOCAL_STORE_FOLDER); or take Q2_K, 5 kB.\n")
    hub.listed = hub.listed[:2]
    ran = cli("pull", "hf:org/huge", "--no-check-memory", code=1)
    assert "nothing of hf:org/huge fits: the smallest, Q4_0, needs 35,184.37 GB of disk" in ran.err


def test_a_limit_on_the_store_is_kept_and_what_is_there_already_counts_once(
    cli: Cli, hub: StandInHub, home: Path
) -> None:
    files = {f"zephyr.{name}.gguf": large(n * MIB) for name, n in (("Q2_K", 1), ("Q4_0", 2), ("Q8_0", 4))}
    hub.add("org/zephyr", files)
    assert cli("pull", "hf:org/zephyr", "--max-disk", "3M", "--dry-run", "--json").json["type"] == "Q4_0"
    cli("pull", "hf:org/zephyr:q2_k", "--max-disk", "3M")
    ran = cli("pull", "hf:org/zephyr:q4_0", "--max-disk", "3M", code=1)
    assert "zephyr.Q4_0 needs 2 MB of disk, and " in ran.err
    assert "holds 1 MB of the 3 MB that it may: 146 kB too much" in ran.err
    assert "raise --max-disk" in ran.err
    partial = home / ".local/share/zephyr-local/models/.partial" / sha256(files["zephyr.Q4_0.gguf"])
    partial.parent.mkdir(exist_ok=True)
    partial.write_bytes(files["zephyr.Q4_0.gguf"][:MIB])
    made = cli("pull", "hf:org/zephyr:q4_0", "--max-disk", "3.2M", "--json").json
    assert (made["fetched_bytes"], made["resumed_bytes"]) == (MIB, MIB)
    assert "is not a size" in cli("pull", "hf:org/zephyr", "--max-disk", "much", code=2).err


def test_between_several_models_nothing_is_chosen(cli: Cli, hub: StandInHub) -> None:
    hub.add("org/two", {"zephyr.Q4_0.gguf": model(1), "Zephyr-Q8_0.gguf": model(2), "breeze.Q4_0.gguf": model(3)})
    ran = cli("pull", "hf:org/two", code=2)
    assert "org/two holds several models: breeze, " in ran.err
    assert "Name the file: hf:org/two/" in ran.err
    assert cli("pull", "hf:org/two:q8_0", "--dry-run", "--json").json["type"] == "Q8_0"
