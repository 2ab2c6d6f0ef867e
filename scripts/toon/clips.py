"""Short clips of the toon world: what moves in them, and their frames.

A `Clip` is a list of scenes, one per frame, and where the camera is. Nothing here depends on torch.
"""

import random
from dataclasses import dataclass, replace

from PIL import Image

from scripts.toon.render import render
from scripts.toon.world import Scene, sample_scene

FRAMES = 16
CYCLES = (1.6, 2.4)  # strides, jumps or waves per clip: at 8 frames a second about one a second
POSE_SHARES = {"running": 40, "jumping": 20, "waving": 15, "sitting": 10, "standing": 15}
DRIFT = 0.25  # of the picture's width, how far the camera follows a runner past the background


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


def _walk(rng: random.Random, scene: Scene, progress: list[float]) -> tuple[list[Scene], list[float]]:
    """A runner crosses the picture, turns half-way and comes back, or is followed by the camera."""
    forward = -1 if scene.faces_left else 1
    rest = [0.0] * len(progress)
    if scene.neighbour not in ("nothing", "barn"):
        return [scene] * len(progress), rest  # beside something: on the spot
    way = rng.choices(("across", "and back", "followed"), (40, 25, 35))[0]
    if way == "followed":
        return [scene] * len(progress), [p if forward == 1 else 1 - p for p in progress]
    travel = rng.uniform(0.24, 0.4)
    start = 0.5 - forward * travel / 2
    if way == "across":
        return [replace(scene, x=start + forward * travel * p) for p in progress], rest
    there = [min(2 * p, 2 - 2 * p) for p in progress]
    return [
        replace(scene, x=start + forward * travel * t, faces_left=scene.faces_left != (p > 0.5))
        for p, t in zip(progress, there, strict=True)
    ], rest


def sample_clip(rng: random.Random, frames: int = FRAMES) -> Clip:
    """A random clip: who runs, jumps or waves moves throughout, who stands may turn half-way, others rest."""
    pose = rng.choices(list(POSE_SHARES), list(POSE_SHARES.values()))[0]
    scene = _scene_of_pose(rng, pose)
    cycles = rng.uniform(*CYCLES)
    progress = [i / (frames - 1) for i in range(frames)]
    scenes, camera = [scene] * frames, [0.0] * frames
    if pose == "running":
        scenes, camera = _walk(rng, scene, progress)
    elif pose == "standing" and rng.random() < 0.3:
        scenes = [replace(scene, faces_left=scene.faces_left != (p > 0.5)) for p in progress]
    phases = [(scene.phase + cycles * i / frames) % 1 for i in range(frames)]
    return Clip(
        tuple(replace(each, phase=phase) for each, phase in zip(scenes, phases, strict=True)), tuple(camera)
    )


def draw_frame(scene: Scene, camera: float, size: int) -> Image.Image:
    """The scene at `size` pixels, out of a picture wider by DRIFT whose background the camera passes."""
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
