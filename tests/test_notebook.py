"""The notebook among the examples runs from top to bottom, is stored without outputs, and a cell can be interrupted."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
MOST_S = 120


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NotebookClient]:
    """With a kernel, which ends with the test."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=MOST_S, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    with client.setup_kernel():
        yield client


def text_of(cell: NotebookNode) -> str:
    """What a cell has printed."""
    assert all(output.output_type == "stream" for output in cell.outputs), cell.outputs
    return "".join(output.text for output in cell.outputs if output.name == "stdout")


def run_cell(client: NotebookClient, containing: str) -> NotebookNode:
    """Run the one cell that has this text in its source."""
    (index,) = (n for n, cell in enumerate(client.nb.cells) if cell.cell_type == "code" and containing in cell.source)
    return client.execute_cell(client.nb.cells[index], index)


def test_no_output_is_stored() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert NOTEBOOK.stat().st_size < 10_000


def test_it_runs_from_top_to_bottom(client: NotebookClient) -> None:
    cells = [cell for cell in client.nb.cells if cell.cell_type == "code"]
    for index, cell in enumerate(client.nb.cells):
        client.execute_cell(cell, index)
    texts = [text_of(cell) for cell in cells]
    assert texts[0] == "zephyr-tiny 1024 tokens of context\n"
    assert texts[1:3] == ["The capital of France is Paris.\n", "The capital of Japan is Tokyo.\n"]
    assert texts[4].startswith("6 turns")
    assert "Rome" in texts[4]
    assert [line.split()[-1] for line in texts[5].splitlines()] == ["moo.", "quack.", "woof."]
    rows = [line[22:].split() for line in texts[6].splitlines()]
    assert [row[n] for n, row in enumerate(rows)] == ["1.00"] * 4
    assert float(rows[0][1]) > float(rows[0][2])
    assert texts[7] == ""


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_interrupting_the_kernel_stops_an_answer(client: NotebookClient) -> None:
    for containing in ("AsyncZephyr()", "async def show"):
        run_cell(client, containing)
    process = nbformat.v4.new_code_cell("import os\nprint(os.getpid(), zephyr.engine_process_id)")
    client.nb.cells.append(process)
    kernel, engine = map(int, text_of(run_cell(client, "os.getpid")).split())
    (babble,) = (cell for cell in client.nb.cells if cell.cell_type == "code" and "temperature=100" in cell.source)
    babble.metadata["tags"] = ["raises-exception"]

    def interrupt() -> None:
        end_s = time.monotonic() + MOST_S
        while not babble.outputs and time.monotonic() < end_s:
            time.sleep(0.01)
        os.kill(kernel, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    run_cell(client, "temperature=100")
    interrupting.join()
    assert [output.ename for output in babble.outputs if output.output_type == "error"] == ["CancelledError"]
    begun = "".join(output.text for output in babble.outputs if output.output_type == "stream")
    after = text_of(run_cell(client, "chat.undo()"))
    assert after.startswith("4 turns; the last has")
    assert int(after.split()[5]) >= len(begun.strip()) > 0
    assert "Rome" in after
    assert int(text_of(run_cell(client, "os.getpid")).split()[1]) == engine
