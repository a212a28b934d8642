"""`python -m tempme_export.bench.gpu.smoke`: every kernel once on small odd shapes, checked against its dense form.

For compute-sanitizer, which slows kernels down a hundredfold, and for Triton's interpreter. Exits 5 where one differs.
"""

from typing import Any

import torch
from torch import Tensor

from tempme_export.bench.kernels.calls import LAUNCHERS
from tempme_export.cli.console import show_done
from tempme_export.cli.entry import entry
from tempme_export.errors import BackendError, ParityError
from tempme_export.kernels import dense_block
from tempme_export.kernels.launch import interpreting

HEADS = 2
WIDTH = 64 * HEADS
_CLIPS, _TOKENS, _MANY, _FACTOR, _R = 2, 19, 139, 2, 5
_WITHIN = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}


def smoke_cases(dtype: torch.dtype, device: torch.device) -> list[tuple[str, tuple[Any, ...]]]:
    """Launchers by name, and arguments; together they launch every kernel."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(of).to(device)

    x, delta, position = draw(_CLIPS, _TOKENS, WIDTH), draw(_CLIPS, _TOKENS, WIDTH), draw(_CLIPS, WIDTH)
    qkv, many = draw(_CLIPS, _TOKENS, 3 * WIDTH), draw(1, _MANY, 3 * WIDTH)
    for packed in (qkv, many):
        packed[..., :WIDTH] *= 64**-0.5
    norm = draw(WIDTH, of=torch.float32), draw(WIDTH, of=torch.float32)
    size = torch.randint(1, 9, (_CLIPS, _TOKENS), generator=generator).float().to(device)
    within = dense_block.match_keys(qkv, HEADS, 1, _R)
    across = dense_block.match_clips(x, delta, _FACTOR, _FACTOR, _R)
    return [
        ("match_keys", (qkv, HEADS, 1, _R)),
        ("match_keys", (many, HEADS, 1, _R)),
        ("match_clips", (x, delta, _FACTOR, _FACTOR, _R)),
        ("merge_norm", (x, delta, None, within, None, *norm, 1, 1, _R)),
        ("merge_norm", (x, delta, size, within, None, *norm, 1, 1, _R)),
        ("merge_norm", (x, delta, size, across, position, *norm, _FACTOR, _FACTOR, _R)),
        ("add_norm", (x, delta, *norm)),
        ("layer_norm", (x, *norm)),
        ("attention", (qkv, size.log(), HEADS)),
        ("attention_match", (qkv, size.log(), HEADS, 1, _R)),
        ("attention_match", (many, None, HEADS, 1, _R)),
    ]


def _check(name: str, found: Any, expected: Any, within: float) -> None:
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for one, other in pairs:
        limit = within if one.is_floating_point() else 0.0
        try:
            torch.testing.assert_close(one.cpu(), other.cpu(), rtol=limit, atol=limit)
        except AssertionError as error:
            reason = str(error).replace("\n", " ")
            raise ParityError(f"{name} is not what its dense form computes: {reason}") from error


def run_smoke(dtypes: tuple[torch.dtype, ...], device: torch.device) -> int:
    """Run every case of every dtype; how many. Raises ParityError where a kernel differs from its dense form."""
    count = 0
    with torch.inference_mode():
        for dtype in dtypes:
            for name, arguments in smoke_cases(dtype, device):
                found = LAUNCHERS[name](*arguments)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                _check(f"{name}, {dtype}", found, getattr(dense_block, name)(*arguments), _WITHIN[dtype])
                count += 1
    return count


def _smoke() -> None:
    """Raises BackendError where there is neither GPU nor interpreter."""
    if not torch.cuda.is_available() and not interpreting():
        raise BackendError("kernels need a GPU, or TRITON_INTERPRET=1, set before the start.")
    device = torch.device("cpu" if interpreting() else "cuda")
    torch.backends.cuda.matmul.allow_tf32 = False
    count = run_smoke((torch.float32, torch.float16, torch.bfloat16), device)
    show_done(f"{count} kernel calls on {device}")


main = entry(_smoke)

if __name__ == "__main__":
    main()
