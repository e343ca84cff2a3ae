"""A report as one HTML page that needs nothing beside itself: no script, no network, no file."""

import base64
import importlib.metadata

from proact_onnx.report.document import Block, Commands, Document, Prose, Section
from proact_onnx.report.files import slug
from proact_onnx.report.rendering import Table, escape_html, to_html

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --ink: #1d2126; --soft: #5b636d; --line: #dde0e4; --shade: #f3f4f5;
  --accent: #0b5d94;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --ink: #dfe3e7; --soft: #9aa3ad; --line: #333a42; --shade: #1e2329;
    --accent: #7cbdea;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 66rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 0.75rem; overflow-wrap: anywhere; }
h2 {
  font-size: 1.35rem; margin: 3.5rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--line);
}
h3 { font-size: 1.08rem; margin: 2.25rem 0 0.75rem; }
h4 { font-size: 1rem; margin: 1.75rem 0 0.5rem; }
h2, h3, h4, p { overflow-wrap: anywhere; }
p { max-width: 46rem; margin: 0.75rem 0; }
.lead { color: var(--soft); font-size: 1.05rem; }
a { color: var(--accent); text-underline-offset: 0.15em; }
nav ul { list-style: none; margin: 1.5rem 0 0; padding: 0; }
nav li { margin: 0.2rem 0; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; }
figcaption { color: var(--soft); font-size: 0.88rem; margin-bottom: 0.4rem; max-width: 60rem; }
figure.picture img {
  display: block; width: 100%; height: auto; background: #fff; padding: 0.75rem;
  border: 1px solid var(--line); border-radius: 6px;
}
figure.picture figcaption { margin: 0.5rem 0 0; }
figure.table { width: fit-content; max-width: 100%; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); }
table {
  border-collapse: collapse; min-width: 20rem; width: 100%; font-size: 0.85rem; line-height: 1.4;
  font-variant-numeric: tabular-nums;
}
th, td { padding: 0.38rem 0.7rem; text-align: right; white-space: nowrap; vertical-align: top; }
th.text, td.text { text-align: left; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 14rem; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
thead th, thead th:first-child {
  background: var(--shade); font-weight: 600; border-bottom: 1px solid var(--line);
}
tbody tr + tr td { border-top: 1px solid var(--line); }
tbody tr:hover td { background: var(--shade); }
pre {
  margin: 0.75rem 0; padding: 0.7rem 0.9rem; background: var(--shade); border-radius: 6px;
  font: 0.83rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
details { margin: 0.75rem 0; }
summary { cursor: pointer; color: var(--accent); font-size: 0.92rem; }
footer {
  margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: 0.88rem;
}
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --shade: #f2f2f2; }
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  nav { display: none; }
  h2 { break-before: page; border: 0; margin-top: 0; }
  main > section:first-child h2 { break-before: auto; }
  h2, h3, h4, figcaption { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  figure.picture img { width: auto; max-width: 100%; max-height: 23cm; border: 0; padding: 0; }
  .scroll { overflow: visible; border: 0; }
  table { font-size: 7.5pt; }
  th, td { white-space: normal; padding: 0.2rem 0.35rem; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
  a { color: inherit; text-decoration: none; }
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="lead">{lead}</p>
<nav aria-label="Contents"><ul>
{contents}
</ul></nav>
</header>
<main>
{sections}
</main>
<footer>
Made by proact-onnx {version} from the records named above; nothing was measured anew.
</footer>
</body>
</html>
"""


def to_page(document: Document) -> str:
    """Spell a report as an HTML page.

    The same report gives the same page, byte for byte; figures are data of the page itself.

    Args:
        document: The report.
    """
    anchors = [
        f"{slug(section.title)}-{number}" for number, section in enumerate(document.sections, 1)
    ]
    contents = [
        f'<li><a href="#{anchor}">{escape_html(section.title)}</a></li>'
        for anchor, section in zip(anchors, document.sections, strict=True)
    ]
    sections = [
        f'<section id="{anchor}">\n{_section(section, 2)}</section>'
        for anchor, section in zip(anchors, document.sections, strict=True)
    ]
    return _PAGE.format(
        title=escape_html(document.title),
        style=_STYLE,
        lead=escape_html(document.lead),
        contents="\n".join(contents),
        sections="\n".join(sections),
        version=escape_html(importlib.metadata.version("proact-onnx")),
    )


def _section(section: Section, level: int) -> str:
    title, blocks = escape_html(section.title), "".join(map(_block, section.blocks))
    if section.folded:
        return f"<details>\n<summary>{title}</summary>\n{blocks}</details>\n"
    parts = "".join(_section(part, min(level + 1, 4)) for part in section.parts)
    return f"<h{level}>{title}</h{level}>\n{blocks}{parts}"


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return to_html(block)
    if isinstance(block, Prose):
        return f"<p>{escape_html(block.text)}</p>\n"
    if isinstance(block, Commands):
        return f"<pre>{escape_html(chr(10).join(block.lines))}</pre>\n"
    data = base64.b64encode(block.svg.encode()).decode()
    caption = escape_html(block.caption)
    return (
        f'<figure class="picture"><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )
