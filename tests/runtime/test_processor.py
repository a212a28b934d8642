"""What /proc/cpuinfo says of int8."""

from typing import get_args

import pytest

from tempme_export.runtime.processor import INT8_ADVICE, Int8Products, flags, int8_products, videos_at_once

X86 = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nflags\t\t: fpu avx2 avx512f {}\nbugs\t\t: spectre_v1\n\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\nCPU part\t: 0xd0c\n"


@pytest.fixture
def cpuinfo(tmp_path):
    """Write a /proc/cpuinfo of a Linux machine."""

    def write(text):
        path = tmp_path / "cpuinfo"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("tokens", "videos"), [(12 * 50, 4), (12 * 197, 1), (64 * 197, 1), (8 * 17, 17), (2400, 1), (2401, 1)]
)
def test_videos_at_once(tokens, videos):
    """ViT-B/32, ViT-B/16 with 12 and 64 frames, tempme-mini."""
    assert videos_at_once(tokens) == videos


def test_flags():
    assert flags(X86.format("avx512_vnni")) == {"fpu", "avx2", "avx512f", "avx512_vnni"}
    assert flags(ARM.format("asimddp")) == {"fp", "asimd", "asimddp"}
    assert flags("") == flags("model name\t: flags of all kinds\n") == flags("flags\t\t:\n") == set()


def test_flags_are_of_the_first_processor():
    assert flags("flags : a b\n\nflags : c\n") == {"a", "b"}


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni", "amx_int8"])
def test_dot_products_of_x86(cpuinfo, flag):
    assert int8_products(cpuinfo(X86.format(flag))) == "dot product"


@pytest.mark.parametrize("flag", ["asimddp", "i8mm"])
def test_dot_products_of_arm(cpuinfo, flag):
    assert int8_products(cpuinfo(ARM.format(flag))) == "dot product"


@pytest.mark.parametrize("flag", ["", "avx512_vnni_not", "AVX_VNNI"])
def test_pairs(cpuinfo, flag):
    assert int8_products(cpuinfo(X86.format(flag))) == "pairs"


def test_unknown(cpuinfo, tmp_path):
    assert int8_products(tmp_path / "missing") == "unknown"
    assert int8_products(tmp_path) == "unknown"
    assert int8_products(cpuinfo("")) == int8_products(cpuinfo("model name\t: a CPU\n")) == "unknown"


def test_every_answer_has_its_advice():
    assert set(INT8_ADVICE) == set(get_args(Int8Products))
    assert int8_products() in INT8_ADVICE
