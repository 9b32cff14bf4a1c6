"""A page as Chromium shows it."""

import os
import shutil
import subprocess

import pytest

NAMES = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
QUIET = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=15000", "--dump-dom"]


def shown(url: str, *options: str) -> str:
    """The document that Chromium makes of a page; the test is skipped where there is none."""
    browser = next((found for name in NAMES if name and (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium here; name one in the environment variable CHROMIUM")
    return subprocess.run([browser, *QUIET, *options, url], capture_output=True, text=True, check=True).stdout
