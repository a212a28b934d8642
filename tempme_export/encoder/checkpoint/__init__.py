"""A checkpoint file -> named float32 tensors, the facts their shapes tell, and what others say about the rest."""

from tempme_export.encoder.checkpoint.facts import (
    ADAPTER,
    CLIP_POSITION,
    LORA_A,
    LORA_B,
    PROMPT,
    CheckpointFacts,
    expected_shapes,
    read_facts,
)
from tempme_export.encoder.checkpoint.loading import Checkpoint, from_state_dict, load_checkpoint

__all__ = [
    "ADAPTER",
    "CLIP_POSITION",
    "LORA_A",
    "LORA_B",
    "PROMPT",
    "Checkpoint",
    "CheckpointFacts",
    "expected_shapes",
    "from_state_dict",
    "load_checkpoint",
    "read_facts",
]
