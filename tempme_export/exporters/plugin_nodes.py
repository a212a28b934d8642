"""Our nodes in `video.plugin.onnx`: the type, attributes and shapes of each, as data, without tracing a model.

A TensorRT plugin launches one kernel and allocates nothing, so a step of several kernels is a chain of nodes and what
passes between them are tensors of the graph:

- `MatchKeys`, or `SplitKeys`, `ScoreRows` and `SelectRows` where an item's A tokens do not fit one program
  (`kernels.launch`);
- `SplitClips`, `ScoreRows` and `SelectRows` over joined clips;
- `MergeNorm`, named by its further inputs: `Sized` takes the sizes so far, `Placed` clip positions.

Attributes are whole numbers. Kernels need heads, factor, n_cls and r; the others are the sizes that function bodies
would otherwise have to read off shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from tempme_export.encoder.backbone import Backbone
from tempme_export.encoder.profile import Profile
from tempme_export.encoder.schedule import Schedule
from tempme_export.kernels.launch import check_counts, match_config

Kind = Literal["T", "float16", "float32", "int32"]


@dataclass(frozen=True)
class PluginValue:
    """An input or output of a node.

    kind     "T" is the precision of the graph
    shape    the first axis counts the clips of one video
    batched  whether the first axis is multiplied by the batch; parameters are the same for every video
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    batched: bool = True


@dataclass(frozen=True)
class PluginNode:
    """One node of domain `tempme`; its plugin is `tempme::<op_type>`."""

    op_type: str
    attributes: Mapping[str, int]
    inputs: tuple[PluginValue, ...]
    outputs: tuple[PluginValue, ...]


@dataclass(frozen=True)
class Tokens:
    """The tokens that a step takes: [clips, tokens, width], of which `factor` adjacent clips count as one."""

    clips: int
    tokens: int
    width: int
    factor: int = 1

    @property
    def items(self) -> int:
        """Clips once joined."""
        return self.clips // self.factor

    @property
    def n_tokens(self) -> int:
        """Tokens of a joined clip."""
        return self.tokens * self.factor


def _sets(tokens: Tokens, n_cls: int, r: int) -> dict[str, int]:
    """Starts of sets A and B, and the output row of the first B token (spec section 4)."""
    n_b = tokens.n_tokens // 2 - n_cls // 2
    return {
        "n_cls": n_cls,
        "r": r,
        "start_a": n_cls + n_cls % 2,
        "start_b": n_cls + 1 - n_cls % 2,
        "row_b": tokens.n_tokens - r - n_b,
    }


def _joined(tokens: Tokens, n_cls: int) -> dict[str, int]:
    """Attributes of joining clips; `cls_in` class tokens lead each clip before."""
    return {
        "factor": tokens.factor,
        "tokens": tokens.tokens,
        "width": tokens.width,
        "cls_in": n_cls // tokens.factor,
    }


def _rows(tokens: Tokens, width: int) -> tuple[PluginValue, ...]:
    """Unit rows in two float16 parts, as they pass from a split to `ScoreRows`."""
    rows = (tokens.clips, tokens.tokens)
    return (
        PluginValue("high", "float16", (*rows, width)),
        PluginValue("low", "float16", (*rows, width)),
        PluginValue("scale", "float32", rows),
    )


def _score_and_select(tokens: Tokens, n_cls: int, r: int) -> tuple[PluginNode, PluginNode]:
    n_a = check_counts(tokens.n_tokens, n_cls, r)
    sets = _sets(tokens, n_cls, r)
    starts = {name: sets[name] for name in ("start_a", "start_b")}
    best = PluginValue("best", "float32", (tokens.items, n_a)), PluginValue("best_b", "int32", (tokens.items, n_a))
    score = PluginNode(
        "ScoreRows", {**_joined(tokens, n_cls), "n_cls": n_cls, **starts}, _rows(tokens, tokens.width), best
    )
    assign = PluginValue("assign", "int32", (tokens.items, tokens.n_tokens))
    select = PluginNode("SelectRows", {**sets, "n_tokens": tokens.n_tokens, "n_a": n_a}, best, (assign,))
    return score, select


