"""PTX as text: its kernel's parameters and name, what Triton appends and nobody needs, and the assembler."""

import hashlib
import re
import subprocess
import tempfile
from pathlib import Path

_HIDDEN = 2  # Triton appends pointers to global and to profiling scratch memory to every kernel

_ENTRY = re.compile(r"\.visible \.entry (?P<name>\w+)\(\n(?P<parameters>[^)]*)\)")
_PARAMETER = re.compile(r"\.param \.(?P<type>\w+) .*?(?P<name>\w+)$")
_DEBUG_LINE = re.compile(r"^\s*\.(?:loc|file)\s.*\n", re.MULTILINE)
_DEBUG_SECTION = re.compile(r"^\s*\.section\s+\.debug_\w+\s*\{[^}]*\}\n?", re.MULTILINE)


def _entry(ptx: str) -> re.Match[str]:
    entries = list(_ENTRY.finditer(ptx))
    if len(entries) != 1:
        raise ValueError(f"the PTX has {len(entries)} entries, expected one kernel.")
    return entries[0]


def _declarations(entry: re.Match[str]) -> list[re.Match[str]]:
    lines = [line.strip() for line in entry["parameters"].strip().split(",\n")]
    found = [_PARAMETER.fullmatch(line) for line in lines]
    if None in found:
        raise ValueError(f"the PTX of {entry['name']} declares parameters in an unknown form:\n{entry['parameters']}")
    return [one for one in found if one is not None]


def parameters(ptx: str) -> tuple[str, ...]:
    """The types of the kernel's parameters, u64 for pointers and u32 for int32. Raises ValueError for other text."""
    return tuple(one["type"] for one in _declarations(_entry(ptx)))


def entry(ptx: str) -> str:
    """The kernel's name. Raises ValueError for a text that holds another number of kernels."""
    return _entry(ptx)["name"]


def name_by_content(ptx: str) -> str:
    """PTX whose kernel's name ends in a digest of the text, so that other texts name theirs otherwise.

    Builds of one kernel for other widths would share a name, and what looks kernels up by name could take one for the
    other.
    """
    end = _entry(ptx).end("name")
    return f"{ptx[:end]}_{hashlib.sha256(ptx.encode()).hexdigest()[:12]}{ptx[end:]}"


def strip_hidden_arguments(ptx: str) -> str:
    """PTX without the two pointers that Triton appends, to scratch memory that the kernel does not use.

    Raises ValueError where the last two parameters are not pointers, or are used.
    """
    entry = _entry(ptx)
    declared = _declarations(entry)
    kept, hidden = declared[:-_HIDDEN], declared[-_HIDDEN:]
    if len(hidden) < _HIDDEN or any(one["type"] != "u64" for one in hidden):
        raise ValueError(f"{entry['name']} does not end in {_HIDDEN} hidden pointers: {entry['parameters']}")
    body = ptx[entry.end() :]
    for one in hidden:
        if re.search(rf"\b{one['name']}\b", body):
            raise ValueError(f"{entry['name']} uses {one['name']}, so it cannot be left out.")
    listed = ",\n".join(f"\t{one[0]}" for one in kept)
    return f"{ptx[: entry.start('parameters')]}{listed}\n{ptx[entry.end('parameters') :]}"


def strip_debug(ptx: str) -> str:
    """PTX without line numbers and debug sections, which name folders of the machine that built it."""
    return _DEBUG_SECTION.sub("", _DEBUG_LINE.sub("", ptx))


def assemble(ptx: str, target: str) -> tuple[bytes, str]:
    """Cubin for a GPU such as sm_90, and what ptxas says about it. Raises RuntimeError where ptxas refuses."""
    from triton.backends.nvidia.compiler import get_ptxas

    tool = get_ptxas(int(re.sub(r"\D", "", target))).path
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        # The level is the one that triton 3.9 assembles with, around a bug of ptxas 13.
        command = [tool, "-v", "--regAllocOptLevel=2", f"--gpu-name={target}", source, "-o", cubin]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ptxas refused the PTX for {target}:\n{done.stderr}")
        return cubin.read_bytes(), done.stderr
