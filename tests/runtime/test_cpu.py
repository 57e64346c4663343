import os

import pytest

from poolgraph.runtime.cpu import count_cores, read_cpu_info, read_cpu_quota

CPUINFO_X86 = "processor : 0\nmodel name : Some CPU @ 2 GHz\nflags : sse avx512_vnni avx2\n\nprocessor : 1\nflags : x\n"
CPUINFO_ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU architecture: 8\n"


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("text", "features"), [(CPUINFO_X86, ("avx2", "avx512_vnni", "sse")), (CPUINFO_ARM, ("asimd", "asimddp", "fp"))]
)
def test_features_of_the_first_processor(tmp_path, text, features):
    write(tmp_path, {"proc/cpuinfo": text})
    assert read_cpu_info(tmp_path).features == features


def test_model_name(tmp_path):
    write(tmp_path, {"proc/cpuinfo": CPUINFO_X86})
    assert read_cpu_info(tmp_path).model == "Some CPU @ 2 GHz"


def test_a_machine_without_proc(tmp_path):
    info = read_cpu_info(tmp_path)
    assert (info.features, info.num_cores) == ((), len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "8:pids:/x\n1:cpu,cpuacct:/not/seen/here\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "garbage\n"}, None),
    ],
)
def test_quota_of_the_control_groups(tmp_path, files, quota):
    write(tmp_path, files)
    assert read_cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(("quota", "cores"), [("50000", 1), ("199999", 1)])
def test_cores_are_whole_and_at_least_one(tmp_path, quota, cores):
    write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota} 100000\n"})
    assert count_cores(tmp_path) == cores


def test_affinity_bounds_the_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 5, 7})
    assert count_cores(tmp_path) == 3
