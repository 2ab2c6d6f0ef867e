"""BLIP-1 and BLIP-2 behind one face: the pieces of their ITC and ITM scores.

Each equals the model's own forward, which computes all images with all captions (ITC) and encodes an image
anew for every caption (ITM). B images or captions, L tokens, V patches of an image, D width, Q query
tokens, P projection width. Features are not normalised.
"""

import torch
from torch import Tensor
from transformers import (
    BatchEncoding,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    BlipConfig,
    BlipForImageTextRetrieval,
)


class Blip1:
    """The parts of BlipForImageTextRetrieval: one vector per image, the class token's."""

    name = "BLIP-1"
    model_class = BlipForImageTextRetrieval

    def __init__(self, model: BlipForImageTextRetrieval):
        self.model = model

    @staticmethod
    def text_limit(config: BlipConfig) -> int:
        return config.text_config.max_position_embeddings

    def image_features(self, patches: Tensor) -> Tensor:
        """(B, V, D) -> (B, 1, P)"""
        return self.model.vision_proj(patches[:, :1])

    def text_features(self, tokens: BatchEncoding) -> Tensor:
        """(B, P)"""
        hidden = self.model.text_encoder(**tokens).last_hidden_state  # (B, L, D)
        return self.model.text_proj(hidden[:, 0])

    def match_logits(self, patches: Tensor, tokens: BatchEncoding) -> Tensor:
        """(B, 2): no match, match. (transformers adds a mask of the patches: all ones, and on the CPU.)"""
        hidden = self.model.text_encoder(**tokens, encoder_hidden_states=patches).last_hidden_state
        return self.model.itm_head(hidden[:, 0])


class Blip2:
    """The parts of Blip2ForImageTextRetrieval: Q vectors per image, one of each query token.

    transformers keeps the query tokens and the Q-Former in float32 when the rest is in half precision.
    """

    name = "BLIP-2"
    model_class = Blip2ForImageTextRetrieval

    def __init__(self, model: Blip2ForImageTextRetrieval):
        self.model = model

    @staticmethod
    def text_limit(config: Blip2Config) -> int:
        return config.qformer_config.max_position_embeddings

    def image_features(self, patches: Tensor) -> Tensor:
        """(B, V, D) -> (B, Q, P)"""
        queries = self.model.query_tokens.expand(len(patches), -1, -1)
        hidden = self.model.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state
        return self.model.vision_projection(hidden.to(self.model.vision_projection.weight.dtype))

    def text_features(self, tokens: BatchEncoding) -> Tensor:
        """(B, P)"""
        words = self.model.embeddings(input_ids=tokens.input_ids)
        hidden = self.model.qformer(
            query_embeds=words, query_length=0, attention_mask=tokens.attention_mask
        ).last_hidden_state  # (B, L, D)
        return self.model.text_projection(hidden[:, 0].to(self.model.text_projection.weight.dtype))

    def match_logits(self, patches: Tensor, tokens: BatchEncoding) -> Tensor:
        """(B, 2): no match, match; the mean over the query tokens."""
        queries = self.model.query_tokens.expand(len(patches), -1, -1)
        count = queries.shape[1]
        mask = torch.cat([tokens.attention_mask.new_ones(len(patches), count), tokens.attention_mask], dim=1)
        hidden = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=tokens.input_ids, query_embeds=queries),
            query_length=count,
            attention_mask=mask,
            encoder_hidden_states=patches,
        ).last_hidden_state  # (B, Q + L, D)
        return self.model.itm_head(hidden[:, :count].to(self.model.itm_head.weight.dtype)).mean(1)


FAMILIES: dict[str, type[Blip1] | type[Blip2]] = {
    family.model_class.__name__: family for family in (Blip1, Blip2)
}
