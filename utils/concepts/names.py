"""What a token may be called: each has a file of its name in a concept's folder.

Nothing here imports torch, for flags are checked with it.
"""

from utils.common.limits import check_file_name

# Names of weights files in a concept's folder, where each token has a file of its name.
OWN_FILES = frozenset(
    "pytorch_custom_diffusion_weights training_state delta learned_embeds token_rows layer_rows "
    "mapper cross_attention_kv unet text_encoder spectral".split()
)


def check_token(where: str, token: str, advice: str = "give a single word like <new1>") -> None:
    """Raise UserError, beginning with `where`, for a token that is not one word, or cannot name a file.

    For tokens of flags and of files alike: every path that is made of a token is made of a checked one.
    """
    check_file_name(where, token, advice, OWN_FILES, spaces=False)
