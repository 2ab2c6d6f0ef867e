"""The personalisation methods, one row each: what trains and which losses join."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """What `--method` stands for; `--use_spl`, `--spl_weight` and `--with_prior_preservation` add to it."""

    name: str
    trains_kv: bool  # to_k and to_v of every cross-attention layer
    trains_token: bool  # the embedding rows of the modifier tokens
    spl_weight: float  # weight of the semantic preservation loss; 0: not part of the method
    uses_prior: bool  # class images always join the batch
    source: str


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        # name, trains_kv, trains_token, spl_weight, uses_prior, source
        Method("classdiffusion", True, True, 1.0, False, "Huang et al. 2024, arXiv:2405.17532"),
        Method("custom_diffusion", True, True, 0.0, False, "Kumari et al. 2023, arXiv:2212.04488"),
        Method("textual_inversion", False, True, 0.0, False, "Gal et al. 2022, arXiv:2208.01618"),
    )
}
