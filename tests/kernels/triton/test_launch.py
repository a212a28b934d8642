"""What the launchers refuse, and which form of a match they take for which sizes."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tempme_export.kernels import aot, attention, launch, match, merge
from tempme_export.kernels.launch import MatchConfig


@pytest.fixture
def tokens(device):
    """[4, 21, 64] float32 and what belongs to it; tests change one thing at a time."""
    return torch.zeros(4, 21, 64, device=device)


@pytest.fixture
def rest(device):
    """The other arguments of a merge of `tokens` with one class token and r = 5."""
    weight = torch.ones(64, device=device)
    return {
        "delta": None,
        "size": None,
        "assign": torch.zeros(4, 21, dtype=torch.int32, device=device),
        "position": None,
        "weight": weight,
        "bias": weight,
        "factor": 1,
        "n_cls": 1,
        "r": 5,
    }


@pytest.fixture
def qkv(device):
    """[2, 21, 3 * 64] for one head."""
    return torch.zeros(2, 21, 192, device=device)


class TestRows:
    @pytest.mark.parametrize("shape", [(21, 192), (1, 2, 21, 192), ()])
    def test_dimensions(self, device, shape):
        x, weight = torch.zeros(shape, device=device), torch.ones(192, device=device)
        assign = torch.zeros(2, 21, dtype=torch.int32, device=device)
        for name, run in {
            "metric": lambda: match.match_tokens(x, 1, 5),
            "qkv": lambda: match.match_keys(x, 1, 1, 5),
            "x": lambda: match.match_clips(x, None, 1, 1, 5),
            "x ": lambda: merge.merge_tokens(x, None, assign, 1, 5),
            "x  ": lambda: merge.add_norm(x, x, weight, weight),
            "x   ": lambda: merge.layer_norm(x, weight, weight),
            "qkv ": lambda: attention.attention(x, None, 1),
            "qkv  ": lambda: attention.attention_match(x, None, 1, 1, 5),
        }.items():
            with pytest.raises(ValueError, match=rf"{name.strip()} must be \[B, N, D\] float16.*found \(") as caught:
                run()
            assert f"found {shape} torch.float32" in str(caught.value)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bool], ids=str)
    def test_dtypes(self, device, dtype):
        x, weight = torch.zeros(2, 21, 192, dtype=dtype, device=device), torch.ones(192, device=device)
        for run in (
            lambda: match.match_tokens(x, 1, 5),
            lambda: match.match_keys(x, 1, 1, 5),
            lambda: match.match_clips(x, None, 1, 1, 5),
            lambda: merge.merge_tokens(x, None, weight, 1, 5),
            lambda: merge.layer_norm(x, weight, weight),
            lambda: attention.attention(x, None, 1),
            lambda: attention.attention_match(x, None, 1, 1, 5),
        ):
            with pytest.raises(ValueError, match=f"must be .* float32, found .* {dtype}"):
                run()

    @pytest.mark.parametrize("change", [lambda x: x[:2], lambda x: x[:, :20], lambda x: x.half()])
    def test_a_delta_unlike_x(self, tokens, rest, change):
        delta, weight = change(tokens), rest["weight"]
        rest["delta"] = delta
        for run in (
            lambda: match.match_clips(tokens, delta, 1, 1, 5),
            lambda: merge.merge_norm(tokens, **rest),
            lambda: merge.add_norm(tokens, delta, weight, weight),
        ):
            with pytest.raises(ValueError, match=r"delta must be \(4, 21, 64\) torch.float32 on .*, found"):
                run()


class TestDevices:
    @pytest.mark.skipif(not launch.interpreting(), reason="compiles")
    def test_interpreted_kernels_cannot_be_compiled(self, tokens, rest):
        (built,) = {
            one.variant for one in aot.launches_of(lambda: merge.add_norm(tokens, tokens, rest["weight"], rest["bias"]))
        }
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
            aot.compile(built, aot.UNIVERSAL)

    def test_tensors_on_two_devices(self, tokens, rest, qkv):
        elsewhere = "cpu" if tokens.is_cuda else "meta"
        rest["size"] = torch.ones(4, 21, device=elsewhere)
        with pytest.raises(ValueError, match=f"size must be .* on {tokens.device}, found .* on {elsewhere}"):
            merge.merge_norm(tokens, **rest)
        rest["size"], rest["delta"] = None, tokens.to(elsewhere)
        with pytest.raises(ValueError, match=f"delta must be .* on {tokens.device}, found .* on {elsewhere}"):
            merge.merge_norm(tokens, **rest)
        with pytest.raises(ValueError, match=f"bias must be .* on {qkv.device}, found .* on {elsewhere}"):
            attention.attention(qkv, torch.zeros(2, 21, device=elsewhere), 1)


class TestMerge:
    @pytest.mark.parametrize(
        ("name", "shape", "dtype", "said"),
        [
            ("assign", (4, 20), torch.int32, r"assign must be \(4, 21\) int32 on .*, found \(4, 20\) torch.int32"),
            ("assign", (3, 21), torch.int32, r"assign must be \(4, 21\) int32 on .*, found \(3, 21\)"),
            ("assign", (4, 21), torch.int64, "assign must be .* int32 on .*, found .* torch.int64"),
            ("size", (4, 20), torch.float32, r"size must be \(4, 21\) float32 on .*, found \(4, 20\)"),
            ("size", (4, 21, 1), torch.float32, r"size must be \(4, 21\) float32 on .*, found \(4, 21, 1\)"),
            ("size", (4, 21), torch.float16, "size must be .* float32 on .*, found .* torch.float16"),
            ("position", (2, 63), torch.float32, r"position must be \(2, 64\) float16 or bfloat16 or float32 on"),
            ("position", (64,), torch.float32, "position must be .*, found .64,"),
            ("position", (), torch.float32, "position must be .*, found ..? torch.float32"),
            ("position", (2, 64), torch.float64, "position must be .*, found .* torch.float64"),
            ("position", (3, 64), torch.float32, "position has 3 rows for 4 clips: expected a divisor"),
            ("position", (8, 64), torch.float32, "position has 8 rows for 4 clips: expected a divisor"),
            ("position", (0, 64), torch.float32, "position has 0 rows for 4 clips: expected a divisor"),
            ("weight", (63,), torch.float32, r"weight must be \(64,\) float16 or bfloat16 or float32 on .*, found"),
            ("bias", (64, 1), torch.float32, r"bias must be \(64,\) float16 or bfloat16 or float32 on .*, found"),
            ("bias", (64,), torch.float64, "bias must be .*, found .* torch.float64"),
        ],
    )
    def test_what_does_not_belong_to_x(self, tokens, rest, name, shape, dtype, said):
        merge.merge_norm(tokens, **rest)
        rest[name] = torch.zeros(shape, dtype=dtype, device=tokens.device)
        with pytest.raises(ValueError, match=said):
            merge.merge_norm(tokens, **rest)

    @pytest.mark.parametrize("name", ["weight", "bias"])
    def test_norms_alone(self, tokens, rest, name):
        given = {"weight": rest["weight"], "bias": rest["bias"], name: torch.ones(63, device=tokens.device)}
        for run in (
            lambda: merge.layer_norm(tokens, **given),
            lambda: merge.add_norm(tokens, tokens, **given),
        ):
            with pytest.raises(ValueError, match=rf"{name} must be \(64,\) .* found \(63,\)"):
                run()

    @pytest.mark.parametrize(("factor", "n_cls"), [(0, 1), (-2, 2), (3, 3), (2, 1), (4, 6)])
    def test_clips_that_do_not_join(self, tokens, rest, factor, n_cls):
        rest |= {"factor": factor, "n_cls": n_cls}
        for run in (
            lambda: merge.merge_norm(tokens, **rest),
            lambda: match.match_clips(tokens, None, factor, n_cls, 5),
        ):
            with pytest.raises(ValueError, match=f"4 clips with {n_cls} class tokens when joined: not multiples of"):
                run()


class TestCounts:
    # 21 tokens: with 2 class tokens |A| is 10, with 3 it is 9.
    @pytest.mark.parametrize(
        ("n_cls", "r", "n_a"), [(2, 0, 10), (2, -1, 10), (2, 11, 10), (3, 10, 9), (-1, 3, 11), (22, 1, 0)]
    )
    def test_r(self, tokens, rest, qkv, n_cls, r, n_a):
        rest |= {"n_cls": n_cls, "r": r}
        for run in (
            lambda: match.match_tokens(tokens, n_cls, r),
            lambda: match.match_keys(qkv, 1, n_cls, r),
            lambda: match.match_clips(tokens, None, 1, n_cls, r),
            lambda: merge.merge_tokens(tokens, None, rest["assign"], n_cls, r),
            lambda: merge.merge_norm(tokens, **rest),
            lambda: attention.attention_match(qkv, None, 1, n_cls, r),
        ):
            with pytest.raises(ValueError, match=rf"r = {r} of 21 tokens with {n_cls} .*\|A\| = {n_a}.*Skip the merge"):
                run()

    def test_counts(self):
        assert [launch.check_counts(21, n_cls, 1) for n_cls in (0, 1, 2, 3)] == [11, 10, 10, 9]
        assert launch.check_counts(20, 1, 9) == 9
        with pytest.raises(ValueError, match=r"\|B\| >= 1"):
            launch.check_counts(3, 2, 1)


class TestHeads:
    @pytest.mark.parametrize("heads", [0, -1, 5, 65])
    def test_that_do_not_divide_the_width(self, qkv, heads):
        for run in (
            lambda: match.match_keys(qkv, heads, 1, 5),
            lambda: attention.attention(qkv, None, heads),
            lambda: attention.attention_match(qkv, None, heads, 1, 5),
        ):
            with pytest.raises(ValueError, match=f"qkv of width 192 does not hold .* of {heads} heads"):
                run()

    @pytest.mark.parametrize(
        ("shape", "dtype"), [((2, 20), torch.float32), ((2, 21, 1), torch.float32), ((2, 21), torch.float16)]
    )
    def test_a_bias_of_another_kind(self, qkv, shape, dtype):
        bias = torch.zeros(shape, dtype=dtype, device=qkv.device)
        for run in (
            lambda: attention.attention(qkv, bias, 1),
            lambda: attention.attention_match(qkv, bias, 1, 1, 5),
        ):
            with pytest.raises(ValueError, match=r"bias must be \(2, 21\) float32 on .*, found"):
                run()


class TestTiles:
    def test_a_resident_match_of_what_does_not_fit(self, tokens):
        config = MatchConfig(True, 16, 16, 64, 4, 1)
        match.match_tokens(tokens, 1, 5, config)
        for run in (
            lambda: match.match_clips(tokens, None, 2, 2, 5, config),
            lambda: match.match_clips(tokens, tokens, 1, 1, 5, config),
            lambda: match.match_tokens(tokens, 1, 5, dataclasses.replace(config, block_c=32)),
            lambda: match.match_tokens(torch.zeros(1, 40, 64, device=tokens.device), 1, 5, config),
        ):
            with pytest.raises(ValueError, match=r"takes one tensor, unjoined, .*Set resident=False"):
                run()

    def test_the_smallest_power_of_two(self):
        assert [launch.power_of_two(n) for n in (0, 1, 2, 3, 4, 5, 64, 65)] == [1, 1, 2, 4, 4, 8, 64, 128]
        assert [launch.power_of_two(n, 16) for n in (1, 16, 17)] == [16, 16, 32]

    @pytest.mark.parametrize("items", [1, 10**6])
    @pytest.mark.parametrize("n_a", [1, 16, 17, 24, 98, 128])
    @pytest.mark.parametrize("width", [5, 64])
    def test_a_plain_match_of_head_wide_tokens_is_resident_and_fits(self, n_a, width, items):
        config = launch.match_config(n_a, width, items, plain=True)
        assert config.resident and config.block_a >= n_a and config.block_c >= width

    @pytest.mark.parametrize(("n_a", "width", "plain"), [(129, 64, True), (24, 65, True), (24, 64, False)])
    def test_any_other_match_is_streamed(self, n_a, width, plain):
        assert not launch.match_config(n_a, width, 1, plain).resident

    def test_a_large_match_does_not_go_beside_attention(self):
        assert launch.match_overlaps_attention(64, 64)
        assert not launch.match_overlaps_attention(65, 64)
        assert not launch.match_overlaps_attention(64, 65)


def test_what_is_recorded_is_not_launched(tokens, rest):
    with launch.recording() as calls:
        merged, normed, total, log_size = merge.merge_norm(tokens, **rest)
    assert [call.kernel.__name__ for call in calls] == ["merge_kernel"] and calls[0].grid[0] == 4
    for part in (merged, normed, total, log_size):
        assert part.isnan().all(), "memory as it was allocated"
    assert merge.merge_norm(tokens, **rest)[0].isfinite().all() and len(calls) == 1


class Allocating(TorchDispatchMode):
    """Keeps the memory of every tensor that is made by `torch.empty` within."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        found = operator(*args, **(kwargs or {}))
        if operator is torch.ops.aten.empty.memory_format:
            self.made.append(found.untyped_storage())
        return found


@pytest.mark.parametrize(
    "name",
    [
        *("match_keys", "match_clips", "merge_within", "merge_first", "merge_across", "add_norm", "layer_norm"),
        *("attention", "attention_bias", "attention_match"),
    ],
)
def test_a_kernel_writes_only_what_its_launcher_allocated_for_it(device, kernel_calls, name):
    """Inputs stay as they are to the bit, and no two kernels write the same memory."""
    run = kernel_calls(torch.float32, device, 2)[name]
    with launch.recording() as calls, Allocating() as allocating:
        run()
    free = {storage.data_ptr() for storage in allocating.made}
    for call in calls:
        passed = aot.arguments(call)
        written = {tensor.untyped_storage().data_ptr() for tensor in passed.outputs}
        assert written <= free and len(written) == len(passed.outputs)
        free -= written
        before = [tensor.clone() for tensor in passed.inputs]
        call.kernel[call.grid](*call.args, **call.meta)
        for tensor, kept in zip(passed.inputs, before, strict=True):
            torch.testing.assert_close(tensor, kept, rtol=0, atol=0)
