"""HTML and SVG put together from elements, with every piece of plain text escaped."""

from html import escape


class Markup(str):
    """Text that is markup already; `element` and `join` take it as it is and escape every other string."""

    __slots__ = ()


VOID = frozenset({"br", "col", "hr", "img", "link", "meta", "wbr"})  # HTML elements without an end tag


def join(*children: str | int | None) -> Markup:
    """The children one after another; None stands for nothing."""
    return Markup("".join(_escaped(child) for child in children if child is not None))


def element(name: str, /, *children: str | int | None, **attributes: object) -> Markup:
    """<name attributes>children</name>.

    attributes: `class_` and `data_value` mean class and data-value; True gives the bare name, None and False
    leave the attribute out.
    """
    start = name
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        start += f" {key}" if value is True else f' {key}="{escape(str(value))}"'
    if name in VOID:
        assert not children, name
        return Markup(f"<{start}>")
    return Markup(f"<{start}>{join(*children)}</{name}>")


def _escaped(child: str | int) -> str:
    return child if isinstance(child, Markup) else escape(str(child))
