"""Short clips of the toon world: what moves in them, and their frames.

A `Clip` is a list of scenes, one per frame, and where the camera is. Nothing here depends on torch.
"""

import random
from dataclasses import dataclass, replace

from PIL import Image

from scripts.toon.world.render import render
from scripts.toon.world.world import Scene, sample_scene

FRAMES = 16
CYCLES = 2  # strides, jumps or waves per clip: at 8 frames a second one a second, and the clip can be looped
POSE_SHARES = {"running": 45, "jumping": 20, "waving": 20, "sitting": 7, "standing": 8}
TRAVEL = 0.28  # of the image's width, how far a runner gets
RETURNING = ("grass", "pool")  # where runners turn half-way and come back
FOLLOWED = ("beach", "street")  # where the camera follows them past the background
DRIFT = 0.25  # of the image's width, how far the camera goes
AT_REST = (0.0,) * FRAMES  # a camera that stays


@dataclass(frozen=True)
class Clip:
    """`frames`: a scene each, alike but for x, phase and the side the subject faces.

    `camera`: for each frame how far the camera has gone, 0 to 1 times DRIFT of the width; all 0 at rest.
    """

    frames: tuple[Scene, ...]
    camera: tuple[float, ...]

    @property
    def scene(self) -> Scene:
        """The first frame's, which words describe: they name what the subject does throughout."""
        return self.frames[0]


def _scene_of_pose(rng: random.Random, pose: str) -> Scene:
    """A random training scene whose subject takes the pose; poses other than standing are animals'."""
    while True:
        scene = sample_scene(rng)
        if scene.pose == pose:
            return scene


def _run(scene: Scene) -> Clip:
    """A runner sets out to the right. The place settles whether it crosses the image, turns half-way and
    comes back, or is followed by the camera; beside a neighbour it runs on the spot."""
    progress = [i / (FRAMES - 1) for i in range(FRAMES)]
    scene = replace(scene, faces_left=False)
    if scene.neighbour not in ("nothing", "barn"):
        return Clip((scene,) * FRAMES, AT_REST)
    if scene.place in FOLLOWED:
        return Clip((scene,) * FRAMES, tuple(progress))
    returns = scene.place in RETURNING
    frames = []
    for p in progress:
        gone = 1 - abs(2 * p - 1) if returns else p
        frames.append(replace(scene, x=0.5 + TRAVEL * (gone - 0.5), faces_left=returns and p > 0.5))
    return Clip(tuple(frames), AT_REST)


def sample_clip(rng: random.Random) -> Clip:
    """A random clip. What moves how is settled by pose and place, frame by frame, so that few clips teach it:
    a movement begins at phase 0 and goes round CYCLES times."""
    scene = _scene_of_pose(rng, rng.choices(list(POSE_SHARES), list(POSE_SHARES.values()))[0])
    clip = _run(scene) if scene.pose == "running" else Clip((scene,) * FRAMES, AT_REST)
    moving = (replace(each, phase=CYCLES * i / FRAMES % 1) for i, each in enumerate(clip.frames))
    return replace(clip, frames=tuple(moving))


def draw_frame(scene: Scene, camera: float, size: int) -> Image.Image:
    """The scene at `size` pixels, out of an image wider by DRIFT whose background the camera passes."""
    wide = round(size * (1 + DRIFT))
    left = round(camera * (wide - size))
    there = replace(
        scene,
        x=(left + scene.x * size) / wide,
        ground=scene.ground * size / wide,
        scale=scene.scale * size / wide,
    )
    return render(there, wide).crop((left, wide - size, left + size, wide))


def draw_clip(clip: Clip, size: int = 64) -> list[Image.Image]:
    """Its frames, `size` x `size` pixels each."""
    if not any(clip.camera):
        return [render(scene, size) for scene in clip.frames]
    return [draw_frame(scene, camera, size) for scene, camera in zip(clip.frames, clip.camera, strict=True)]
