"""What a LoRA may lose of a concept's K/V unless its user says otherwise."""

# Relative, of all layers' keys and values for captions of the concept. On toon's dog rank 4 has .065 and rank
# 6 .029; the table in scripts/toon/LOG.md is by rank, whose errors there are of the weights (.236 at rank 4):
# from rank 4 on it lost no likeness, and words within the interval. An error and not a rank: toon's K/V have
# rank 128 at most, SD 1.5's 768, and how many directions a training uses depends on its steps and captions.
# Nothing was measured on SD 1.5.
LORA_ERROR = 0.05
