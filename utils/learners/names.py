"""The names of what can train, one for each file of this folder that ends with a LEARNER.

Nothing here imports torch, for flags are checked with the names.
"""

NAMES = (
    "cross_attention_kv",
    "cross_attention",
    "token_rows",
    "layer_rows",
    "mapper",
    "unet",
    "text_encoder",
    "spectral",
)
