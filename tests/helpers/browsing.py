"""A browser for tests of pages, and pages that are opened in it."""

import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
EXECUTABLE = next((path for path in map(shutil.which, NAMES) if path), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
needs_browser = pytest.mark.skipif(EXECUTABLE is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")

# What keeps a page waiting until it is drawn, and what brings a page back to how it opened.
DRAWN = "[data-drawn]"
AT_FIRST = """() => new Promise((done) => {
    localStorage.clear();
    document.getElementById("theme").blur();
    if (location.hash.length < 2) return done();
    addEventListener("hashchange", () => done(), { once: true });
    location.hash = "";
})"""


def open_in(browser, path, width=1280, height=900, scheme="light", address="", figure="spectrum"):
    """A page that is drawn; what it complains of or asks for is kept."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.complaints, page.requests = [], []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("dialog", lambda dialog: page.complaints.append(f"dialog {dialog.message}") or dialog.dismiss())
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(path.resolve().as_uri() + address)
    page.wait_for_selector(DRAWN, state="attached")
    if figure:
        page.wait_for_selector(f"#{figure} .main-svg")
    return page
