"""Downloads in processes of their own: killed, two at once, on a disk that fills up, and what they print and need."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.stand_in_hub import Fault, Kind, StandInHub, sha256

NAME = "stand/in-GGUF"
PATH = "model.Q4_K_M.gguf"
ROOT = Path(__file__).parents[2]
TOKEN = "hf_valid"
MIB = 1 << 20

DRIVER = """
import sys
from pathlib import Path
from zephyr_local.errors import ZephyrError
from zephyr_local.model_store import partials
from zephyr_local.model_store.download import download
from zephyr_local.model_store.hub import read_snapshot
from zephyr_local.model_store.hub_problems import Patience

def fetch(folder, on_progress=None, attempts=3):
    patience = Patience(attempts=attempts, wait=lambda seconds: None)
    snapshot = read_snapshot("stand/in-GGUF", patience=patience)
    file, target, partials = snapshot.file("model.Q4_K_M.gguf"), Path(folder, "model.gguf"), Path(folder, ".partial")
    return download(snapshot, file, target, partial_folder=partials, on_progress=on_progress, patience=patience)

def main(folder, **how):
    try:
        done = fetch(folder, **how)
    except ZephyrError as error:
        print(type(error).__name__, error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(done.fetched_bytes, done.resumed_bytes)
"""

NURSERY = (
    DRIVER
    + """
import os
import huggingface_hub, huggingface_hub.file_download, httpx2
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 70
        try:
            fetch(line.strip())
            code = 0
        finally:
            os._exit(code)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
)
"""Imports once and forks a process a line, so that each kill costs no more than what is killed."""


