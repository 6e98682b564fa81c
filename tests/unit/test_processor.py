"""The processor as Linux and macOS describe it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from muai_lab.processor import Processor, of_cpuinfo, of_sysctl, this_processor, usable_cores

ZEN3 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu vme sse2 avx f16c fma avx2 sha_ni
bugs\t\t: sysret_ss_attrs
"""
SAPPHIRE_RAPIDS = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C
flags\t\t: avx avx2 fma avx512f avx512_vnni avx_vnni amx_bf16 amx_tile amx_int8 clflush
"""
GRAVITON3 = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes crc32 fphp asimdhp asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd40
"""
M1 = """machdep.cpu.cores_per_package: 8
machdep.cpu.brand_string: Apple M1
hw.optional.neon: 1
hw.optional.AdvSIMD: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 0
hw.optional.arm.FEAT_I8MM: 0
hw.cpufamily: 458787763
"""
MAC_INTEL = """machdep.cpu.brand_string: Intel(R) Core(TM) i7-8850H CPU @ 2.60GHz
machdep.cpu.features: FPU SSE4.1 FMA AVX1.0 F16C
machdep.cpu.leaf7_features: RDWRFSGS AVX2 BMI2
hw.optional.avx512f: 0
hw.cpufamily: 260141638
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ZEN3, Processor("AMD EPYC", "AuthenticAMD family 25 model 1", ("avx", "avx2", "f16c", "fma"))),
        (
            SAPPHIRE_RAPIDS,
            Processor(
                "Intel(R) Xeon(R) Platinum 8481C",
                "GenuineIntel family 6 model 143",
                ("amx_bf16", "amx_int8", "amx_tile", "avx", "avx2", "avx512_vnni", "avx512f", "avx_vnni", "fma"),
            ),
        ),
        (
            f"{ZEN3}\n{ZEN3.replace('avx2', 'avx2 avx512f')}",  # only what every core has can be relied on
            Processor("AMD EPYC", "AuthenticAMD family 25 model 1", ("avx", "avx2", "f16c", "fma")),
        ),
    ],
)
def test_linux_on_x86(text: str, expected: Processor) -> None:
    assert of_cpuinfo(text) == expected


def test_linux_on_arm_has_a_part_number_for_a_name() -> None:
    found = of_cpuinfo(GRAVITON3)

    assert found.family == "implementer 0x41 part 0xd40"
    assert found.instruction_sets == ("asimd", "asimddp", "asimdhp", "bf16", "fphp", "i8mm", "sve")
    assert found.name
    assert of_cpuinfo(GRAVITON3.replace("0xd40", "0xd4f")) != found


def test_macos() -> None:
    assert of_sysctl(M1) == Processor("Apple M1", "458787763", ("asimd", "asimddp"))
    assert of_sysctl(MAC_INTEL).instruction_sets == ("avx", "avx2", "f16c", "fma", "sse4_1")


@pytest.mark.parametrize("text", ["", "nonsense", "processor : 0\nhart : 1\nisa : rv64imafdc\n"])
def test_instruction_sets_that_are_not_described_are_not_known(text: str) -> None:
    assert of_cpuinfo(text).instruction_sets is None
    assert of_sysctl("").instruction_sets is None


def test_this_machine_is_described() -> None:
    assert this_processor().name
    assert this_processor() == this_processor()


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
        (  # the tightest of all groups counts
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
            },
            3,
        ),
        (  # version 1
            {
                "proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/docker/1f\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        ({"proc/self/cgroup": "2:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "many\n"}, 8),
        ({"proc/self/cgroup": "0::/../..\n"}, 8),
    ],
)
def test_a_containers_quota_bounds_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str], cores: float
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert usable_cores(tmp_path) == cores