def match_keys(tokens: Tokens, heads: int, n_cls: int, r: int) -> tuple[PluginNode, ...]:
    """The nodes that match keys [clips, tokens, width] by their mean over heads; the last one returns assign."""
    n_a = check_counts(tokens.tokens, n_cls, r)
    keys = PluginValue("keys", "T", (tokens.clips, tokens.tokens, tokens.width))
    head = tokens.width // heads
    if match_config(n_a, head, tokens.clips, plain=True).resident:
        attributes = {"heads": heads, **_sets(tokens, n_cls, r), "n_tokens": tokens.tokens, "n_a": n_a}
        assign = PluginValue("assign", "int32", (tokens.clips, tokens.tokens))
        return (PluginNode("MatchKeys", attributes, (keys,), (assign,)),)
    split = PluginNode("SplitKeys", {"heads": heads}, (keys,), _rows(tokens, head))
    return split, *_score_and_select(Tokens(tokens.clips, tokens.tokens, head), n_cls, r)


def match_clips(tokens: Tokens, n_cls: int, r: int) -> tuple[PluginNode, ...]:
    """The nodes that match joined clips by x + delta; the last one returns assign."""
    shape = (tokens.clips, tokens.tokens, tokens.width)
    inputs = PluginValue("x", "T", shape), PluginValue("delta", "T", shape)
    split = PluginNode("SplitClips", {}, inputs, _rows(tokens, tokens.width))
    return split, *_score_and_select(tokens, n_cls, r)


def merge_norm(tokens: Tokens, n_cls: int, r: int, *, sized: bool, positions: int = 0) -> PluginNode:
    """The node that adds, joins, merges and normalises; `positions` rows of clip positions, 0: none."""
    clips, width = tokens.clips, tokens.width
    n_out = tokens.n_tokens - r
    sets = _sets(tokens, n_cls, r)
    attributes = {**_joined(tokens, n_cls), **sets, "n_out": n_out, "n_kept": sets["row_b"] - n_cls}
    inputs = [PluginValue(name, "T", (clips, tokens.tokens, width)) for name in ("x", "delta")]
    if sized:
        inputs.append(PluginValue("size", "float32", (clips, tokens.tokens)))
    inputs.append(PluginValue("assign", "int32", (tokens.items, tokens.n_tokens)))
    if positions:
        attributes["n_positions"] = positions
        inputs.append(PluginValue("position", "T", (positions, width), batched=False))
    inputs += [PluginValue(name, "float32", (width,), batched=False) for name in ("weight", "bias")]
    outputs = [PluginValue(name, "T", (tokens.items, n_out, width)) for name in ("merged", "normed")]
    outputs += [PluginValue(name, "float32", (tokens.items, n_out)) for name in ("sizes", "log_sizes")]
    name = f"MergeNorm{'Sized' * sized}{'Placed' * (positions > 0)}"
    return PluginNode(name, attributes, tuple(inputs), tuple(outputs))


class Weightless(Protocol):
    """Part of a recipe that the nodes depend on: all but its weights."""

    @property
    def profile(self) -> Profile:
        """Names the kind of clip positions."""

    @property
    def backbone(self) -> Backbone:
        """Heads and width."""

    @property
    def schedule(self) -> Schedule:
        """Merges of every block."""


def plugin_nodes(recipe: Weightless) -> tuple[PluginNode, ...]:
    """Every node of ours in the video graph of a recipe, in execution order; empty for one that never merges."""
    heads, width = recipe.backbone.heads, recipe.backbone.width
    nodes: list[PluginNode] = []
    sized = False
    for block in recipe.schedule.blocks:
        if block.r_cross:
            tokens = Tokens(block.clips_in, block.tokens_in, width, block.factor)
            positions = block.clips_in if recipe.profile.merge.clip_position else 0
            nodes += match_clips(tokens, block.n_cls, block.r_cross)
            nodes.append(merge_norm(tokens, block.n_cls, block.r_cross, sized=sized, positions=positions))
            sized = True
        if block.r_intra:
            tokens = Tokens(block.clips, block.tokens_attention, width)
            nodes += match_keys(tokens, heads, block.n_cls, block.r_intra)
            nodes.append(merge_norm(tokens, block.n_cls, block.r_intra, sized=sized))
            sized = True
    return tuple(nodes)