def content(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


def start(hub: StandInHub, home: Path, script: str, *command: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, sys.executable, "-c", script],
        env=hub.environment(home, **more),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(hub: StandInHub, home: Path, script: str, *command: str, **more: str) -> tuple[int, str, str]:
    with start(hub, home, DRIVER + script, *command, **more) as process:
        out, err = process.communicate(timeout=60)
    assert TOKEN not in out + err
    assert "X-Amz" not in out + err
    return process.returncode, out, err


def wait_for_bytes(hub: StandInHub, n_bytes: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while hub.sent_bytes() < n_bytes and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def kill_often(hub: StandInHub, folder: Path, data: bytes, kills: int) -> int:
    """Kill so many downloads of one file, and let one end; how many of them had sent something."""
    rng = random.Random(kills)
    share = len(data) // (kills + 1)
    with start(hub, folder / "hf", NURSERY) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for number in range(kills + 1):
            before = hub.sent_bytes()
            nursery.stdin.write(f"{folder}\n")
            nursery.stdin.flush()
            child = int(nursery.stdout.readline())
            if number < kills:
                wait_for_bytes(hub, before + int(share * rng.uniform(0.2, 1.0)), nursery)
                os.kill(child, signal.SIGKILL)
            code = int(nursery.stdout.readline())
            assert code == (-signal.SIGKILL if number < kills else 0)
            partial = folder / ".partial" / sha256(data)
            if number < kills:
                assert not (folder / "model.gguf").exists()
                assert data.startswith(partial.read_bytes())
        _, err = nursery.communicate()
        assert err == ""
    return len([one for one in hub.of_kind(Kind.STORAGE) if one.sent_bytes])


def report(capsys: pytest.CaptureFixture[str], what: str, hub: StandInHub, data: bytes) -> float:
    again = hub.sent_bytes() - len(data)
    share = again / len(data)
    with capsys.disabled():
        sys.stdout.write(f"\n{what}: {again} of {len(data)} bytes came twice, {share:.2%}\n")
    return share


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks what is killed")
def test_fifty_kills_cost_little_more_than_what_was_on_its_way(hub, tmp_path, capsys):
    data = content(32 * MIB)
    hub.add(NAME, {PATH: data})
    hub.pause_s = 0.0005
    n_served = kill_often(hub, tmp_path, data, 50)
    assert n_served == 51
    assert (tmp_path / "model.gguf").read_bytes() == data
    assert list((tmp_path / ".partial").iterdir()) == []
    assert report(capsys, "50 kills", hub, data) < 0.08


def test_kills_of_whole_processes_at_any_moment_are_gone_on_from(hub, tmp_path):
    data = content(2 * MIB)
    hub.add(NAME, {PATH: data})
    hub.pause_s = 0.05
    for delay_s in (0.05, 0.3, 0.5, 0.7, 0.8):
        with start(hub, tmp_path / "hf", f"{DRIVER}\nmain({str(tmp_path)!r})") as process:
            time.sleep(delay_s)
            process.kill()
    hub.pause_s = 0
    code, out, err = run(hub, tmp_path / "hf", f"main({str(tmp_path)!r})")
    assert (code, err) == (0, "")
    fetched, resumed = map(int, out.split())
    assert fetched + resumed == len(data)
    assert (tmp_path / "model.gguf").read_bytes() == data
    assert list((tmp_path / ".partial").iterdir()) == []


def test_fifty_cut_connections_cost_little(hub, tmp_path, capsys):
    data = content(16 * MIB)
    hub.add(NAME, {PATH: data})
    rng = random.Random(50)
    cuts = [Fault(cut_after=rng.randrange(1, len(data) // 50), reset=bool(number % 2)) for number in range(50)]
    hub.fail(Kind.STORAGE, cuts)
    code, _, err = run(hub, tmp_path / "hf", f"main({str(tmp_path)!r})")
    assert (code, err) == (0, "")
    assert (tmp_path / "model.gguf").read_bytes() == data
    assert len(hub.of_kind(Kind.STORAGE)) == 51
    assert report(capsys, "50 cut connections, 25 of them reset", hub, data) < 0.05


def interrupt(hub: StandInHub, folder: Path, how: signal.Signals, n_bytes: int) -> str:
    with start(hub, folder / "hf", f"{DRIVER}\nmain({str(folder)!r})") as process:
        wait_for_bytes(hub, hub.sent_bytes() + n_bytes, process)
        process.send_signal(how)
        return process.communicate(timeout=30)[1]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_each_way_to_end_a_download_leaves_one_that_goes_on(hub, tmp_path, how):
    data = content(2 * MIB)
    hub.add(NAME, {PATH: data})
    hub.pause_s = 0.01
    interrupt(hub, tmp_path, how, MIB)
    hub.pause_s = 0
    code, out, _ = run(hub, tmp_path / "hf", f"main({str(tmp_path)!r})")
    fetched, resumed = map(int, out.split())
    assert (code, fetched + resumed) == (0, len(data))
    assert resumed > MIB // 2
    assert (tmp_path / "model.gguf").read_bytes() == data


def test_a_branch_that_moved_while_nobody_looked_is_taken_as_it_is_now(hub, tmp_path):
    old, new = content(2 * MIB), content(2 * MIB + 1)
    hub.add(NAME, {PATH: old})
    hub.pause_s = 0.01
    interrupt(hub, tmp_path, signal.SIGKILL, MIB)
    hub.pause_s = 0
    hub.add(NAME, {PATH: new})
    code, out, _ = run(hub, tmp_path / "hf", f"main({str(tmp_path)!r})")
    assert (code, out) == (0, f"{len(new)} 0\n")
    assert (tmp_path / "model.gguf").read_bytes() == new
    assert (tmp_path / ".partial" / sha256(old)).stat().st_size > MIB // 2  # of use when the old one is asked for
    hub.add(NAME, {PATH: old, "README.md": b"moved back"})
    code, out, _ = run(hub, tmp_path / "hf", f"main({str(tmp_path)!r})")
    fetched, resumed = map(int, out.split())
    assert (code, fetched + resumed) == (0, len(old))
    assert resumed > MIB // 2
    assert (tmp_path / "model.gguf").read_bytes() == old


def test_a_second_process_is_told_who_downloads_the_file(hub, tmp_path):
    data = content(2 * MIB)
    hub.add(NAME, {PATH: data})
    hub.pause_s = 0.02
    with start(hub, tmp_path / "hf", f"{DRIVER}\nmain({str(tmp_path)!r})") as first:
        wait_for_bytes(hub, MIB // 4, first)
        code, out, err = run(hub, tmp_path / "hf", f"main({str(tmp_path)!r})")
        assert (code, out) == (1, "")
        assert err.startswith(f"OutputError the process {first.pid} downloads {PATH} now.")
        hub.pause_s = 0
        out, err = first.communicate(timeout=30)
    assert (first.returncode, out, err) == (0, f"{len(data)} 0\n", "")
    assert hub.sent_bytes() == len(data)
    assert (tmp_path / "model.gguf").read_bytes() == data


FILLED = """
import os
def fill(progress):
    if progress.done_bytes > 1 << 20 and not filler.exists():
        with filler.open("wb") as stream:
            try:
                while True:
                    stream.write(bytes(1 << 16))
                    stream.flush()
            except OSError:
                pass
folder = Path({folder!r})
filler = folder / "filler"
partials.DISK_MARGIN_BYTES = 0
try:
    fetch(folder, fill)
except ZephyrError as error:
    print(type(error).__name__, error)
there = next(path for path in (folder / ".partial").iterdir() if len(path.name) == 64).stat().st_size
filler.unlink()
done = fetch(folder)
is_same = (folder / "model.gguf").read_bytes() == Path({whole!r}).read_bytes()
print(there, done.resumed_bytes, done.fetched_bytes, is_same)
print(sorted(path.name for path in folder.rglob("*")))
"""


def test_a_disk_that_fills_up_keeps_what_is_there_and_it_goes_on(hub, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=12m none {small} && exec "$@"', "sh"]
    try:
        subprocess.run([*mounted, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no file system of its own can be mounted here")
    data = content(8 * MIB)
    hub.add(NAME, {PATH: data})
    (tmp_path / "whole").write_bytes(data)
    hub.pause_s = 0.001
    script = FILLED.format(folder=str(small), whole=str(tmp_path / "whole"))
    code, out, err = run(hub, tmp_path / "hf", script, *mounted)
    assert (code, err) == (0, "")
    error, numbers, names = out.splitlines()
    assert error.startswith(f"OutputError the disk of {small}/.partial takes no more (No space left on device); ")
    there, resumed, fetched, is_same = numbers.split()
    assert MIB < int(there) == int(resumed) < len(data)
    assert int(resumed) + int(fetched) == len(data)
    assert is_same == "True"
    assert names == "['.partial', 'model.gguf']"


def test_a_disk_that_is_too_small_is_told_with_the_shortfall(hub, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=68m none {small} && exec "$@"', "sh"]
    try:
        subprocess.run([*mounted, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no file system of its own can be mounted here")
    hub.add(NAME, {PATH: content(8 * MIB)})
    code, _, err = run(hub, tmp_path / "hf", f"main({str(small)!r})", *mounted)
    assert code == 1
    assert "71.3 MB free; 8.4 MB are still to come, and 67.1 MB stay free, so 4.2 MB are missing" in err
    assert hub.of_kind(Kind.HEAD) == []


@pytest.mark.skipif(os.name == "nt", reason="no limits of this kind")
def test_a_limit_on_a_files_size_keeps_what_is_there_too(hub, tmp_path):
    data = content(2 * MIB)
    hub.add(NAME, {PATH: data})
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
    code, _, err = run(hub, tmp_path / "hf", f"{limit}main({str(tmp_path)!r})")
    assert code == 1
    assert "takes no more (File too large); 1.0 MB are there" in err
    assert (tmp_path / ".partial" / sha256(data)).read_bytes() == data[:MIB]
    code, out, _ = run(hub, tmp_path / "hf", f"main({str(tmp_path)!r})")
    assert (code, out) == (0, f"{MIB} {MIB}\n")


@pytest.mark.parametrize("kind", [Kind.INFO, Kind.HEAD, Kind.STORAGE])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=403, headers={"X-Error-Message": f"no {TOKEN}", "X-HF-Warning": f"a; {TOKEN}"}),
        Fault(status=500, headers={"X-HF-Warning": f"b; {TOKEN}"}),
        Fault(status=302, headers={"Location": "http://127.0.0.1:9/x?X-Amz-Signature=1"}),
    ],
)
def test_the_token_and_the_signature_are_in_no_output(hub, tmp_path, kind, fault):
    hub.add(NAME, {PATH: content(MIB)})
    hub.fail(kind, itertools.repeat(fault))
    code, out, err = run(hub, tmp_path / "hf", f"main({str(tmp_path)!r})", HF_TOKEN=TOKEN)
    assert (code, out) == (7, "")
    assert err.startswith("HubError ")
    assert err.count("\n") == 1


def test_a_debug_log_of_the_library_has_no_token(hub, tmp_path):
    hub.add(NAME, {PATH: content(MIB)})
    with start(hub, tmp_path / "hf", f"{DRIVER}\nmain({str(tmp_path)!r})", HF_TOKEN=TOKEN, HF_DEBUG="1") as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert TOKEN not in out + err
    assert err == ""


PEAK = """
def peak_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

seen = []
fetch({folder!r}, lambda progress: seen.append(peak_bytes()))
print(max(seen) - seen[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat(hub, tmp_path):
    hub.add(NAME, {PATH: content(64 * MIB)})
    hub.chunk_bytes, hub.send_buffer_bytes = MIB, None
    code, out, err = run(hub, tmp_path / "hf", PEAK.format(folder=str(tmp_path)))
    assert (code, err) == (0, "")
    assert int(out) < 8 * MIB
