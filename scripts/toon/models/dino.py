"""The toon world's DINO: a ViTModel whose CLS token separates individuals, whatever the scene.

N individuals, two views of each in training: B = 2N images; D width.
"""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from scripts.toon.models.flags import DinoFlags
from scripts.toon.models.recogniser import disturb
from scripts.toon.models.training import begin, device, fit, generator, save, to_pixels
from scripts.toon.world.individuals import batch_of, class_twin, individuals, near_twin, views
from scripts.toon.world.world import KINDS

WIDTH = 128
TEMPERATURE = 0.1
MARGIN = 0.1  # by how much further, in cosine, another class must lie
# ImageNet's, as DINO has them, and its bicubic filter; only the size is toon's own.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BICUBIC = 3


def build(size: int) -> ViTModel:
    """4 x 128, a patch an eighth of the side as in data/toon/clip; no pooler, as DINO has none."""
    config = ViTConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=size,
        patch_size=size // 8,
    )
    return ViTModel(config, add_pooling_layer=False)


def move(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Flip, enlarge and shift each image (B, 3, H, W): as a generator may, who knows no ranges."""
    b = pixels.shape[0]
    scale = 1 + 0.3 * (torch.rand(b, 1, generator=rng) - 0.5)
    shift = 0.2 * (torch.rand(b, 2, generator=rng) - 0.5)
    flip = 1 - 2 * torch.randint(2, (b, 1), generator=rng)
    zero = torch.zeros(b, 1)
    matrix = torch.cat([flip * scale, zero, shift[:, :1], zero, scale, shift[:, 1:]], 1).view(b, 2, 3)
    grid = F.affine_grid(matrix, pixels.shape, align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def hidden_states(model: ViTModel, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, 1 + patches, D): the CLS token, and what it says of every patch. Images
    may be larger than those it learned from."""
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (MEAN, STD))
    shown = ((pixels + 1) / 2 - mean) / std
    return model(pixel_values=shown, interpolate_pos_encoding=True).last_hidden_state


