"""Short names of base models, the same everywhere a base can be given."""

BASES = {
    "toon": "data/toon/sd",  # embedded in this repository
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",  # the paper's
}


def base_of(name: str) -> str:
    """The folder or Hub id that a short name stands for; any other name is one already."""
    return BASES.get(name, name)
