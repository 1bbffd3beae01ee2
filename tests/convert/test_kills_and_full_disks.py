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
    from zephyr_local.quantize.encoders import EncoderOptions, open_encoder
    from zephyr_local.quantize.types import FileType, TensorType
    open_encoder(EncoderOptions(), [TensorType.Q4_K, TensorType.Q6_K, TensorType.Q8_0])
    OLD = b"what stood here before"
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    targets = [folder / "small.gguf", folder / "large.gguf"]
    def convert(*more):
        types = (FileType.Q4_K_M, FileType.Q8_0)
        requests = [*more, *(OutputRequest(target, kind) for target, kind in zip(targets, types))]
        return convert_model(source, requests, ConvertOptions(threads=2, overwrite=True))
    def names():
        return sorted(path.name for path in folder.iterdir())
"""


def report_of(command: list[str], script: str, *arguments: object) -> Any:
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


def test_forty_kills(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint")
    folder = tmp_path / "out"
    folder.mkdir()
    report = report_of(
        [],
        """
        parts = OutputRequest(folder / "parts.gguf", FileType.Q8_0, split_max_bytes=400_000)
        def child():
            pid = os.fork()
            if pid == 0:
                try:
                    convert(parts)
                    os._exit(0)
                except BaseException:
                    os._exit(1)
            return pid
        def state(model, new):
            found = [(folder / name).read_bytes() if (folder / name).exists() else None for name in model]
            if found == [OLD] * len(model):
                return "old"
            if found == [new[name] for name in model]:
                return "new"
            return "broken" if len(model) == 1 or found[0] is not None else "without its first part"
        def seconds():
            started = time.monotonic()
            assert os.waitpid(child(), 0)[1] == 0
            return time.monotonic() - started
        duration = sorted(seconds() for _ in range(3))[1]
        new = {path.name: path.read_bytes() for path in folder.iterdir()}
        chance = random.Random(0)
        seen, leftovers, cleaned = [], 0, 0
        models = [[target.name] for target in targets] + [sorted(name for name in new if "-of-" in name)]
        for _ in range(40):
            for name in new:
                (folder / name).write_bytes(OLD)
            pid = child()
            time.sleep(chance.uniform(0, 1.2 * duration))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            seen += [state(model, new) for model in models]
            leftovers += any(name not in new for name in names())
            os.waitpid(child(), 0)
            cleaned += {path.name: path.read_bytes() for path in folder.iterdir()} == new
        print(json.dumps([len(models[2]), seen, leftovers, cleaned]))
        """,
        checkpoint,
        folder,
    )
    n_parts, seen, leftovers, cleaned = report
    assert n_parts > 2
    assert len(seen) == 120
    assert {*seen[0::3], *seen[1::3]} <= {"old", "new"}
    assert set(seen[2::3]) <= {"old", "new", "without its first part"}
    assert leftovers >= 5, "the kills must fall into the conversion"
    assert cleaned == 40, "the next run is complete and leaves nothing of the killed one"


EVERY_STEP = """
    import errno, shutil
    from contextlib import ExitStack
    from zephyr_local.quantize.gguf_output import OutputFile, commit_together
    from zephyr_local.quantize.leftovers import settle_leftovers
    os.fsync = lambda fd: None  # these tests end processes, not power
    stood, ends = sys.argv[3:]
    models = [["a.gguf"], [f"b-0000{n}-of-00003.gguf" for n in (1, 2, 3)], ["c.gguf"]]
    new = {name: "GGUF zephyr_local. new " + name for model in models for name in model}
    stands = {"nothing": [], "a part": models[1][1:2]}.get(stood, list(new))
    old = {name: ("to " if stood == "links" else "GGUF zephyr_local. old ") + name for name in stands}

    def reset():
        shutil.rmtree(folder)
        folder.mkdir()
        for name, text in old.items():
            os.symlink(text, folder / name) if stood == "links" else (folder / name).write_text(text)

    def write(overwrite=True):
        with ExitStack() as stack:
            def output(name):
                made = stack.enter_context(OutputFile(folder / name, len(new[name]), overwrite=overwrite))
                made.write_at(0, new[name].encode())
                return made
            commit_together([[output(name) for name in model] for model in models])

    def write_as_the_test_says():
        commit, link = OutputFile.commit, os.link
        def broken(output):
            if output.path.name.startswith("c.gguf"):
                raise OSError(errno.EIO, "broken")
            commit(output)
        def no_links(*names, **options):
            raise PermissionError(errno.EPERM, "no hard links here")
        OutputFile.commit = broken if ends == "in an error" else commit
        os.link = no_links if ends == "without hard links" else link
        write(overwrite=bool(old))

    def settle():
        for stem in "abc":
            settle_leftovers(folder / f"{stem}.gguf")

    def killed(step, action):
        pid = os.fork()
        if pid == 0:
            steps = iter(range(step))
            for name in ("link", "rename", "replace", "symlink", "unlink"):
                def change(*args, of_system=getattr(os, name), **options):
                    if next(steps, None) is None:
                        os._exit(7)
                    return of_system(*args, **options)
                setattr(os, name, change)
            try:
                action()
            except OSError:
                pass
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

    def look(settled):
        found = {path.name: os.readlink(path) if path.is_symlink() else path.read_text() for path in folder.iterdir()}
        for model in models:
            texts = [found.pop(name, None) for name in model]
            whole = texts in ([old.get(name) for name in model], [new[name] for name in model])
            if not whole and (settled or len(model) == 1 or texts[0] is not None):
                problems.append([step, cleaning_step, settled, model, texts])
        if settled and found:
            problems.append([step, cleaning_step, settled, sorted(found)])

    problems, step, n_looks, in_writing = [], 0, 0, True
    while in_writing:
        cleaning_step, in_cleaning = 0, True
        while in_cleaning:
            reset()
            in_writing = killed(step, write_as_the_test_says)
            look(settled=False)
            in_cleaning = killed(cleaning_step, settle)
            look(settled=False)
            settle()
            look(settled=True)
            cleaning_step, n_looks = cleaning_step + 1, n_looks + 1
        write()
        if {path.name: path.read_text() for path in folder.iterdir()} != new:
            problems.append([step, "the next run", names()])
        step += 1
    print(json.dumps([problems, step, n_looks]))
