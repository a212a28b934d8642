"""A checkpoint is what its bytes say it is, whatever its name."""

import os

import pytest
import torch
from safetensors.torch import save_file

from tempme_export.errors import TempMeExportError


def write_torch(state, path):
    torch.save(state, path)


def write_old_torch(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [save_file, write_torch, write_old_torch])
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "ckpt.pt", "ckpt.pth", "ckpt", "a.ckpt", "ckpt.safetensors", "a.tar"]
)
def test_any_name_will_do(write, name, mini_state, opened, tmp_path):
    write(mini_state, tmp_path / name)
    tensors = opened(tmp_path / name).checkpoint.tensors
    assert tensors.keys() == mini_state.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in mini_state.items())


@pytest.mark.parametrize("write", [save_file, write_torch])
def test_a_name_that_is_no_utf8(write, mini_state, opened, tmp_path):
    write(mini_state, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / os.fsdecode(b"caf\xe9's.safetensors"))
    assert opened(tmp_path / os.fsdecode(b"caf\xe9's.safetensors")).checkpoint.tensors.keys() == mini_state.keys()


@pytest.mark.parametrize(
    "content, advice",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 353976522\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"hello", "torch.save or safetensors"),
    ],
)
@pytest.mark.parametrize("name", ["ckpt.safetensors", "ckpt.pth"])
def test_other_files_are_named(content, advice, name, opened, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TempMeExportError, match=f"{name} is not a PyTorch or safetensors file.*{advice}") as caught:
        opened(tmp_path / name)
    assert caught.value.exit_code == 3
