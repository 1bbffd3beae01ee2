"""What is found of a machine, from trees with the files that real ones have in /proc and /sys."""

from __future__ import annotations

import os
import shutil
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from zephyr_local.errors import OutputError
from zephyr_local.hardware import (
    CPU,
    Gpu,
    disk_of,
    find_gpus,
    gpus,
    macos,
    read_cpu,
    read_memory,
    recommended_threads,
    usable_cores,
    windows,
)
from zephyr_local.hardware.cpu import cpu_of_macos
from zephyr_local.hardware.features import of_build

GIB = 1 << 30
V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/{at} rw,relatime shared:9 master:1 - cgroup cgroup rw,{options}\n"


class Tree:
    """A root with files in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, files: Mapping[str, object]) -> Tree:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return self

    def cores(self, siblings: list[str], first_line: str = "model name\t: Some CPU") -> Tree:
        """A processor for each entry, which is its list of siblings; all online and allowed."""
        last = len(siblings) - 1
        self.add({"proc/cpuinfo": "".join(f"processor\t: {n}\n{first_line}\n\n" for n in range(last + 1))})
        self.add({"sys/devices/system/cpu/online": f"0-{last}"})
        self.add({"proc/self/status": f"Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t0-{last}"})
        for n, text in enumerate(siblings):
            self.add({f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": text})
        return self

    def allow(self, cpus: str) -> Tree:
        return self.add({"proc/self/status": f"Cpus_allowed:\tff\nCpus_allowed_list:\t{cpus}"})

    def memory(self, total_kib: int, available_kib: int, swap_kib: int = 0) -> Tree:
        text = f"MemTotal:       {total_kib} kB\nMemFree:        1000 kB\nMemAvailable:   {available_kib} kB\n"
        return self.add({"proc/meminfo": f"{text}SwapTotal:      {swap_kib} kB\nHugePages_Total:       0"})

    def group(self, path: str, mounted: str = "/") -> Tree:
        """The process in a group of cgroup v2."""
        return self.add({"proc/self/cgroup": f"0::{path}", "proc/self/mountinfo": V2_MOUNT.format(root=mounted)})

    def group_v1(self, path: str, mounted: str = "/") -> Tree:
        """The process in a group of cgroup v1, with the mounts of a distribution of its time."""
        mounts = [("cpu,cpuacct", "cpu,cpuacct"), ("memory", "memory"), ("systemd", "xattr,name=systemd")]
        return self.add(
            {
                "proc/self/cgroup": f"12:memory:{path}\n4:cpu,cpuacct:{path}\n1:name=systemd:{path}\n0::/",
                "proc/self/mountinfo": "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
                + "".join(V1_MOUNT.format(root=mounted, at=at, options=options) for at, options in mounts),
            }
        )


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# --- cores ---


def test_two_threads_of_a_core_are_one_physical_core(tree: Tree):
    cpu = read_cpu(tree.cores(["0,4", "1,5", "2,6", "3,7"] * 2).root, "x86_64")
    assert (cpu.logical_cores, cpu.physical_cores, cpu.performance_cores) == (8, 4, 4)
    assert (cpu.name, cpu.architecture, cpu.limited_by, cpu.knows_topology) == ("Some CPU", "x86-64", "", True)
    assert recommended_threads(tree.root) == 4


def hybrid_intel(tree: Tree) -> Tree:
    """Six cores with two threads each, then eight efficient ones."""
    fast = [f"{n - n % 2}-{n - n % 2 + 1}" for n in range(12)]
    tree.cores([*fast, *map(str, range(12, 20))])
    return tree.add({"sys/devices/cpu_core/cpus": "0-11", "sys/devices/cpu_atom/cpus": "12-19"})


def test_the_efficient_cores_of_a_hybrid_intel_are_left_out(tree: Tree):
    cpu = read_cpu(hybrid_intel(tree).root)
    assert (cpu.logical_cores, cpu.physical_cores, cpu.performance_cores) == (20, 14, 6)
    assert cpu.recommended_threads == 6


def test_who_may_use_only_efficient_cores_uses_them(tree: Tree):
    cpu = read_cpu(hybrid_intel(tree).allow("12-15").root)
    assert (cpu.performance_cores, cpu.recommended_threads, cpu.limited_by) == (4, 4, "affinity")


@pytest.mark.parametrize(
    ("capacities", "n_fast"),
    [
        ([414] * 4 + [1024] * 4, 4),  # RK3588: A55 and A76
        ([250] * 4 + [841] * 3 + [1024], 4),  # Snapdragon 888: the middle ones count
        ([1024] * 4, 4),
        ([485] * 4 + [1024] * 2, 2),
    ],
)
def test_the_little_cores_of_an_arm_are_left_out(tree: Tree, capacities: list[int], n_fast: int):
    tree.cores([str(n) for n in range(len(capacities))], "BogoMIPS\t: 48.00\nFeatures\t: fp asimd asimddp i8mm")
    for n, capacity in enumerate(capacities):
        core = f"sys/devices/system/cpu/cpu{n}"
        # Each cluster counts its cores from 0, all in one package.
        tree.add({f"{core}/cpu_capacity": capacity, f"{core}/topology/physical_package_id": 0})
        tree.add({f"{core}/topology/core_id": n % 4})
    tree.add({"proc/device-tree/model": "Radxa ROCK 5B\0"})
    cpu = read_cpu(tree.root, "aarch64")
    assert (cpu.physical_cores, cpu.performance_cores) == (len(capacities), n_fast)
    assert (cpu.architecture, cpu.name) == ("arm64", "Radxa ROCK 5B")
    assert cpu.features == {"neon", "dotprod", "i8mm"}


def test_an_older_kernel_tells_cores_by_their_numbers(tree: Tree):
    tree.cores([""] * 4)
    for n in range(4):
        topology = f"sys/devices/system/cpu/cpu{n}/topology"
        tree.add({f"{topology}/physical_package_id": n // 2, f"{topology}/core_id": 0})
    assert read_cpu(tree.root).physical_cores == 2


def test_without_a_topology_every_core_counts(tree: Tree):
    tree.cores(["0", "1", "2"])
    shutil.rmtree(tree.root / "sys/devices/system/cpu/cpu2")
    cpu = read_cpu(tree.root)
    assert (cpu.logical_cores, cpu.recommended_threads, cpu.knows_topology) == (3, 3, False)


def test_cpuinfo_alone_is_enough(tree: Tree):
    tree.add({"proc/cpuinfo": "processor\t: 0\nflags\t\t: avx\n\nprocessor\t: 1\nflags\t\t: avx"})
    cpu = read_cpu(tree.root)
    assert (cpu.logical_cores, cpu.machine_cores, cpu.name) == (2, 2, "")


def test_an_empty_tree_gives_a_cpu_with_a_thread(tree: Tree):
    cpu = read_cpu(tree.root)
    assert cpu.recommended_threads >= 1
    assert cpu.features == frozenset()


def test_the_affinity_counts_siblings_once(tree: Tree):
    cpu = read_cpu(tree.cores(["0-1", "0-1", "2-3", "2-3"]).allow("0-1").root)
    assert (cpu.logical_cores, cpu.physical_cores, cpu.machine_cores, cpu.limited_by) == (2, 1, 4, "affinity")


def test_a_core_that_is_off_does_not_count_though_it_is_allowed(tree: Tree):
    tree.cores(["0", "1", "2", "3"]).add({"sys/devices/system/cpu/online": "0-1"})
    assert read_cpu(tree.root).logical_cores == 2


def test_a_container_that_numbers_its_cores_anew_goes_by_the_affinity(tree: Tree):
    tree.cores(["0", "1"]).allow("5,9")  # as lxcfs shows it
    assert read_cpu(tree.root).logical_cores == 2


@pytest.mark.parametrize("text", ["", "none", "0-", "0-99999999999", "3-1", "0,,x"])
def test_a_list_of_cores_that_is_none_is_not_believed(tree: Tree, text: str):
    tree.cores(["0", "1"]).add({"sys/devices/system/cpu/online": text})
    assert read_cpu(tree.root).logical_cores == 2


@pytest.mark.parametrize(
    ("quota", "n_threads", "limited_by"),
    [
        ("max 100000", 4, ""),
        ("150000 100000", 2, "cgroup"),  # a core and a half
        ("5000 100000", 1, "cgroup"),
        ("800000 100000", 4, ""),
        ("150000 0", 4, ""),
        ("nonsense", 4, ""),
    ],
)
def test_a_quota_bounds_the_threads_rounded_up(tree: Tree, quota: str, n_threads: int, limited_by: str):
    tree.cores(["0", "1", "2", "3"]).group("/").add({"sys/fs/cgroup/cpu.max": quota})
    cpu = read_cpu(tree.root)
    assert (cpu.recommended_threads, cpu.logical_cores, cpu.limited_by) == (n_threads, n_threads, limited_by)


def test_the_quota_of_a_group_above_counts(tree: Tree):
    tree.cores(["0", "1", "2", "3"]).group("/user.slice/user-1000.slice/app.scope")
    tree.add({"sys/fs/cgroup/user.slice/cpu.max": "200000 100000"})
    tree.add({"sys/fs/cgroup/user.slice/user-1000.slice/app.scope/cpu.max": "300000 100000"})
    cpu = read_cpu(tree.root)
    assert (cpu.recommended_threads, cpu.quota_cores) == (2, 2.0)


def test_a_quota_of_cgroup_v1_counts_in_a_container_that_sees_the_names_of_the_host(tree: Tree):
    tree.cores(["0", "1", "2", "3"]).group_v1("/docker/4c5", mounted="/docker/4c5")
    at = "sys/fs/cgroup/cpu,cpuacct"
    tree.add({f"{at}/cpu.cfs_quota_us": 250000, f"{at}/cpu.cfs_period_us": 100000})
    assert read_cpu(tree.root).recommended_threads == 3
    tree.add({f"{at}/cpu.cfs_quota_us": -1})
    assert read_cpu(tree.root).recommended_threads == 4


# --- instructions ---


def test_features_have_the_words_of_llama_cpp(tree: Tree):
    tree.cores(["0"], "flags\t\t: fpu sse2 pni fma avx f16c avx2 bmi2 avx512f avx512_vnni avx_vnni amx_int8")
    words = ["amx_int8", "avx", "avx2", "avx512f", "avx512vnni", "avx_vnni", "bmi2", "f16c", "fma", "sse3"]
    assert sorted(read_cpu(tree.root).features) == words


def test_a_build_tells_its_instructions_in_the_same_words():
    x86 = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 1 | AVX512_VNNI = 1 | AMX_INT8 = 0 | LLAMAFILE = 1 | OPENMP = 1 | "
    assert of_build(x86) == {"sse3", "avx2", "avx512f", "avx512vnni"}
    arm = "MTL : EMBED_LIBRARY = 1 | CPU : NEON = 1 | ARM_FMA = 1 | MATMUL_INT8 = 1 | SVE_CNT = 16 | DOTPROD = 1 | "
    assert of_build(arm) == {"neon", "i8mm", "dotprod"}
    assert of_build("") == set()


# --- macOS and Windows: what their systems answer ---

M2 = """\
hw.ncpu: 8
hw.memsize: 17179869184
hw.perflevel0.physicalcpu: 4
hw.perflevel1.physicalcpu: 4
hw.physicalcpu: 8
hw.logicalcpu: 8
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 0
hw.optional.AdvSIMD: 1
machdep.cpu.brand_string: Apple M2
vm.swapusage: total = 2048.00M  used = 926.75M  free = 1121.25M  (encrypted)
"""


def test_an_apple_cpu_has_fast_and_efficient_cores():
    sysctl = macos.parsed_sysctl(M2 + "sysctl.proc_translated: 0")
    cpu = cpu_of_macos(sysctl, "arm64")
    assert (cpu.name, cpu.physical_cores, cpu.performance_cores, cpu.is_translated) == ("Apple M2", 8, 4, False)
    assert cpu.features == {"neon", "dotprod", "i8mm"}
    assert macos.swap_bytes(sysctl) == 2 * GIB


def test_a_python_that_rosetta_translates_is_known():
    sysctl = macos.parsed_sysctl(M2 + "sysctl.proc_translated: 1")
    assert cpu_of_macos(sysctl, "x86-64").is_translated


def test_an_intel_mac_tells_its_instructions():
    text = "hw.physicalcpu: 4\nhw.logicalcpu: 8\nmachdep.cpu.features: FPU SSE3 FMA AVX1.0 F16C\n"
    cpu = cpu_of_macos(macos.parsed_sysctl(text + "machdep.cpu.leaf7_features: BMI2 AVX2 AVX512F"), "x86-64")
    assert cpu.features == {"sse3", "fma", "avx", "f16c", "bmi2", "avx2", "avx512f"}
    assert (cpu.logical_cores, cpu.recommended_threads) == (8, 4)


def test_a_silent_sysctl_gives_a_cpu_with_a_thread():
    cpu = cpu_of_macos({}, "arm64")
    assert cpu.recommended_threads == usable_cores()
    assert not cpu.knows_topology


def test_vm_stat_counts_what_can_be_had():
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10000.\nPages active:                            250000.\n"
        "Pages inactive:                           20000.\nPages speculative:                         3000.\n"
        '"Translation faults":                 1234567.\n'
    )
    assert macos.parsed_vm_stat(text) == 33000 * 16384
    assert macos.parsed_vm_stat("") is None


def windows_core(efficiency: int, *masks: tuple[int, int]) -> bytes:
    """SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX of a core: (mask, group) of each of its groups."""
    affinities = b"".join(struct.pack("<QHHHH", mask, group, 0, 0, 0) for mask, group in masks)
    return struct.pack("<II", 0, 32 + len(affinities)) + struct.pack("<BB20xH", 1, efficiency, len(masks)) + affinities


def test_windows_tells_cores_with_their_class_and_threads():
    package = struct.pack("<II", 3, 48) + bytes(40)
    data = windows_core(1, (0b0011, 0)) + package + windows_core(0, (0b0100, 0)) + windows_core(0, (0b1000, 0))
    cores = windows.usable_cores_of(data, None)
    assert [(core.efficiency, core.n_threads) for core in cores] == [(1, 2), (0, 1), (0, 1)]
    assert [core.n_threads for core in windows.usable_cores_of(data, 0b0101)] == [1, 1]


@pytest.mark.parametrize("data", [b"", bytes(32), windows_core(0, (1, 0))[:-1], struct.pack("<II24x", 0, 1 << 30)])
def test_what_windows_would_not_say_is_no_core(data: bytes):
    assert windows.usable_cores_of(data, None) == ()


def test_windows_counts_memory_and_page_file():
    status = struct.pack("<II7Q", 64, 30, 16 * GIB, 9 * GIB, 20 * GIB, 8 * GIB, 1 << 47, 1 << 46, 0)
    assert windows.parsed_memory_status(status) == (16 * GIB, 9 * GIB, 4 * GIB)


# --- memory ---


def test_memory_is_what_the_kernel_calls_available(tree: Tree):
    memory = read_memory(tree.memory(16 << 20, 10 << 20, 2 << 20).root)
    assert (memory.total_bytes, memory.available_bytes, memory.swap_bytes) == (16 * GIB, 10 * GIB, 2 * GIB)
    assert (memory.machine_bytes, memory.limited_by) == (16 * GIB, "")


def test_a_container_has_the_memory_that_its_group_leaves(tree: Tree):
    tree.memory(64 << 20, 50 << 20, 8 << 20).group("/")
    tree.add(
        {
            "sys/fs/cgroup/memory.max": 8 * GIB,
            "sys/fs/cgroup/memory.high": "max",
            "sys/fs/cgroup/memory.current": 3 * GIB,
            "sys/fs/cgroup/memory.swap.max": 0,
            "sys/fs/cgroup/memory.stat": f"anon {GIB}\nactive_file {GIB // 2}\ninactive_file {GIB}\nfile 5",
        }
    )
    memory = read_memory(tree.root)
    assert (memory.total_bytes, memory.available_bytes, memory.machine_bytes) == (8 * GIB, 6 * GIB, 64 * GIB)
    assert (memory.limited_by, memory.swap_bytes) == ("cgroup", 0)


def test_every_limit_from_the_group_to_the_root_counts(tree: Tree):
    tree.memory(64 << 20, 50 << 20).group("/a slice/b.scope")
    group = "sys/fs/cgroup/a slice"
    tree.add({f"{group}/memory.max": "max", f"{group}/memory.high": 20 * GIB, f"{group}/memory.current": 19 * GIB})
    tree.add({f"{group}/b.scope/memory.max": 10 * GIB, f"{group}/b.scope/memory.current": GIB})
    memory = read_memory(tree.root)
    assert (memory.total_bytes, memory.available_bytes) == (10 * GIB, GIB)  # the neighbours have the rest


def test_a_group_with_more_than_the_machine_has_is_no_limit(tree: Tree):
    tree.memory(16 << 20, 10 << 20).group("/").add({"sys/fs/cgroup/memory.max": 32 * GIB})
    memory = read_memory(tree.root)
    assert (memory.total_bytes, memory.available_bytes, memory.limited_by) == (16 * GIB, 10 * GIB, "")


def test_a_group_that_is_full_leaves_a_byte_not_an_unknown(tree: Tree):
    tree.memory(16 << 20, 10 << 20).group("/")
    tree.add({"sys/fs/cgroup/memory.max": GIB, "sys/fs/cgroup/memory.current": 2 * GIB})
    assert read_memory(tree.root).available_bytes == 1


@pytest.mark.parametrize(("path", "mounted"), [("/docker/4c5", "/docker/4c5"), ("/", "/"), ("/../..", "/")])
def test_a_limit_of_cgroup_v1_counts(tree: Tree, path: str, mounted: str):
    tree.memory(64 << 20, 50 << 20).group_v1(path, mounted)
    at = "sys/fs/cgroup/memory"
    tree.add({f"{at}/memory.limit_in_bytes": 4 * GIB, f"{at}/memory.usage_in_bytes": 2 * GIB})
    tree.add({f"{at}/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB}"})
    memory = read_memory(tree.root)
    assert (memory.total_bytes, memory.available_bytes, memory.limited_by) == (4 * GIB, 3 * GIB, "cgroup")


def test_the_groups_above_count_in_cgroup_v1(tree: Tree):
    tree.memory(64 << 20, 50 << 20).group_v1("/batch/job7")
    tree.add({"sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712})
    tree.add({"sys/fs/cgroup/memory/batch/memory.limit_in_bytes": 6 * GIB})
    tree.add({"sys/fs/cgroup/memory/batch/job7/memory.limit_in_bytes": 9223372036854771712})
    assert read_memory(tree.root).total_bytes == 6 * GIB


def test_cgroup_v1_without_a_limit_is_none(tree: Tree):
    tree.memory(16 << 20, 10 << 20).group_v1("/").add(
        {"sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712}
    )
    memory = read_memory(tree.root)
    assert (memory.total_bytes, memory.limited_by) == (16 * GIB, "")


def test_a_mount_with_a_blank_in_its_name_is_found(tree: Tree):
    tree.memory(16 << 20, 10 << 20).group("/")
    tree.add({"proc/self/mountinfo": r"30 23 0:26 / /sys/fs/c\040group rw shared:1 - cgroup2 none rw"})
    tree.add({"sys/fs/c group/memory.max": GIB})
    assert read_memory(tree.root).total_bytes == GIB


@pytest.mark.parametrize(
    ("line", "counted", "name"),
    [("Max address space", "VmSize", "RLIMIT_AS"), ("Max data size", "VmData", "RLIMIT_DATA")],
)
def test_a_limit_of_the_process_counts(tree: Tree, line: str, counted: str, name: str):
    tree.memory(64 << 20, 50 << 20).add({"proc/self/status": f"{counted}:\t  {1 << 20} kB"})
    head = "Limit                     Soft Limit           Hard Limit           Units\n"
    limits = f"{head}Max file size             unlimited            unlimited            bytes\n"
    tree.add({"proc/self/limits": f"{limits}{line:26}{8 * GIB:<21}unlimited            bytes"})
    memory = read_memory(tree.root)
    assert (memory.total_bytes, memory.available_bytes, memory.limited_by) == (8 * GIB, 7 * GIB, name)
    tree.add({"proc/self/limits": f"{limits}{line:26}unlimited            unlimited            bytes"})
    assert read_memory(tree.root).limited_by == ""


def test_a_kernel_that_does_not_say_what_is_available_says_what_is_free(tree: Tree):
    tree.add({"proc/meminfo": "MemTotal: 4000 kB\nMemFree: 1000 kB\nBuffers: 200 kB\nCached: 300 kB"})
    assert read_memory(tree.root).available_bytes == 1500 << 10


@pytest.mark.parametrize("text", ["", "MemTotal: lots kB", "MemTotal:\n\0\xff", "MemTotal: 4000 MB", "²"])
def test_what_is_no_memory_is_not_known(tree: Tree, text: str):
    memory = read_memory(tree.add({"proc/meminfo": text}).root)
    assert (memory.total_bytes, memory.available_bytes) == (0, 0)


def test_a_group_says_how_much_there_is_where_the_machine_does_not(tree: Tree):
    tree.group("/").add({"sys/fs/cgroup/memory.max": GIB})
    memory = read_memory(tree.root)
    assert (memory.total_bytes, memory.available_bytes, memory.limited_by) == (GIB, GIB, "cgroup")


@pytest.mark.parametrize("text", ["12:memory", "::::", "0::/\n0::/x\0", "x" * 5000])
def test_groups_that_are_none_limit_nothing(tree: Tree, text: str):
    tree.memory(16 << 20, 10 << 20).add({"proc/self/cgroup": text, "proc/self/mountinfo": "1 2 - cgroup2\n - \n\n"})
    assert read_memory(tree.root).limited_by == ""


def test_a_group_cannot_lead_out_of_its_mount(tree: Tree):
    tree.memory(16 << 20, 10 << 20).group("/../../../escaped").add({"escaped/memory.max": 5})
    assert read_memory(tree.root).limited_by == ""


# --- this machine ---


def test_this_machine_has_what_it_needs_to_run_this():
    cpu, memory = read_cpu(), read_memory()
    assert 1 <= cpu.recommended_threads <= cpu.physical_cores <= cpu.logical_cores <= usable_cores()
    assert cpu.logical_cores <= cpu.machine_cores
    assert 0 < memory.available_bytes <= memory.total_bytes <= memory.machine_bytes


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity to set")
def test_the_affinity_of_this_process_is_heeded():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        cpu = read_cpu()
    finally:
        os.sched_setaffinity(0, before)
    assert (cpu.logical_cores, cpu.physical_cores, cpu.recommended_threads) == (1, 1, 1)


# --- disk ---


def test_a_path_that_does_not_exist_is_on_the_disk_of_its_folder(tmp_path: Path):
    disk = disk_of(tmp_path / "not" / "yet" / "there")
    assert disk.folder == tmp_path
    assert disk.is_writable
    assert 0 < disk.free_bytes <= disk.total_bytes == shutil.disk_usage(tmp_path).total


def test_a_path_below_a_file_is_on_its_disk(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert disk_of(tmp_path / "file" / "below").total_bytes == shutil.disk_usage(tmp_path).total


def test_a_relative_path_counts_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert disk_of(Path("models")).folder == tmp_path


def test_a_loop_of_links_meets_an_error(tmp_path: Path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match="loop"):
        disk_of(tmp_path / "loop")


# --- GPUs ---

posix = pytest.mark.skipif(sys.platform == "win32", reason="the programs are scripts of a shell")


def program(tree: Tree, script: str, folder: str = "bin") -> str:
    """An nvidia-smi; returns the folder to look for it in."""
    tree.add({f"{folder}/nvidia-smi": f"#!/bin/sh\n{script}"})
    (tree.root / folder / "nvidia-smi").chmod(0o755)
    return str(tree.root / folder)


def with_driver(tree: Tree) -> Tree:
    version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
    return tree.add({"proc/driver/nvidia/version": f"{version}GCC version:  gcc version 12.3.0", "dev/nvidia0": ""})


def test_a_machine_without_gpus_has_none(tree: Tree):
    assert find_gpus(tree.root, "") == ()


@posix
def test_nvidia_smi_names_the_gpus(tree: Tree):
    query = "--query-gpu=name,memory.total,driver_version,compute_cap --format=csv,noheader,nounits"
    path = program(
        with_driver(tree),
        f'test "$*" = "{query}" || exit 2\n'
        "echo 'NVIDIA GeForce RTX 4090, 24564, 550.54.15, 8.9'\necho 'NVIDIA H100, PCIe, 81559, 550.54.15, 9.0'",
    )
    assert find_gpus(tree.root, path) == (
        Gpu("nvidia", "NVIDIA GeForce RTX 4090", 24564 << 20, "550.54.15", "8.9"),
        Gpu("nvidia", "NVIDIA H100, PCIe", 81559 << 20, "550.54.15", "9.0"),
    )


@posix
def test_memory_that_nvidia_smi_does_not_tell_is_not_known(tree: Tree):
    path = program(tree, "echo 'NVIDIA GB10, [N/A], 580.95.05, 12.1'")
    assert find_gpus(tree.root, path) == (Gpu("nvidia", "NVIDIA GB10", 0, "580.95.05", "12.1"),)


@posix
def test_an_older_nvidia_smi_is_asked_for_less(tree: Tree):
    refusal = 'Field "compute_cap" is not a valid field to query.'
    path = program(
        tree, f"case $1 in *compute_cap*) echo '{refusal}'; exit 2;; esac\necho 'Tesla K80, 11441, 450.80.02'"
    )
    assert find_gpus(tree.root, path) == (Gpu("nvidia", "Tesla K80", 11441 << 20, "450.80.02"),)


@posix
def test_what_nvidia_smi_complains_of_is_told(tree: Tree):
    said = "Failed to initialize NVML: Driver/library version mismatch"
    path = program(with_driver(tree), f"echo '{said}'; echo 'NVML library version: 550'; exit 18")
    tree.add({"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA RTX A2000\nIRQ:   \t\t 166"})
    (gpu,) = find_gpus(tree.root, path)
    assert (gpu.name, gpu.driver, gpu.trouble) == ("NVIDIA RTX A2000", "535.104.05", said)


@posix
def test_an_nvidia_smi_that_hangs_is_given_up(tree: Tree, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpus, "_ASK_S", 0.2)
    path = program(with_driver(tree), "exec sleep 60")
    (gpu,) = find_gpus(tree.root, path)
    assert "did not answer" in gpu.trouble


@posix
@pytest.mark.parametrize("script", ["exit 0", "echo nonsense", "echo a,b", "printf '\\377\\376,1,2,3,4'; exit 1"])
def test_an_nvidia_smi_that_says_nothing_of_use_is_no_gpu(tree: Tree, script: str):
    assert find_gpus(tree.root, program(tree, script)) == ()


def test_a_driver_alone_is_a_gpu_without_a_name(tree: Tree):
    assert find_gpus(with_driver(tree).root, "") == (Gpu("nvidia", driver="535.104.05"),)


def test_a_container_that_was_given_no_gpu_is_told_so(tree: Tree):
    (with_driver(tree).root / "dev/nvidia0").unlink()
    (gpu,) = find_gpus(tree.root, "")
    assert "a container has to be given the GPU" in gpu.trouble


def test_cards_without_a_driver_are_told(tree: Tree):
    for slot, vendor, kind in [
        ("01:00.0", "0x10de", "0x030000"),
        ("01:00.1", "0x10de", "0x040300"),  # its sound
        ("02:00.0", "0x10de", "0x030200"),  # of a server
        ("03:00.0", "0x8086", "0x030000"),
    ]:
        folder = f"sys/bus/pci/devices/0000:{slot}"
        tree.add({f"{folder}/vendor": vendor, f"{folder}/class": kind})
    found = find_gpus(tree.root, "")
    assert [gpu.vendor for gpu in found] == ["nvidia", "nvidia"]
    assert all("no driver" in gpu.trouble for gpu in found)


@posix
def test_the_program_of_windows_is_found_in_wsl(tree: Tree):
    program(tree, "echo 'NVIDIA RTX 3060, 12288, 551.23, 8.6'", "usr/lib/wsl/lib")
    (gpu,) = find_gpus(tree.root, "")
    assert gpu.memory_bytes == 12 * GIB


def test_an_amd_gpu_is_found_by_its_card(tree: Tree):
    card = "sys/class/drm/card1/device"
    tree.add({f"{card}/vendor": "0x1002", f"{card}/mem_info_vram_total": 24 * GIB, "dev/kfd": ""})
    tree.add({"sys/class/drm/card1-DP-1/device/vendor": "0x1002", "sys/class/drm/card0/device/vendor": "0x8086"})
    assert find_gpus(tree.root, "") == (Gpu("amd", memory_bytes=24 * GIB),)
    (tree.root / "dev/kfd").unlink()
    assert "/dev/kfd" in find_gpus(tree.root, "")[0].trouble


def test_a_cpu_recommends_at_least_a_thread():
    assert CPU("", "x86-64", frozenset(), 0, 0, 0, 0).recommended_threads == 1
