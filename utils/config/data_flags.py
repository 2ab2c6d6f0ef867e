"""The flags that say how a training reads its images: captions, masks, aspect ratios."""

from dataclasses import dataclass

from utils.common.flags import option


@dataclass(frozen=True)
class DataFlags:
    """How the images are read."""

    heading = "images"

    buckets: bool = option(
        False,
        "keep aspect ratios: each image is cut to the nearest of several sizes of like area, at most 10 % "
        "of it from 2:3 to 3:2, and a batch has one size (default: every image is squashed to a square)",
    )
    masked_loss: bool = option(
        False,
        "the denoising loss counts the subject alone, by dog.mask.png next to dog.jpg (white: subject) or "
        "the alpha channel; divided by the subject's area, so that its size does not matter",
    )
    caption_dropout: float = option(
        0.0, "share of instance images that come with an empty caption", minimum=0, below=1
    )
    shuffle_captions: bool = option(
        False, "the parts of a caption between commas, but the first, come in a new order each time"
    )
