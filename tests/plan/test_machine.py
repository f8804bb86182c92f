"""What a process may take: limits of control groups, its own and those above, and of containers."""

from octavo.plan.machine import _cgroups, available_memory


def group(folder, limit, used, names=("memory.max", "memory.current")):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")


def test_every_group_above_counts(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/user.slice/job.scope\n")
    group(tmp_path / "user.slice", 1000, 300)
    group(tmp_path / "user.slice" / "job.scope", "max", 10)
    assert _cgroups(tmp_path, own) == [700]
    group(tmp_path / "user.slice" / "job.scope", 500, 600)
    assert sorted(_cgroups(tmp_path, own)) == [0, 700]


def test_a_container_sees_its_limit_at_the_root(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/a/path/of/the/host\n")
    group(tmp_path, 1000, 1)
    assert _cgroups(tmp_path, own) == [999]


def test_version_1(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("4:memory,hugetlb:/job\n1:cpu:/job\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(tmp_path / "memory" / "job", 1000, 100, names)
    group(tmp_path / "memory", 1 << 62, 0, names)
    assert sorted(_cgroups(tmp_path, own)) == [900, 1 << 62]
    assert _cgroups(tmp_path, tmp_path / "absent") == []


def test_something_is_available():
    assert 1 << 20 < available_memory() < 1 << 50