def cls_features(model: ViTModel, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, D) float32 unit vectors: the CLS token."""
    return F.normalize(hidden_states(model, pixels)[:, 0].float(), dim=-1)


def contrastive_loss(features: Tensor, kind: Tensor) -> Tensor:
    """InfoNCE (NT-Xent, Chen et al. 2020, arXiv 2002.05709) on the CLS token itself, without a head, and with
    a margin to other classes.

    features: (2N, D) unit vectors, the i-th and the (N + i)-th of one individual; kind: (2N,) their classes.
    Each must find its other view among the 2N - 1 images; the scenes are drawn, so its disturbance is
    another place and pose.
    """
    count = len(features)
    cosine = features @ features.T + MARGIN * (kind[:, None] != kind)  # (2N, 2N)
    itself = torch.eye(count, dtype=torch.bool, device=cosine.device)
    logits = (cosine / TEMPERATURE).masked_fill(itself, -torch.inf)
    return F.cross_entropy(logits, torch.arange(count, device=logits.device).roll(count // 2))


def auc(positive: Tensor, negative: Tensor) -> float:
    """The chance that a random positive score exceeds a random negative one; ties count half."""
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive) + torch.searchsorted(ordered, positive, right=True)
    return (below.double().mean() / (2 * len(negative))).item()


def separation(features: Tensor, who: Tensor, kind: Tensor) -> dict[str, float]:
    """How far apart the pairs of images lie, each unordered pair once.

    features: (B, D) unit vectors; who, kind: (B,) individual and class of each image.
    """
    cosine = features @ features.T  # (B, B)
    pair = torch.ones_like(cosine, dtype=torch.bool).triu(1)
    same = who[:, None] == who
    kin = (kind[:, None] == kind) & ~same
    own, near, other = cosine[pair & same], cosine[pair & kin], cosine[pair & ~same]
    far = cosine[pair & ~same & ~kin]
    return {
        "auc_same_class": auc(own, near),
        "auc_any": auc(own, other),
        "same_individual": own.mean().item(),
        "same_class": near.mean().item(),
        "other_class": far.mean().item(),
    }


@torch.no_grad()
def judge(
    model: ViTModel, size: int, each: int = 20, count: int = 4, disturbed: bool = False
) -> dict[str, float]:
    """`separation` on `each` held-out individuals of every class, `count` images of each, and the mean
    cosine to an image of its twin: of another class, and with two parts otherwise.

    disturbed: moved, blurred and noisy, as generated images are; else clean renders.
    """
    looks = individuals("dino-test", [kind for kind in KINDS for _ in range(each)])
    twins = [
        [twin(look, random.Random(f"dino-test/{i}")) for i, look in enumerate(looks)]
        for twin in (class_twin, near_twin)
    ]
    features = []  # of each view of the individuals, then of their twins: (N, D)
    for view, shown in enumerate([looks] * count + twins):
        pixels = to_pixels(views(shown, f"dino-test/{view}"), size)
        if disturbed:
            rng = generator(f"dino-test/disturb/{view}")
            pixels = disturb(move(pixels, rng), rng)
        parts = [cls_features(model, part.to(model.device)).cpu() for part in pixels.split(64)]
        features.append(torch.cat(parts))
    who = torch.arange(len(looks)).repeat(count)
    found = separation(torch.cat(features[:count]), who, who // each)
    class_twins, near_twins = ((features[0] * twin).sum(1).mean().item() for twin in features[count:])
    return found | {"class_twin": class_twins, "near_twin": near_twins}


def report(model: ViTModel, size: int, each: int, count: int) -> None:
    n = each * len(KINDS)
    for name, disturbed in (("clean", False), ("disturbed", True)):
        found = judge(model, size, each, count, disturbed)
        print(
            f"dino, {n} held-out individuals, {n * count} {name} images: "
            f"AUC of same-individual pairs {found['auc_same_class']:.4f} against same-class, "
            f"{found['auc_any']:.4f} against any; "
            f"mean cosine same individual {found['same_individual']:.3f}, "
            f"same class {found['same_class']:.3f}, other class {found['other_class']:.3f}, "
            f"same look on another class {found['class_twin']:.3f}, two parts otherwise "
            f"{found['near_twin']:.3f}",
            flush=True,
        )


def loss_at(model: ViTModel, size: int, batch_size: int, seed: int) -> Callable[[int], Tensor]:
    """The loss of a step, a function of (seed, step) alone. batch_size: two images of each individual."""

    def loss_of(step: int) -> Tensor:
        data = f"{seed}/dino/{step}"
        looks = batch_of(data, batch_size // 2)
        kind = torch.tensor([KINDS.index(look.kind) for look in looks], device=device()).repeat(2)
        pixels = to_pixels(views(looks, f"{data}/0") + views(looks, f"{data}/1"), size)
        rng = generator(f"{data}/disturb")
        pixels = disturb(move(pixels, rng), rng)
        with torch.autocast(device().type, torch.bfloat16):
            features = cls_features(model, pixels.to(device()))
        return contrastive_loss(features, kind)

    return loss_of


def train(config: DinoFlags) -> None:
    """Train the ViTModel and save it with its processor."""
    begin(config, "dino")
    torch.manual_seed(config.seed)
    size = config.resolution
    model = build(size).to(device())
    loss_of = loss_at(model, size, config.batch_size, config.seed)
    fit(model, loss_of, config.steps, config.lr, config.work_dir / "dino.pt", weight_decay=0.05)
    report(model, size, each=20, count=4)
    save(model, config.output_dir)
    square = {"height": size, "width": size}
    processor = ViTImageProcessorPil(size=square, resample=BICUBIC, image_mean=MEAN, image_std=STD)
    processor.save_pretrained(config.output_dir)
    print(f"saved {config.output_dir}")
