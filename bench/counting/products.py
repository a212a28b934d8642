"""Matrix products as they were met in execution order, and what they say of an encoder: parts and tokens per block.

The first product is the patch embedding and the last one against weights the output projection; of the others those
against weights from the encoder's width to once, twice or three times the width project for attention, and the
remaining ones against weights are the MLP's (an adapter's behind it too). Products that choose and merge tokens are
kept apart: the paper's formula charges none (spec section 9).
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tempme_export.encoder.complexity import Complexity
from tempme_export.encoder.schedule import Schedule
from tempme_export.errors import InputError, ParityError

Kind = Literal["convolution", "weights", "attention", "merging"]

_PROJECTIONS = (1, 2, 3)  # widths out of an attention's projections: output; keys and values; with queries


@dataclass(frozen=True)
class Product:
    """`batch` products of [rows, inner] with [inner, columns]; a convolution as the product of its patches."""

    kind: Kind
    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.batch * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Parts:
    """Multiply-accumulates per video, by the formula's parts; `merging` beside them, in no total."""

    patch_convolution: int
    attention_projections: int
    attention_products: int
    mlp: int
    output_projection: int
    merging: int = 0

    @property
    def products(self) -> int:
        """Of all parts but `merging`: what `Complexity.products` counts by formula."""
        return sum(count for part, count in dataclasses.asdict(self).items() if part != "merging")

    @property
    def gmacs(self) -> float:
        """`products` in 1e9."""
        return self.products / 1e9


PARTS = tuple(field.name for field in dataclasses.fields(Parts) if field.name != "merging")


def parts_of(formula: Complexity) -> Parts:
    """The formula's products, which charge no merging; its element-wise work has no second count."""
    return Parts(**{part: getattr(formula, part) for part in PARTS})


@dataclass(frozen=True)
class BlockTokens:
    """Clips per video in each block, tokens per clip that enter its attention, and its MLP."""

    clips: tuple[int, ...]
    attention: tuple[int, ...]
    mlp: tuple[int, ...]

    def rows(self) -> Iterator[tuple[int, int, int]]:
        """All three of each block."""
        return zip(self.clips, self.attention, self.mlp, strict=True)

    def to_dict(self) -> dict[str, list[int]]:
        """As a JSON object of lists, one entry per block."""
        return {name: list(counts) for name, counts in dataclasses.asdict(self).items()}


def tokens_of_schedule(schedule: Schedule) -> BlockTokens:
    """Token counts of every block, by the schedule."""
    return BlockTokens(
        tuple(block.clips for block in schedule.blocks),
        tuple(block.tokens_attention for block in schedule.blocks),
        tuple(block.tokens_mlp for block in schedule.blocks),
    )


@dataclass(frozen=True)
class Products:
    """Every product of one call, in execution order, and the videos that the call was for."""

    items: tuple[Product, ...]
    videos: int

    @property
    def of_model(self) -> tuple[Product, ...]:
        """Those that do not choose or merge tokens. Raises InputError where there are none."""
        model = tuple(one for one in self.items if one.kind != "merging")
        if not model:
            raise InputError("found no matrix product of a model, so there is nothing to count. Hand in a video tower.")
        return model

    def _ends(self) -> tuple[set[int], int | None]:
        """Places of the patch embedding and of the output projection in `of_model`."""
        model = self.of_model
        convolutions = {place for place, one in enumerate(model) if one.kind == "convolution"}
        weights = [place for place, one in enumerate(model) if one.kind == "weights"]
        first = convolutions or {0}
        return first, weights[-1] if weights and weights[-1] not in first else None

    def parts(self, width: int) -> Parts:
        """Multiply-accumulates per video of an encoder `width` channels wide.

        Raises ParityError for a count that the videos of the call do not share evenly, InputError for no count.
        """
        first, last = self._ends()
        counts = dict.fromkeys(PARTS, 0)
        for place, one in enumerate(self.of_model):
            if place in first:
                part = "patch_convolution"
            elif place == last:
                part = "output_projection"
            elif one.kind == "attention":
                part = "attention_products"
            elif one.inner == width and one.columns in [factor * width for factor in _PROJECTIONS]:
                part = "attention_projections"
            else:
                part = "mlp"
            counts[part] += one.macs
        counts["merging"] = sum(one.macs for one in self.items if one.kind == "merging")
        uneven = [part for part, count in counts.items() if count % self.videos]
        if uneven:
            raise ParityError(
                f"the {self.videos} videos of a call do not share {', '.join(uneven)} evenly: "
                f"{counts[uneven[0]]} multiply-accumulates in {uneven[0]}. Count one video at a time."
            )
        return Parts(**{part: count // self.videos for part, count in counts.items()})

    def tokens(self, width: int) -> BlockTokens:
        """Tokens per block as the shapes of the products tell them: a block begins with the product that projects
        to queries, keys and values. Raises InputError where a block has no attention or no MLP of CLIP's kind."""
        clips, attention, mlp = [], [], []
        for number, (rows, tokens, inner_rows) in enumerate(_blocks(self.of_model, width)):
            if tokens == 0 or rows % (tokens * self.videos):
                raise InputError(
                    f"block {number} projects {rows} tokens and attends over {tokens}: no encoder of CLIP."
                )
            clips.append(rows // (tokens * self.videos))
            per_clip = self.videos * clips[-1]
            if inner_rows == 0 or inner_rows % per_clip:
                raise InputError(
                    f"block {number} has {inner_rows} tokens of {per_clip} clips in its MLP: none of CLIP."
                )
            attention.append(tokens)
            mlp.append(inner_rows // per_clip)
        return BlockTokens(tuple(clips), tuple(attention), tuple(mlp))


def _blocks(model: tuple[Product, ...], width: int) -> Iterator[tuple[int, int, int]]:
    """Rows into a block, tokens that attend to each other, rows into the MLP; 0 for what it does not have."""
    starts = [
        place
        for place, one in enumerate(model)
        if one.kind == "weights" and (one.inner, one.columns) == (width, 3 * width)
    ]
    for start, end in zip(starts, [*starts[1:], len(model)], strict=True):
        block = model[start:end]
        attending = (one.rows for one in block if one.kind == "attention")
        into_mlp = (one.batch * one.rows for one in block if one.kind == "weights" and one.columns == 4 * width)
        yield block[0].batch * block[0].rows, next(attending, 0), next(into_mlp, 0)


def check_tokens(found: BlockTokens, schedule: Schedule, where: str) -> None:
    """Raise ParityError, naming each block that has other clips or tokens than `schedule`.

    where  what ran, for the message
    """
    expected = tokens_of_schedule(schedule)
    if len(found.clips) != len(expected.clips):
        raise ParityError(f"{where} ran {len(found.clips)} blocks, its schedule has {len(expected.clips)}.")
    rows = zip(found.rows(), expected.rows(), strict=True)
    wrong = [
        f"block {number}: {has[0]} clips, {has[1]} tokens in attention, {has[2]} in the MLP instead of {needed[0]}, "
        f"{needed[1]}, {needed[2]}"
        for number, (has, needed) in enumerate(rows)
        if has != needed
    ]
    if wrong:
        raise ParityError(f"{where} does not have the tokens of its schedule: {'; '.join(wrong)}.")
