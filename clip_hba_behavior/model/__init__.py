"""CLIP with DoRA: the frozen prefix, the trainable suffix and the features between them."""
