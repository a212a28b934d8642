"""Schedule -> multiply-accumulates of the video tower, by part (spec section 9).

The paper's "GFLOPs" are multiply-accumulates of the video tower per video with LoRA folded; its counter
adds the element-wise work of normalisations and activations. True floating-point operations count each
multiply-accumulate twice and the element-wise work once.
"""

from dataclasses import dataclass

from tempme_export.encoder.backbone import Backbone
from tempme_export.encoder.schedule import Schedule


@dataclass(frozen=True)
class Complexity:
    """Operations per video. Products in multiply-accumulates, `elementwise` in operations."""

    patch_convolution: int
    attention_projections: int
    attention_products: int
    mlp: int
    output_projection: int
    elementwise: int

    @property
    def products(self) -> int:
        """Multiply-accumulates of all matrix products and the convolution."""
        return (
            self.patch_convolution
            + self.attention_projections
            + self.attention_products
            + self.mlp
            + self.output_projection
        )

    @property
    def gmacs(self) -> float:
        """The paper's GFLOPs."""
        return (self.products + self.elementwise) / 1e9

    @property
    def gflops(self) -> float:
        """True floating-point operations, in 1e9."""
        return (2 * self.products + self.elementwise) / 1e9


def complexity(schedule: Schedule, backbone: Backbone) -> Complexity:
    """Count the operations of `schedule` on the vision tower of `backbone` (formula of spec section 9)."""
    width, frames, tokens = backbone.width, schedule.frames, schedule.tokens_per_frame
    projections = products = mlp = elementwise = 0
    for block in schedule.blocks:
        n, m = block.tokens_attention, block.tokens_mlp
        projections += block.clips * 4 * n * width**2
        products += block.clips * 2 * n**2 * width
        mlp += block.clips * 8 * m * width**2
        elementwise += block.clips * (5 * width * (n + m) + 8 * width * m + width * n + backbone.heads * n**2)
    norms = 5 * frames * tokens * width + 5 * frames * width  # ln_pre on every token, ln_post on class tokens
    return Complexity(
        patch_convolution=frames * (tokens - 1) * 3 * backbone.patch**2 * width,
        attention_projections=projections,
        attention_products=products,
        mlp=mlp,
        output_projection=frames * width * backbone.embed,
        elementwise=elementwise + norms,
    )
