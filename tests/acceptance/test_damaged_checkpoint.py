"""A checkpoint whose bytes are not those that were written is refused before the work, and the tensor is named."""

import json
import random
import re
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from tempme_export.errors import TempMeExportError


def refused(opened, path, *words):
    with pytest.raises(TempMeExportError) as caught:
        opened(path)
    assert caught.value.exit_code == 3
    for word in (str(path), *words):
        assert word in str(caught.value)
    return str(caught.value)


def flip(path, position, bit=0):
    with path.open("r+b") as stream:
        stream.seek(position)
        (byte,) = stream.read(1)
        stream.seek(position)
        stream.write(bytes([byte ^ (1 << bit)]))


def places(path):
    """{record: (first byte, bytes)} of an archive."""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        headers = {one.filename: (one.header_offset, one.file_size) for one in archive.infolist()}
    lengths = {
        n: [int.from_bytes(data[at + k : at + k + 2], "little") for k in (26, 28)] for n, (at, _) in headers.items()
    }
    return {name: (at + 30 + sum(lengths[name]), size) for name, (at, size) in headers.items()}


@pytest.mark.parametrize("layout", ["bare", "wrapped", "parameters"])
def test_one_flipped_bit_in_a_tensor(layout, mini_state, opened, tmp_path):
    wrap = {
        "bare": lambda state: state,
        "wrapped": lambda state: {"epoch": 3, "state_dict": state},
        "parameters": lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()},
    }[layout]
    whole, damaged = tmp_path / "whole.pth", tmp_path / "damaged.pth"
    torch.save(wrap(mini_state), whole)
    opened(whole)
    names = list(mini_state)  # torch numbers storages in this order
    draw = random.Random(5)
    for index in draw.sample(range(len(names)), 14):
        first, size = next(at for record, at in places(whole).items() if record.endswith(f"/data/{index}"))
        shutil.copy(whole, damaged)
        flip(damaged, first + draw.randrange(size), draw.randrange(8))
        message = refused(opened, damaged, "damaged", "again")
        assert re.search(rf"(?<![\w]){re.escape(names[index])} changed", message), message


def test_a_flipped_bit_in_any_other_record(mini_state, opened, tmp_path):
    whole, damaged = tmp_path / "whole.pth", tmp_path / "damaged.pth"
    torch.save(mini_state, whole)
    draw = random.Random(7)
    for record, (first, size) in places(whole).items():
        if "/data/" not in record and size:
            shutil.copy(whole, damaged)
            flip(damaged, first + draw.randrange(size), draw.randrange(8))
            refused(opened, damaged, "damaged", record)


def test_a_file_without_checksums_is_read_and_said(mini_state, opened, tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(mini_state, tmp_path / "unchecked.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert any("without checksums" in remark for remark in opened(tmp_path / "unchecked.pth").checkpoint.remarks)


@pytest.fixture
def rewritten(mini_state, tmp_path):
    """A safetensors file whose header was changed by a function, its bytes cut or extended."""

    def write(change=lambda header: None, extra=0):
        path = tmp_path / "a.safetensors"
        save_file(mini_state, path)
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        body = data[8 + length :]
        body = body + bytes(extra) if extra >= 0 else body[:extra]
        path.write_bytes(len(text).to_bytes(8, "little") + text + body)
        return path

    return write


class TestSafetensors:
    def test_as_it_was(self, rewritten, opened):
        opened(rewritten())

    def test_cut_short(self, rewritten, opened):
        message = refused(opened, rewritten(extra=-1), "truncated")
        assert "ends at byte" in message

    def test_longer(self, rewritten, opened):
        refused(opened, rewritten(extra=3), "3 bytes that belong to no tensor")

    @pytest.mark.parametrize("shift", [4, -4])
    def test_a_tensor_in_another_place(self, shift, rewritten, opened):
        def change(header):
            header["visual.proj"]["data_offsets"] = [at + shift for at in header["visual.proj"]["data_offsets"]]

        refused(opened, rewritten(change), "damaged", "visual.proj begins")

    @pytest.mark.parametrize("shape", [[64, 127], [64, 129], [64], [0, 128], [-64, -128], "64"])
    def test_a_shape_that_takes_other_bytes(self, shape, rewritten, opened):
        refused(opened, rewritten(lambda header: header["visual.proj"].update(shape=shape)), "damaged", "visual.proj")

    def test_another_type(self, rewritten, opened):
        refused(
            opened, rewritten(lambda header: header["visual.proj"].update(dtype="F16")), "damaged", "visual.proj F16"
        )

    def test_a_missing_tensor_leaves_a_hole(self, rewritten, opened):
        refused(opened, rewritten(lambda header: header.pop("visual.proj")), "damaged", "begins at byte")

    def test_broken_header(self, mini_state, opened, tmp_path):
        path = tmp_path / "a.safetensors"
        save_file(mini_state, path)
        for position in (9, 20, 60):
            save_file(mini_state, path)
            flip(path, position, 7)
            refused(opened, path)
        data = path.read_bytes()
        path.write_bytes(data[:40])
        refused(opened, path, "truncated")


def test_the_command_says_it_in_one_line(run, mini_state, tmp_path):
    path = tmp_path / "damaged.pth"
    torch.save(mini_state, path)
    first, _ = next(at for record, at in places(path).items() if record.endswith("/data/0"))
    flip(path, first)
    done = run("tempme-export", path, "--profile", "mini-8f")
    assert done.returncode == 3
    assert f"found the bytes of {next(iter(mini_state))} changed since it was written" in done.stderr
    assert sorted(tmp_path.iterdir()) == [path]
