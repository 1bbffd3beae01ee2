"""Many kills at random moments and many sizes of disk: each target is old or complete, whatever happened.

The children are forked from one process that has everything imported and no thread yet, so that a kill costs a fraction
of a second and its moment is within the conversion.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint_builder import ModelShape, build_checkpoint

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork, signals and tmpfs of Linux")

PROLOGUE = """
    import json, os, random, signal, sys, time
    from pathlib import Path
    from zephyr_local.convert.hf_to_gguf import ConvertOptions, OutputRequest, convert_model
    from zephyr_local.errors import ZephyrError
    from zephyr_local.quantize.types import FileType
    OLD = b"what stood here before"
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    targets = [folder / "small.gguf", folder / "large.gguf"]
    def convert():
        types = (FileType.Q4_K_M, FileType.Q8_0)
        requests = [OutputRequest(target, kind) for target, kind in zip(targets, types)]
        return convert_model(source, requests, ConvertOptions(threads=2, overwrite=True))
    def names():
        return sorted(path.name for path in folder.iterdir())
"""


def report_of(command: list[str], script: str, *arguments: Path) -> Any:
    """Runs the script in a process of its own; returns the JSON that it prints."""
    done = subprocess.run(
        [*command, sys.executable, "-c", textwrap.dedent(PROLOGUE) + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path / "checkpoint", ModelShape(hidden_size=512, ffn_size=1024, n_layers=3))


def test_forty_kills(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    report = report_of(
        [],
        """
        def child():
            pid = os.fork()
            if pid == 0:
                try:
                    convert()
                    os._exit(0)
                except BaseException:
                    os._exit(1)
            return pid
        started = time.monotonic()
        assert os.waitpid(child(), 0)[1] == 0
        duration = time.monotonic() - started
        new = {target: target.read_bytes() for target in targets}
        chance = random.Random(0)
        seen, leftovers = [], 0
        for _ in range(40):
            for target in targets:
                target.write_bytes(OLD)
            pid = child()
            time.sleep(chance.uniform(0, 1.1 * duration))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            for target in targets:
                found = target.read_bytes()
                seen.append("old" if found == OLD else "new" if found == new[target] else "broken")
            leftovers += any(name.endswith(".part") for name in names())
        convert()
        complete = all(target.read_bytes() == new[target] for target in targets)
        print(json.dumps([seen, leftovers, complete, names()]))
        """,
        checkpoint,
        folder,
    )
    seen, leftovers, complete, names = report
    assert len(seen) == 80
    assert set(seen) <= {"old", "new"}
    assert seen.count("old") >= 20
    assert leftovers >= 10, "the kills must fall into the conversion"
    assert complete
    assert names == ["large.gguf", "small.gguf"]


def test_ten_disks_too_small_or_just_large_enough(checkpoint: Path, tmp_path: Path) -> None:
    """A file system of its own for each size, with and without what tells beforehand that it is too small."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs user namespaces: sysctl kernel.unprivileged_userns_clone=1")
    folder = tmp_path / "disk"
    folder.mkdir()
    report = report_of(
        [unshare, "-rm"],
        """
        import subprocess
        from zephyr_local.quantize import write_files
        def mount(size_kib):
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", folder], check=True)
        def outcome():
            for target in targets:
                target.write_bytes(OLD)
            try:
                convert()
            except ZephyrError as error:
                kept = all(target.read_bytes() == OLD for target in targets) and len(names()) == 2
                return ["refused" if kept else "broken", type(error).__name__, str(error)]
            whole = all(target.read_bytes() == new[target] for target in targets) and len(names()) == 2
            return ["done" if whole else "broken", "", ""]
        mount(1 << 20)
        convert()
        new = {target: target.read_bytes() for target in targets}
        needed_kib = sum(len(data) for data in new.values()) // 1024
        subprocess.run(["umount", folder], check=True)
        outcomes = []
        for forewarned in (True, False):
            if not forewarned:  # another program fills the disk meanwhile, on a file system that cannot reserve
                write_files.require_free_space = lambda folder, needed_bytes: None
                del os.posix_fallocate
            for percent in (1, 10, 25, 40, 55, 70, 85, 95, 99, 110):
                mount(max(64, needed_kib * percent // 100))
                outcomes.append([forewarned, percent, *outcome()])
                subprocess.run(["umount", folder], check=True)
        print(json.dumps(outcomes))
        """,
        checkpoint,
        folder,
    )
    assert len(report) == 20
    for forewarned, percent, result, error, message in report:
        assert result == ("done" if percent > 100 else "refused"), (forewarned, percent, result, message)
        if result == "refused":
            assert error == "OutputError", message
            assert ("free" if forewarned else "No space left") in message, message
