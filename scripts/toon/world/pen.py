"""What draws a toon scene's shapes: a pen with units of its own."""

from PIL import ImageDraw

from scripts.toon.world.world import RGB

DARK: RGB = (38, 34, 40)


def shade(rgb: RGB, factor: float) -> RGB:
    return tuple(max(0, min(255, int(c * factor))) for c in rgb)


class Pen:
    """Draws in local units: x to the right of the origin, y up, times `scale` of the image's side."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, side: int, x: float, y: float, scale: float, mirror: bool = False
    ):
        self.draw, self.side, self.x, self.y, self.scale = draw, side, x, y, scale
        self.sign = -1 if mirror else 1

    def at(self, x: float, y: float) -> tuple[float, float]:
        return (self.x + self.sign * x * self.scale) * self.side, (1 - self.y - y * self.scale) * self.side

    def width(self, w: float) -> int:
        return max(1, round(w * self.scale * self.side))

    def oval(self, x: float, y: float, rx: float, ry: float, fill: RGB, line: bool = True) -> None:
        (x0, y0), (x1, y1) = self.at(x - rx, y + ry), self.at(x + rx, y - ry)
        box = (min(x0, x1), y0, max(x0, x1), y1)
        self.draw.ellipse(box, fill, shade(fill, 0.55) if line else None, self.width(0.018) if line else 0)

    def ring(
        self, x: float, y: float, rx: float, ry: float, colour: RGB, width: float, start=0, end=360
    ) -> None:
        (x0, y0), (x1, y1) = self.at(x - rx, y + ry), self.at(x + rx, y - ry)
        self.draw.arc((min(x0, x1), y0, max(x0, x1), y1), start, end, colour, self.width(width))

    def poly(self, points: list[tuple[float, float]], fill: RGB, line: bool = True) -> None:
        xy = [self.at(*point) for point in points]
        self.draw.polygon(xy, fill, shade(fill, 0.55) if line else None, self.width(0.018) if line else 0)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: RGB, line: bool = True) -> None:
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, line)

    def limb(self, points: list[tuple[float, float]], width: float, fill: RGB) -> None:
        """A thick line with round ends and a darker outline."""
        xy = [self.at(*point) for point in points]
        for w, colour in ((width + 0.03, shade(fill, 0.55)), (width, fill)):
            pixels, r = self.width(w), self.width(w) / 2
            self.draw.line(xy, colour, pixels, "curve")
            for px, py in (xy[0], xy[-1]):
                self.draw.ellipse((px - r, py - r, px + r, py + r), colour)
