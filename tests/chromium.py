"""Chromium, as people have it, and what can be asked of a page in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = {"width": 390, "height": 844}

CUT_OFF = """[...document.querySelectorAll("body *:not(input)")]
    .filter((part) => part.clientWidth > 1 && part.scrollWidth > part.clientWidth + 1)
    .map((part) => part.outerHTML)"""
"""Parts of the page that are cut off at their side. What is in a field can be moved to."""

UNNAMED = """[...document.querySelectorAll("input:not([type=hidden]), select, textarea, button, a")]
    .filter((part) => ![...(part.labels ?? [])].some((label) => label.textContent.trim())
        && !part.getAttribute("aria-label") && !part.textContent.trim())
    .map((part) => part.outerHTML)"""
"""Fields without a label, buttons and links without words."""

FAINT = """(() => {
    const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const luminance = (colour) => {
        const [red, green, blue] = channels(colour).map((value) => value / 255)
            .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const ground = (part) => {
        for (; part; part = part.parentElement) {
            const colour = getComputedStyle(part).backgroundColor;
            if ((channels(colour)[3] ?? 1) === 1) return colour;
        }
        return getComputedStyle(document.documentElement).colorScheme.includes("dark")
            && matchMedia("(prefers-color-scheme: dark)").matches ? "rgb(18, 18, 18)" : "rgb(255, 255, 255)";
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const faint = [];
    let looked = 0;
    while (walker.nextNode()) {
        const part = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || !part.checkVisibility()) continue;
        looked += 1;
        const ink = luminance(getComputedStyle(part).color), paper = luminance(ground(part));
        const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
        if (ratio < 4.5) faint.push(`${ratio.toFixed(2)}: ${part.outerHTML}`);
    }
    return { looked, faint };
})()"""
"""Words with less contrast than 4.5 to 1: https://www.w3.org/TR/WCAG22/#contrast-minimum."""


@asynccontextmanager
async def chromium(*flags: str) -> AsyncIterator[Browser]:
    """A browser; without one the test is skipped, or fails under CI."""
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("CI has to provide chromium")
        pytest.skip("chromium is not installed")
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=path, args=[*FLAGS, *flags])
        yield launched
        await launched.close()


def complaints(page: Page) -> list[str]:
    """What the browser will complain of: errors of the script, of the policy, of the network."""
    heard: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            heard.append(message.text)

    page.on("console", listen)
    page.on("pageerror", lambda error: heard.append(str(error)))
    # What is still on its way when a page is left is cut off by the browser itself.
    page.on(
        "requestfailed",
        lambda request: heard.append(request.url) if request.failure != "net::ERR_ABORTED" else None,
    )
    return heard
