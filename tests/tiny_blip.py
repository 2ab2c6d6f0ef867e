"""BLIP-1 and BLIP-2 small enough for a unit test: random weights, stock classes and processors."""

from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    BlipProcessor,
    PreTrainedModel,
)

SIDE = 16
LIMIT = 24  # tokens
QUERIES = 3
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = TOWER | {"image_size": SIDE, "patch_size": 8}
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a photo of on the in wearing beach snow headphones dog cat".split()


def write_blip(folder: Path, family: str, image_token: bool = False) -> Path:
    """A saved model with its processor. `image_token`: a BLIP-2 whose forward expects Q places for the
    image before the words of every prompt, as checkpoints of today do."""
    tokenizer = BertTokenizer({word: i for i, word in enumerate(WORDS)}, model_max_length=LIMIT)
    pictures = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    text = TOWER | {"vocab_size": len(WORDS), "max_position_embeddings": LIMIT, "pad_token_id": 0}
    torch.manual_seed(0)
    if family == "BLIP-1":
        text |= {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
        config = BlipConfig(text_config=text, vision_config=VISION, image_text_hidden_size=8)
        model, processor = BlipForImageTextRetrieval(config), BlipProcessor(pictures, tokenizer)
    else:
        config = Blip2Config(
            qformer_config=text | {"use_qformer_text_input": True, "cross_attention_frequency": 1},
            vision_config=VISION,
            text_config={"model_type": "opt"},
            num_query_tokens=QUERIES,
            image_text_hidden_size=8,
            image_token_index=len(WORDS) if image_token else None,
        )
        model = Blip2ForImageTextRetrieval(config)
        processor = Blip2Processor(pictures, tokenizer, num_query_tokens=QUERIES if image_token else None)
    _stir(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def _stir(model: PreTrainedModel) -> None:
    """Large weights, query tokens and positions: as initialised, every image would score the same."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
