"""Make docs/images/report.png, the first screens of a report, with Chromium: ``python docs/screenshot.py REPORT``."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGE = Path(__file__).resolve().parent / "images" / "report.png"


def main(page: Path) -> None:
    """What comes first, the first table, and the first figures, one below the other."""
    shots = []
    with sync_playwright() as start:
        browser = start.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1200, "height": 900})
        opened.goto(page.resolve().as_uri())
        opened.add_style_tag(content="section { content-visibility: visible } #summary .remarks ~ p { display: none }")
        full = {"width": 1200, "x": 0}
        bottom = opened.locator("#summary .remarks").bounding_box()["y"]
        shots.append(opened.screenshot(clip=full | {"y": 0, "height": bottom - 5}, full_page=True))
        for selector in (".results", ".figures"):
            box = opened.locator(selector).first.bounding_box()
            height = min(box["height"] + 20, 430)
            shots.append(opened.screenshot(clip=full | {"y": box["y"] - 10, "height": height}, full_page=True))
        browser.close()
    images = [Image.open(io.BytesIO(shot)) for shot in shots]
    together = Image.new("RGB", (1200, sum(image.height for image in images)), "white")
    y = 0
    for image in images:
        together.paste(image, (0, y))
        y += image.height
    together.quantize(128).save(IMAGE, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
