"""matplotlib's SVG as a part of an HTML page."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from mpp.study.report.palette import CSS


def inline(text: str, number: str, title: str, description: str) -> Markup:
    """A figure without prologue, metadata, fonts and fixed size, its colours those of the page, its ids its own.

    Args:
        text: as matplotlib writes it.
        number: what its ids begin with.
        title: its name for those who cannot see it.
        description: what it shows, in words.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| font-family: [^;]*;| transform="rotate\(-0 [^"]*"', "", text)
    text = text.replace("xlink:href=", "href=").replace(' id="', f' id="{number}-')
    text = text.replace('href="#', f'href="#{number}-').replace("url(#", f"url(#{number}-")
    text = re.sub(r"#[0-9a-f]{6}\b", lambda hexes: CSS.get(hexes[0], hexes[0]), text)
    text = re.sub(r"-?\d+\.\d{3,}", lambda digits: f"{float(digits[0]):.2f}", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg {box[0]} role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    body = re.sub(r"\s*\n\s*", " ", text[text.index(">") + 1 :]).strip()
    return Markup(f"{head}<desc>{escape(description)}</desc>{body}")
