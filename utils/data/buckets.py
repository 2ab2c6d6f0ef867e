"""Aspect-ratio buckets: sizes near the training resolution's area, so that images need not become squares.

S the resolution, W, H width and height of a bucket, all in pixels.
"""

from PIL import Image

from utils.common.errors import UserError

Bucket = tuple[int, int]  # (W, H)
WIDEST = 1.5  # the promise holds from 2:3 to 3:2 …
LOSS = 0.10  # … where no image loses more of its area


def cut_share(size: tuple[int, int], bucket: Bucket) -> float:
    """The share of an image (width, height) that is cut off when it becomes a bucket's."""
    given, wanted = size[0] / size[1], bucket[0] / bucket[1]
    return 1 - min(given, wanted) / max(given, wanted)


def make_buckets(resolution: int, coarse: int, fine: int) -> list[Bucket]:
    """All W × H with 3/4 S² to S² pixels, at most 2:1, whose sides are multiples of a step; by aspect.

    The step is the coarsest of `coarse`, half of it, … down to `fine` with which no image from 2:3 to 3:2
    loses more than LOSS. coarse: pixels that the UNet's deepest layer sees as one; fine: those of one latent.
    Raises UserError for a resolution at which no step does.
    """
    step = coarse
    while step >= fine and step % fine == 0:
        buckets = _buckets(resolution, step)
        if _worst(buckets) <= LOSS:
            return buckets
        step //= 2
    raise UserError(f"--buckets: sizes near {resolution} px are too coarse: give a larger --resolution")


def bucket_of(size: tuple[int, int], buckets: list[Bucket]) -> Bucket:
    """The bucket that cuts least off an image (width, height); of two, the larger."""
    return min(buckets, key=lambda bucket: (cut_share(size, bucket), -bucket[0] * bucket[1]))


def cut_to(image: Image.Image, bucket: Bucket) -> Image.Image:
    """The largest centred part of the bucket's aspect ratio."""
    return image.crop(cut_box(image.size, bucket))


def cut_box(size: tuple[int, int], bucket: Bucket) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest centred part of the bucket's aspect ratio."""
    width, height = size
    w = min(width, max(1, round(height * bucket[0] / bucket[1])))
    h = min(height, max(1, round(width * bucket[1] / bucket[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _buckets(resolution: int, step: int) -> list[Bucket]:
    lengths = range(step, 2 * resolution + 1, step)
    area = resolution * resolution
    sizes = [(w, h) for w in lengths for h in lengths if 0.75 * area <= w * h <= area and 0.5 <= w / h <= 2]
    return sorted(sizes, key=lambda size: (size[0] / size[1], size))


def _worst(buckets: list[Bucket]) -> float:
    """The largest share that an image from 2:3 to 3:2 can lose: at an end, or halfway between two aspects."""
    aspects = sorted({w / h for w, h in buckets})
    if not aspects or aspects[0] > 1 or aspects[-1] < 1:
        return 1.0
    halfway = [(a * b) ** 0.5 for a, b in zip(aspects, aspects[1:], strict=False)]
    tried = [1 / WIDEST, WIDEST] + [aspect for aspect in halfway if 1 / WIDEST < aspect < WIDEST]
    return max(min(1 - min(t, a) / max(t, a) for a in aspects) for t in tried)
