"""Pictures of the dashboard, for the documents: the overview, the chat and the usage, in light and dark.

From the environment: EMBER_URL, KEY_ADMIN, and PICTURES, the folder that they go to.
"""

import os
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

URL, ADMIN, PICTURES = (os.environ[name] for name in ("EMBER_URL", "KEY_ADMIN", "PICTURES"))
CHROMIUM = "/usr/bin/chromium-headless-shell"
SIZE = {"width": 1180, "height": 820}
BYTES_MAX = 150_000


def take(page, name, theme):
    page.wait_for_timeout(1_500)
    path = Path(PICTURES) / f"{name}-{theme}.png"
    page.screenshot(path=path, animations="disabled")
    assert path.stat().st_size <= BYTES_MAX, f"{path} has {path.stat().st_size} bytes"
    print(path, path.stat().st_size)


def main():
    Path(PICTURES).mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        context = browser.new_context(ignore_https_errors=True, viewport=SIZE, color_scheme="light")
        page = context.new_page()
        page.goto(f"{URL}/#chat")
        page.get_by_label("API key").fill(ADMIN)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_label("Function").select_option("assistant")
        for question in ["What is an ember?", "And how long does it glow? One sentence."]:
            page.get_by_label("Message").fill(question)
            page.get_by_role("button", name="Send").click()
            expect(page.locator(".bubble.assistant").last.get_by_role("link", name="explain")).to_be_visible(timeout=120_000)
        for name in ["chat", "overview", "usage"]:
            page.evaluate("name => { location.hash = name }", name)
            for theme in ["light", "dark"]:
                page.emulate_media(color_scheme=theme)
                take(page, name, theme)
        browser.close()


main()
