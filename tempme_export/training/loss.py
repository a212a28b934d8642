"""The symmetric contrastive loss over a whole batch (the paper's appendix A, equations 2 to 4)."""

import torch
from torch import Tensor


def contrastive_loss(text: Tensor, video: Tensor, scale: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of the text-to-video and video-to-text cross-entropies; pair i is text i with video i.

    text   [B, E] unit embeddings, float32 or wider
    video  [B, E] likewise
    scale  scalar, 1 / temperature
    valid  bool [B]; pairs that are False stand in no numerator and no denominator, whatever their rows hold, and get
           no gradient. None: all count
    Returns a scalar of the embeddings' dtype, computed outside autocast: 0 where no pair counts.
    """
    with torch.autocast(text.device.type, enabled=False):
        count = torch.full_like(scale, len(text))
        if valid is not None:
            left_out = ~valid[:, None]
            text, video = text.masked_fill(left_out, 0), video.masked_fill(left_out, 0)
            count = valid.sum().clamp(min=1)
        logits = scale * text @ video.T
        matching = logits.diagonal()
        towards_video, towards_text = logits, logits
        if valid is not None:
            towards_video = logits.masked_fill(left_out.T, -torch.inf)
            towards_text = logits.masked_fill(left_out, -torch.inf)
        per_pair = (towards_video.logsumexp(dim=1) + towards_text.logsumexp(dim=0)) / 2 - matching
        if valid is not None:
            per_pair = per_pair.masked_fill(~valid, 0)
        return per_pair.sum() / count
