"""Models, from token numbers to logits: one file per architecture."""
