"""python -m examples.screenshots PAGE.html OUT: pictures of a page, wide and narrow, light and dark.

Needs Chromium (`make browser`), playwright and Pillow (extra dev). OUT is the beginning of the files' names.
"""

import argparse
import io
import shutil
import sys
from pathlib import Path

SIZES = {"wide": (1280, 860), "narrow": (400, 860)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.screenshots", description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", help="such as docs/page")
    parser.add_argument("--fragment", default="", help="part of the page to open, such as row-0-token-7")
    options = parser.parse_args()
    path = shutil.which("chromium")
    if path is None:
        sys.exit("screenshots: expected chromium, found none; make browser installs it")
    from PIL import Image
    from playwright.sync_api import sync_playwright

    url = f"{options.page.resolve().as_uri()}#{options.fragment}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for size, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                page = context.new_page()
                page.goto(url)
                page.wait_for_function("document.documentElement.dataset.ready === 'true'")
                page.wait_for_timeout(500)
                file = Path(f"{options.out}-{size}-{scheme}.webp")
                Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(file, lossless=True, method=6)
                print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
                context.close()
        browser.close()


if __name__ == "__main__":
    main()