"""


@pytest.mark.parametrize("ends", ["well", "in an error", "without hard links"])
@pytest.mark.parametrize("stood", ["nothing", "files", "links", "a part"])
def test_a_kill_before_every_change_of_a_name(tmp_path: Path, stood: str, ends: str) -> None:
    """While three models get their names, and while that is settled: each is old or new then, and alone."""
    (tmp_path / "out").mkdir()
    problems, n_steps, n_looks = report_of([], EVERY_STEP, tmp_path, tmp_path / "out", stood, ends)
    assert problems == []
    assert n_steps > 8
    assert n_looks > 2 * n_steps


PERCENT = (1, 10, 25, 40, 55, 70, 85, 95, 99, 110)
OUTCOME = """
    def outcome(new):
        for target in targets:
            target.write_bytes(OLD)
        try:
            convert()
        except ZephyrError as error:
            kept = all(target.read_bytes() == OLD for target in targets) and len(names()) == 2
            return ["refused" if kept else "broken", type(error).__name__, str(error)]
        whole = all(target.read_bytes() == new[target] for target in targets) and len(names()) == 2
        return ["done" if whole else "broken", "", ""]
"""


def test_ten_limits_on_the_size_of_a_file(checkpoint: Path, tmp_path: Path) -> None:
    """Met by the reservation, or without one by whichever block comes first at the limit."""
    folder = tmp_path / "out"
    folder.mkdir()
    report = report_of(
        [],
        OUTCOME
        + """
    import resource
    convert()
    new = {target: target.read_bytes() for target in targets}
    largest = max(len(data) for data in new.values())
    outcomes = []
    for reserved in (True, False):
        if not reserved:
            del os.posix_fallocate
        for percent in json.loads(sys.argv[3]):
            read, write = os.pipe()
            if os.fork() == 0:
                limit = largest * percent // 100
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                os.write(write, json.dumps([reserved, percent, *outcome(new)]).encode())
                os._exit(0)
            os.close(write)
            outcomes.append(json.loads(os.read(read, 1 << 16)))
            os.wait()
    print(json.dumps(outcomes))
""",
        checkpoint,
        folder,
        json.dumps(PERCENT),
    )
    assert len(report) == 2 * len(PERCENT)
    for reserved, percent, result, error, message in report:
        assert result == ("done" if percent > 100 else "refused"), (reserved, percent, result, message)
        assert error == ("" if percent > 100 else "OutputError"), message


def test_ten_disks_too_small_or_just_large_enough(checkpoint: Path, tmp_path: Path) -> None:
    """A file system of its own for each size, with and without what tells beforehand that it is too small."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs user namespaces: sysctl kernel.unprivileged_userns_clone=1")
    folder = tmp_path / "disk"
    folder.mkdir()
    report = report_of(
        [unshare, "-rm"],
        OUTCOME
        + """
    import subprocess
    from zephyr_local.quantize import write_files
    def mount(size_kib):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", folder], check=True)
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
        for percent in json.loads(sys.argv[3]):
            mount(max(64, needed_kib * percent // 100))
            outcomes.append([forewarned, percent, *outcome(new)])
            subprocess.run(["umount", folder], check=True)
    print(json.dumps(outcomes))
""",
        checkpoint,
        folder,
        json.dumps(PERCENT),
    )
    assert len(report) == 2 * len(PERCENT)
    for forewarned, percent, result, error, message in report:
        assert result == ("done" if percent > 100 else "refused"), (forewarned, percent, result, message)
        if result == "refused":
            assert error == "OutputError", message
            assert ("free" if forewarned else "No space left") in message, message
