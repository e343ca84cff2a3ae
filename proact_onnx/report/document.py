"""What a report consists of, before it is a page, Markdown or files of CSV."""

from dataclasses import dataclass

from proact_onnx.report.rendering import Table


@dataclass(frozen=True)
class Prose:
    """A paragraph.

    Attributes:
        text: Plain text.
    """

    text: str


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: Short name, for files.
        caption: What it shows, for those who do not see it, too.
        svg: The figure as SVG.
    """

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Commands:
    """Lines to type.

    Attributes:
        lines: One command each.
    """

    lines: tuple[str, ...]


Block = Prose | Picture | Commands | Table


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Attributes:
        title: The heading.
        blocks: In order.
        parts: Sections of the next level, after the blocks; a folded section has none.
        folded: Whether a page shows it only when asked to.
    """

    title: str
    blocks: tuple[Block, ...] = ()
    parts: tuple["Section", ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: Its title.
        lead: One paragraph on what it covers.
        sections: In order.
    """

    title: str
    lead: str
    sections: tuple[Section, ...]

    def tables(self) -> list[Table]:
        """All tables, in order."""
        return [block for block in self._blocks() if isinstance(block, Table)]

    def pictures(self) -> list[Picture]:
        """All figures, in order."""
        return [block for block in self._blocks() if isinstance(block, Picture)]

    def _blocks(self) -> list[Block]:
        def blocks(section: Section) -> list[Block]:
            return [*section.blocks, *(b for part in section.parts for b in blocks(part))]

        return [block for section in self.sections for block in blocks(section)]
