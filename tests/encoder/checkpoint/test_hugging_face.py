"""Hugging Face's CLIP computed as Hugging Face computes it, beside open_clip's with the converted weights."""

import open_clip
import pytest
import torch
from torch.nn import functional

from tempme_export.encoder.checkpoint import from_state_dict

LAYERS, WIDTH, TEXT_WIDTH, EMBED, CONTEXT, VOCAB = 2, 128, 64, 24, 9, 50


@pytest.fixture(scope="module")
def drawn():
    """Random weights by Hugging Face's names."""
    draw = torch.Generator().manual_seed(4)
    shapes = {
        "logit_scale": (),
        "text_projection.weight": (EMBED, TEXT_WIDTH),
        "visual_projection.weight": (EMBED, WIDTH),
        "text_model.embeddings.token_embedding.weight": (VOCAB, TEXT_WIDTH),
        "text_model.embeddings.position_embedding.weight": (CONTEXT, TEXT_WIDTH),
        "vision_model.embeddings.class_embedding": (WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, 8, 8),
        "vision_model.embeddings.position_embedding.weight": (5, WIDTH),
    }
    for norm, width in (
        ("text_model.final_layer_norm", TEXT_WIDTH),
        ("vision_model.pre_layrnorm", WIDTH),
        ("vision_model.post_layernorm", WIDTH),
    ):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for tower, width in (("text_model", TEXT_WIDTH), ("vision_model", WIDTH)):
        for index in range(LAYERS):
            block = f"{tower}.encoder.layers.{index}."
            linear = {f"self_attn.{one}_proj": (width, width) for one in ("q", "k", "v", "out")}
            linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
            for name, shape in linear.items():
                shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
            for name in ("layer_norm1", "layer_norm2"):
                shapes |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
    return {name: torch.randn(shape, generator=draw) * 0.2 for name, shape in shapes.items()}


def linear(x, weights, name):
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(x, weights, name):
    return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def encode(x, weights, tower, mask):
    for index in range(LAYERS):
        block = f"{tower}.encoder.layers.{index}"
        y = norm(x, weights, f"{block}.layer_norm1")
        heads = [
            linear(y, weights, f"{block}.self_attn.{one}_proj").unflatten(-1, (-1, 64)).transpose(1, 2) for one in "qkv"
        ]
        y = functional.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + linear(y, weights, f"{block}.self_attn.out_proj")
        y = linear(norm(x, weights, f"{block}.layer_norm2"), weights, f"{block}.mlp.fc1")
        x = x + linear(functional.gelu(y), weights, f"{block}.mlp.fc2")
    return x


def image_features(pixels, weights):
    patches = functional.conv2d(pixels, weights["vision_model.embeddings.patch_embedding.weight"], stride=8)
    tokens = patches.flatten(2).transpose(1, 2)
    first = weights["vision_model.embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, tokens], 1) + weights["vision_model.embeddings.position_embedding.weight"]
    x = encode(norm(x, weights, "vision_model.pre_layrnorm"), weights, "vision_model", None)
    x = norm(x[:, 0], weights, "vision_model.post_layernorm")
    return functional.linear(x, weights["visual_projection.weight"])


def text_features(ids, weights):
    x = functional.embedding(ids, weights["text_model.embeddings.token_embedding.weight"])
    x = x + weights["text_model.embeddings.position_embedding.weight"]
    causal = torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1)
    x = norm(encode(x, weights, "text_model", causal), weights, "text_model.final_layer_norm")
    ends = x[torch.arange(len(ids)), ids.argmax(-1)]
    return functional.linear(ends, weights["text_projection.weight"])


def test_both_towers_compute_the_same(drawn, rounding):
    checkpoint = from_state_dict(drawn, "drawn")
    clip = open_clip.model.CLIP(
        embed_dim=EMBED,
        vision_cfg={"image_size": 16, "layers": LAYERS, "width": WIDTH, "patch_size": 8, "head_width": 64},
        text_cfg={
            "context_length": CONTEXT,
            "vocab_size": VOCAB,
            "width": TEXT_WIDTH,
            "heads": 1,
            "layers": LAYERS,
        },
    ).eval()
    clip.load_state_dict(checkpoint.tensors)
    draw = torch.Generator().manual_seed(5)
    pixels, ids = torch.randn(3, 3, 16, 16, generator=draw), torch.randint(1, VOCAB, (3, CONTEXT), generator=draw)
    with torch.no_grad():
        for found, expected, width in (
            (clip.encode_image(pixels), image_features(pixels, drawn), WIDTH),
            (clip.encode_text(ids), text_features(ids, drawn), TEXT_WIDTH),
        ):
            limit = rounding(torch.float32, LAYERS, width).difference
            assert ((found - expected).norm(dim=-1) <= limit * expected.norm(dim=-1)).all()
