"""Pulls that are killed, stopped or cut, and how far they are meanwhile."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.cli.command import zephyr_local
from tests.cli.conftest import Cli
from tests.cli.pulling import (
    BETA,
    MIB,
    beta,
    large,
    names_below,
    start,
    store,
    wait_for_bytes,
)
from tests.repl.terminal_driver import Terminal
from tests.stand_in_hub import Fault, Kind, StandInHub


def test_a_killed_pull_goes_on_with_the_same_command(
    hub: StandInHub, hub_environment: dict[str, str], home: Path
) -> None:
    data = large()
    hub.add(BETA, {beta("Q8_0"): data})
    hub.pause_s = 0.01
    words = ("pull", "zephyr-7b-beta:q8_0", "--no-check-memory", "--json")
    with start(*words, environment=hub_environment) as process:
        wait_for_bytes(hub, MIB)
        process.kill()
        process.communicate()
    assert names_below(store(home)) == []
    hub.pause_s = 0
    ran = zephyr_local(*words, environment=hub_environment)
    made = json.loads(ran.stdout)
    assert made["resumed_bytes"] > MIB // 2
    assert made["resumed_bytes"] + made["fetched_bytes"] == len(data)
    assert (store(home) / beta("Q8_0")).read_bytes() == data
    assert list((store(home).parent.parent / ".partial").iterdir()) == []


def test_ctrl_c_keeps_what_came_and_says_so(
    cli: Cli, hub: StandInHub, hub_environment: dict[str, str], home: Path
) -> None:
    data = large()
    hub.add(BETA, {beta("Q8_0"): data})
    hub.pause_s = 0.01
    words = ("pull", "zephyr-7b-beta:q8_0", "--no-check-memory")
    with start(*words, environment=hub_environment) as process:
        wait_for_bytes(hub, MIB)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "Interrupted; 1 MB of 2 MB are here, and the same command goes on from there." in err
    hub.pause_s = 0
    listed = cli("models", "list")
    assert f"partial download: 1 MB of 2 MB of {BETA}/{beta('Q8_0')}; the same pull goes on" in listed.err
    (partial,) = cli("models", "list", "--json").json["partial_downloads"]
    assert (partial["file"], partial["size_bytes"]) == (beta("Q8_0"), len(data))
    done = cli(*words)
    assert "; 1 MB of it were here from before." in done.out
    assert (store(home) / beta("Q8_0")).read_bytes() == data


def test_a_terminal_sees_how_far_it_is_and_a_line_at_the_end(
    hub: StandInHub, hub_environment: dict[str, str], home: Path
) -> None:
    hub.add(BETA, {beta("Q8_0"): large()})
    hub.pause_s, hub.chunk_bytes = 0.05, 1 << 16
    words = ("pull", "zephyr-7b-beta:q8_0", "--no-check-memory")
    terminal = Terminal(*words, home=home, environment=hub_environment, rows=12)
    try:
        text = terminal.wait(lambda text: "/s, 0:0" in text)
        (bar,) = [line for line in text.splitlines() if "/s, 0:0" in line]
        assert bar.startswith(beta("Q8_0"))
        assert "/2.1 MB" in bar
        assert terminal.ended() == 0
        assert "its digest is the hub's" in terminal.text
        assert "/2.1 MB" not in terminal.text  # the bar has gone
    finally:
        terminal.close()


def test_a_pipe_gets_a_line_a_tenth(cli: Cli, hub: StandInHub) -> None:
    hub.add("org/zephyr", {"zephyr.Q8_0.gguf": large()})
    hub.pause_s = 0.001
    ran = cli("pull", "hf:org/zephyr:q8_0", "--json")
    told = [line[:21] for line in ran.err.splitlines() if line.startswith("pull ")]
    assert told[-1].startswith("pull 100% of 2 MB")
    assert len(told) == len(set(told)) <= 11
    assert ran.json["fetched_bytes"] == 2 * MIB


def test_bytes_that_are_not_the_hubs_leave_nothing(cli: Cli, hub: StandInHub, home: Path) -> None:
    hub.add("org/zephyr", {"zephyr.Q8_0.gguf": large()})
    hub.fail(Kind.STORAGE, [Fault(flip_at=MIB), Fault(flip_at=MIB)])
    ran = cli("pull", "hf:org/zephyr:q8_0", code=7)
    assert "came twice with another SHA-256 than the hub promises; nothing of it is kept" in ran.err
    assert ran.out == ""
    assert names_below(home / ".local/share/zephyr-local/models") == []
    assert cli("models", "list", "--json").json["models"] == []
