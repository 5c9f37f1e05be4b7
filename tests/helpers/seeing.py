"""What is seen of a page in a browser: texts and their boxes, legends, ticks and colours."""

import re
from itertools import pairwise

SIZES = [(1440, 900), (1024, 768), (390, 844)]
PAPER = "getComputedStyle(document.body).backgroundColor"
INK = "getComputedStyle(document.body).color"
STAGE = "getComputedStyle(document.querySelector('#spectrum .main-svg')).backgroundColor"

# Texts of a figure with their boxes; labels of outliers, which are placed apart, are tested for themselves.
BOXES = """(id) => [...document.querySelectorAll(`#${id} svg text`)]
    .filter((text) => text.textContent && !text.closest('.annotation') && text.getBoundingClientRect().width)
    .map((text) => {
        const { left, right, top, bottom } = text.getBoundingClientRect();
        return { text: text.textContent, left, right, top, bottom };
    })"""
TICKS = """([id, axis]) => [...document.querySelectorAll(`#${id} .${axis}tick text`)].map((text) => ({
    text: text.textContent, size: getComputedStyle(text).fontSize, parts: text.querySelectorAll('tspan[dy]').length,
    place: text.getBoundingClientRect().top,
}))"""
LEGEND = """(id) => ({
    wanted: document.getElementById(id)._fullData.filter((trace) => trace.showlegend && trace.visible === true).length,
    texts: document.querySelectorAll(`#${id} .legendtext`).length,
    scrolls: [...document.querySelectorAll(`#${id} .legend .scrollbar`)]
        .some((bar) => bar.getBoundingClientRect().height),
    inside: [...document.querySelectorAll(`#${id} .legendtext`)].every((text) => {
        const [box, figure] = [text, document.getElementById(id)].map((part) => part.getBoundingClientRect());
        return box.left >= figure.left && box.right <= figure.right && box.top >= figure.top;
    }),
})"""
RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")


def number(text):
    """Value of a tick: 0.05, 2·10⁻³, 10⁴, 80%."""
    text = text.removesuffix("%")
    if "10" in text and re.search("[⁰¹²³⁴⁵⁶⁷⁸⁹]", text):
        digit, _, power = text.rpartition("10")
        return float(digit.removesuffix("·") or 1) * 10.0 ** int(power.translate(RAISED))
    return float(text.translate(RAISED))


def overlapping(boxes, slack=2.0):
    """Pairs of texts whose boxes overlap by more than the space around letters."""
    return [
        (one["text"], other["text"])
        for place, one in enumerate(boxes)
        for other in boxes[place + 1 :]
        if min(one["right"], other["right"]) - max(one["left"], other["left"]) > slack
        and min(one["bottom"], other["bottom"]) - max(one["top"], other["top"]) > slack
    ]


def legend_is_whole(page, figure):
    legend = page.evaluate(LEGEND, figure)
    if legend["wanted"] > 1:
        assert legend["texts"] == legend["wanted"], figure
        assert legend["inside"], figure
        assert not legend["scrolls"], figure


def texts_are_apart_and_inside(page, figure):
    boxes = page.evaluate(BOXES, figure)
    assert overlapping(boxes) == [], figure
    frame = page.locator(f"#{figure}").bounding_box()
    for box in boxes:
        assert box["left"] >= frame["x"] - 1, (figure, box)
        assert box["right"] <= frame["x"] + frame["width"] + 1, (figure, box)
        assert box["bottom"] <= frame["y"] + frame["height"] + 1, (figure, box)


def ticks_are_whole_numbers_of_one_size(page, figure):
    for axis in ("x", "y"):
        ticks = page.evaluate(TICKS, [figure, axis])
        assert len(ticks) >= 2, (figure, axis)
        assert len({tick["size"] for tick in ticks}) == 1, (figure, axis, ticks)
        assert not any(tick["parts"] or "^" in tick["text"] for tick in ticks), (figure, axis, ticks)
        if figure in {"spectrum", "dynamics", "samples", "pairs"}:
            values = [number(tick["text"]) for tick in ticks]
            assert all(left < right for left, right in pairwise(values)), (figure, axis, values)
        if figure in {"dynamics", "training"} and axis == "x":
            assert all(re.fullmatch(r"\d+", tick["text"]) for tick in ticks), ticks


def lightness(page, rule):
    """Perceived lightness, 0 to 1, of a computed colour."""
    red, green, blue = (float(part) / 255 for part in re.findall(r"[\d.]+", page.evaluate(rule))[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
