"""What a LoRA may lose of a concept's K/V unless its user says otherwise."""

# Of the differences' norm over all layers. On toon, rank 4 (error .23) lost a word in 3 of 96 images and
# rank 8 (.12) in 1, both within the interval, and no likeness (scripts/toon/LOG.md); this is below both. An
# error and not a rank: toon's K/V have rank 128 at most, SD 1.5's 768, and how many directions a training
# uses depends on its steps and captions. Nothing was measured on SD 1.5.
LORA_ERROR = 0.1
