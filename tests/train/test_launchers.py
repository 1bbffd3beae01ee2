"""How stages are started: accelerate takes the files, and as many processes run as were asked for, or it is said."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from tests.conftest import skip_or_fail
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.launch import (
    BUNDLED,
    LAUNCHERS_FOLDER,
    LaunchOptions,
    launch_command,
    launcher_file,
    layout_here,
    layout_of,
    require_world,
)

KINDS = {"ddp": DistributedType.MULTI_GPU, "zero3": DistributedType.DEEPSPEED, "fsdp2": DistributedType.FSDP}
WORLD = """
import json, os, sys
import torch
torch.set_num_threads(1)
from accelerate import PartialState
from zephyr_local.train.launch import layout_here, require_world
state = PartialState(cpu=True)
require_world(int(sys.argv[1]))
with open(os.path.join(sys.argv[2], f"rank{state.process_index}"), "w") as out:
    json.dump([state.num_processes, layout_here()], out)
state.destroy_process_group()
"""


@pytest.mark.parametrize("name", BUNDLED)
def test_accelerate_loads_each_file(name: str) -> None:
    config = load_config_from_file(str(launcher_file(name)))
    assert config.distributed_type == KINDS[name]
    assert config.num_processes == -1  # so that nobody trains with a number that he did not give
    assert config.num_machines == 1


def test_every_key_of_a_file_is_a_flag_of_accelerate_s() -> None:
    """accelerate copies a file's keys to its flags and drops those that it does not know without a word."""
    from accelerate.commands.launch import launch_command_parser

    flags = vars(launch_command_parser().parse_args(["x.py"]))
    for name in BUNDLED:
        config = load_config_from_file(str(launcher_file(name)))
        for key in [*config.deepspeed_config, *config.fsdp_config]:
            assert key in flags, key


def test_fsdp2_s_file_builds_accelerate_s_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    flags = ["--config_file", str(launcher_file("fsdp2")), "--num_processes", "2", "--main_process_port", "0", "x.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(flags))
    for key, value in prepare_multi_gpu_env(arguments).items():
        if key.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(key, value)
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.transformer_cls_names_to_wrap == ["MistralDecoderLayer"]
    assert layout_here() == "fsdp2"


def test_zero3_s_file_builds_accelerate_s_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        skip_or_fail("deepspeed", "pip install --no-build-isolation deepspeed")
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import DeepSpeedPlugin
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    flags = ["--config_file", str(launcher_file("zero3")), "--num_processes", "2", "--main_process_port", "0", "x.py"]
    arguments, config, _ = _validate_launch_command(launch_command_parser().parse_args(flags))
    arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
    _, environment = prepare_deepspeed_cmd_env(arguments)
    for key, value in environment.items():
        if key.startswith("ACCELERATE_"):
            monkeypatch.setenv(key, value)
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == 3
    assert plugin.zero3_save_16bit_model
    assert layout_here() == "zero3"


def test_no_launcher_is_one_python() -> None:
    command = launch_command(LaunchOptions(), "zephyr_local.train.stage", ["OUT", "dsft"])
    assert command == [sys.executable, "-P", "-m", "zephyr_local.train.stage", "OUT", "dsft"]


def test_a_launcher_gets_processes_and_the_module_its_arguments() -> None:
    command = launch_command(LaunchOptions("zero3", 16), "a.b", ["--x", "1"])
    assert command[:4] == [sys.executable, "-P", "-m", "accelerate.commands.launch"]
    assert command[command.index("--config_file") + 1] == str(LAUNCHERS_FOLDER / "zero3.yaml")
    assert command[command.index("--num_processes") + 1] == "16"
    assert command[-4:] == ["--module", "a.b", "--x", "1"]


@pytest.mark.parametrize("launcher", ["torchrun", "zero3"])
def test_machines_and_where_they_meet_are_passed_on(launcher: str) -> None:
    options = LaunchOptions(launcher, 16, 2, 1, "10.0.0.1", 29501)
    command = " ".join(launch_command(options, "a.b", []))
    if launcher == "torchrun":
        assert "--nproc_per_node 8 --nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 29501" in command
    else:
        assert "--num_processes 16 --num_machines 2 --machine_rank 1" in command
        assert "--main_process_ip 10.0.0.1 --main_process_port 29501" in command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LaunchOptions(None, 2), "2 processes need a launcher"),
        (LaunchOptions("ddp", 0), "n_processes is 0"),
        (LaunchOptions("ddp", 8, 2), "where to meet"),
        (LaunchOptions("ddp", 9, 2, 0, "h", 1), "do not divide"),
        (LaunchOptions("ddp", 8, 2, 2, "h", 1), "numbered from 0 to 1"),
        (LaunchOptions("zero4", 2), "no launcher 'zero4'"),
        (LaunchOptions("../ddp", 2), "no launcher"),
        (LaunchOptions("missing.yaml", 2), "no launcher"),
    ],
)
def test_contradictions_are_refused(options: LaunchOptions, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        launch_command(options, "a.b", [])


def test_layouts_are_read_from_files_a_user_s_own_too(tmp_path: Path) -> None:
    assert [layout_of(LaunchOptions(name, 2)) for name in (None, "torchrun", *BUNDLED)] == [
        "one",
        "ddp",
        "ddp",
        "zero3",
        "fsdp2",
    ]
    own = tmp_path / "mine.json"
    own.write_text(json.dumps({"distributed_type": "MULTI_XPU", "num_processes": 4}))
    assert layout_of(LaunchOptions(own, 4)) == "ddp"
    assert str(own) in launch_command(LaunchOptions(own, 4), "a.b", [])
    for text in ("[]", "{distributed_type: XLA}", "{", "{distributed_type: [1]}"):
        bad = tmp_path / "bad.yaml"
        bad.write_text(text)
        with pytest.raises(InvalidInputError, match=r"bad\.yaml"):
            layout_of(LaunchOptions(bad, 2))


def test_one_process_is_no_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    require_world(1)
    with pytest.raises(
        InvalidInputError, match=r"2 processes should train this stage, but the launcher \(WORLD_SIZE\)"
    ):
        require_world(2)
    monkeypatch.setenv("WORLD_SIZE", "2")  # two were started, and none knows of the other
    with pytest.raises(InvalidInputError, match=r"but torch\.distributed counts 1"):
        require_world(2)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "ddp"])
def test_two_processes_run_and_know_of_each_other(launcher: str, tmp_path: Path) -> None:
    assert _started(LaunchOptions(launcher, 2), 2, tmp_path) == 0
    assert [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in (0, 1)] == [[2, "ddp"]] * 2


@pytest.mark.slow
def test_a_launcher_that_runs_one_of_two_is_found_out(tmp_path: Path) -> None:
    """accelerate runs one process for NO, whatever --num_processes says."""
    own = tmp_path / "one.yaml"
    own.write_text("{distributed_type: 'NO', use_cpu: true, num_machines: 1}")
    assert _started(LaunchOptions(own, 2), 2, tmp_path) != 0
    assert not (tmp_path / "rank0").exists()


def _started(options: LaunchOptions, expected: int, folder: Path) -> int:
    (folder / "world_probe.py").write_text(WORLD)
    command = launch_command(options, "world_probe", [str(expected), str(folder)])
    path = os.pathsep.join([str(folder), str(Path.cwd())])
    environment = os.environ | {"PYTHONPATH": path, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, timeout=240, capture_output=True, check=False).returncode
