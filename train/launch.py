"""How a stage's processes are started: alone, by torchrun, or by accelerate with a file; and that all of them came."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from zephyr_local.errors import InvalidInputError

LAUNCHERS_FOLDER: Final = Path(__file__).parent / "launchers"
TORCHRUN: Final = "torchrun"
BUNDLED: Final = ("ddp", "zero3", "fsdp2")

Layout = Literal["one", "ddp", "zero3", "fsdp2"]
"""What the processes share: nothing, gradients, or weights, gradients and optimiser states in parts."""


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """A stage's processes. The defaults are one process on this machine."""

    launcher: str | Path | None = None
    """None, ``torchrun``, ``ddp``, ``zero3``, ``fsdp2``, or a file of accelerate's."""
    n_processes: int = 1
    """On all machines together: one a GPU."""
    n_machines: int = 1
    machine_rank: int = 0
    main_process_ip: str | None = None
    """The address of machine 0, as the others reach it."""
    main_process_port: int | None = None


def launch_command(options: LaunchOptions, module: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs ``python -m module arguments`` in as many processes as `options` say.

    Raises InvalidInputError where the options contradict each other.
    """
    _require_consistent(options)
    python = [sys.executable, "-P"]  # a user's own train.py or datasets.py must not stand before the packages
    if options.launcher is None:
        return [*python, "-m", module, *arguments]
    if options.launcher == TORCHRUN:
        return [*python, "-m", "torch.distributed.run", *_torchrun_flags(options), "-m", module, *arguments]
    file = launcher_file(options.launcher)
    flags = ["--config_file", str(file), *_accelerate_flags(options)]
    return [*python, "-m", "accelerate.commands.launch", *flags, "--module", module, *arguments]


def launcher_file(launcher: str | Path) -> Path:
    """accelerate's file of a bundled launcher, or the user's own."""
    if str(launcher) in BUNDLED:
        return LAUNCHERS_FOLDER / f"{launcher}.yaml"
    file = Path(launcher)
    if file.suffix not in (".yaml", ".yml", ".json") or not file.is_file():
        raise InvalidInputError(
            f"there is no launcher {str(launcher)!r}",
            f"Give {TORCHRUN}, {', '.join(BUNDLED)} or accelerate's YAML file",
        )
    return file.absolute()


def layout_of(options: LaunchOptions) -> Layout:
    """What the processes of `options` share, read from the launcher's file where it is one of accelerate's."""
    if options.launcher is None:
        return "one"
    if options.launcher == TORCHRUN:
        return "ddp"
    return _layout_in(launcher_file(options.launcher))


def layout_here() -> Layout:
    """What the processes share of which this is one, by the variables that launchers set."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        return "zero3"
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "fsdp2"
    return "ddp" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "one"


def require_world(expected: int) -> None:
    """Assert that `expected` processes run, by the launcher's variable, torch's group and accelerate's state alike.

    ``accelerate launch --cpu --num_processes 2`` runs one process and says nothing; two that do not know of each other
    would both write to one folder. Raises InvalidInputError naming who counts how many.
    """
    for who, count in _worlds().items():
        if count != expected:
            raise InvalidInputError(
                f"{expected} process{'es' if expected > 1 else ''} should train this stage, but {who} counts {count}",
                "Check the launcher's file against --processes (on CPUs: torchrun, with use_cpu: true in the recipe)",
            )


def _worlds() -> dict[str, int]:
    worlds = {"the launcher (WORLD_SIZE)": int(os.environ.get("WORLD_SIZE", "1"))}
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available():
        started = distributed.is_initialized()
        worlds["torch.distributed"] = distributed.get_world_size() if started else 1
    accelerate: Any = sys.modules.get("accelerate")
    if accelerate is not None and accelerate.PartialState._shared_state:
        worlds["accelerate"] = accelerate.PartialState().num_processes
    return worlds


def _require_consistent(options: LaunchOptions) -> None:
    for name in ("n_processes", "n_machines"):
        if getattr(options, name) < 1:
            raise InvalidInputError(f"{name} is {getattr(options, name)}", "Give 1 or more")
    if options.launcher is None and options.n_processes > 1:
        raise InvalidInputError(
            f"{options.n_processes} processes need a launcher",
            f"Add --launcher, one of {TORCHRUN}, {', '.join(BUNDLED)}",
        )
    if not 0 <= options.machine_rank < options.n_machines:
        limit = f"machines are numbered from 0 to {options.n_machines - 1}"
        raise InvalidInputError(
            f"machine_rank is {options.machine_rank}, and {limit}", "Number each machine differently"
        )
    if options.n_processes % options.n_machines:
        raise InvalidInputError(
            f"{options.n_processes} processes do not divide over {options.n_machines} machines",
            "Give --processes as the number of GPUs on all machines",
        )
    if options.n_machines > 1 and not (options.main_process_ip and options.main_process_port):
        raise InvalidInputError(
            f"{options.n_machines} machines must know where to meet",
            "Give --main-process-ip and --main-process-port, alike on each machine",
        )
    if options.n_machines > 1 and options.launcher is None:
        raise InvalidInputError(f"{options.n_machines} machines need a launcher", "Add --launcher")


def _torchrun_flags(options: LaunchOptions) -> list[str]:
    flags = ["--nproc_per_node", str(options.n_processes // options.n_machines)]
    if options.n_machines == 1 and options.main_process_port is None:
        return [*flags, "--standalone"]
    flags += ["--nnodes", str(options.n_machines), "--node_rank", str(options.machine_rank)]
    return [*flags, "--master_addr", options.main_process_ip or "127.0.0.1", *_port(options, "--master_port")]


def _accelerate_flags(options: LaunchOptions) -> list[str]:
    flags = ["--num_processes", str(options.n_processes), "--num_machines", str(options.n_machines)]
    flags += ["--machine_rank", str(options.machine_rank)]
    if options.n_machines == 1 and options.main_process_port is None:
        return [*flags, "--main_process_port", "0"]  # any that is free: two runs may share a machine
    if options.main_process_ip:
        flags += ["--main_process_ip", options.main_process_ip]
    return flags + _port(options, "--main_process_port")


def _port(options: LaunchOptions, flag: str) -> list[str]:
    return [flag, str(options.main_process_port)] if options.main_process_port is not None else []


def _layout_in(file: Path) -> Layout:
    import yaml

    try:
        config = yaml.safe_load(file.read_bytes())  # JSON is YAML
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInputError(f"{file} cannot be read: {error}", "Make one with `accelerate config`") from None
    kind = config.get("distributed_type") if isinstance(config, Mapping) else None
    layouts: dict[str, Layout] = {"DEEPSPEED": "zero3", "FSDP": "fsdp2", "NO": "one"}
    if isinstance(kind, str) and kind in layouts:
        return layouts[kind]
    if isinstance(kind, str) and kind.startswith("MULTI_"):
        return "ddp"
    raise InvalidInputError(
        f"{file} has the distributed_type {kind!r}",
        "Give NO, MULTI_GPU, DEEPSPEED or FSDP, as `accelerate config` does",
    )
