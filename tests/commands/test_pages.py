"""A contact sheet and its page show pixels as they are, mark what is marked, and neither fails on a text."""

import base64
import io
import re
from html.parser import HTMLParser

import jinja2
import numpy as np
import pytest
from PIL import Image

from plait.commands.pages import gallery, page, sheet, table
from plait.commands.pages.card import Card
from plait.errors import PlaitError

MARK = (255, 224, 138)
VOID = {"meta", "img", "input"}


class Page(HTMLParser):
    """The page as a tree walk: fails on a tag that closes what is not open; gathers text by the innermost tag."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.elements.append((self.open[-1] if self.open else "", {}, data))

    def text(self, tag):
        return [data for name, _, data in self.elements if name == tag and data]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def card(text=(("What is it?\n", False), ("a cat", True)), pictures=None, **more):
    return Card([noise(8, 8)] if pictures is None else pictures, list(text), more.pop("title", "sample-1"), **more)


def drawn(folder, *cards, **more):
    """The pixels of the sheet and the text of the page."""
    picture, html = gallery.write(folder, "sheet", cards, **more)
    return np.asarray(Image.open(picture)), html.read_text(encoding="utf-8")


def holds(picture, block):
    """Whether `block` is somewhere in `picture`, pixel by pixel."""
    height, width = block.shape[:2]
    corners = np.argwhere((picture[: len(picture) - height + 1, : picture.shape[1] - width + 1] == block[0, 0]).all(-1))
    return any(np.array_equal(picture[y : y + height, x : x + width], block) for y, x in corners)


@pytest.mark.parametrize(("height", "width", "factor"), [(8, 8, 44), (64, 64, 5), (20, 100, 3), (300, 352, 1)])
def test_a_small_picture_is_enlarged_by_a_whole_factor_with_every_pixel_unchanged(tmp_path, height, width, factor):
    picture = noise(height, width)
    pixels, _ = drawn(tmp_path, card(pictures=[picture]))
    assert holds(pixels, np.kron(picture, np.ones((factor, factor, 1), np.uint8)))


def test_every_picture_of_a_card_is_shown_at_one_scale(tmp_path):
    pictures = [noise(16, 16, seed) for seed in range(3)] + [noise(8, 16, 3)]
    pixels, _ = drawn(tmp_path, card(pictures=pictures))
    assert all(holds(pixels, np.kron(picture, np.ones((10, 10, 1), np.uint8))) for picture in pictures)


@pytest.mark.parametrize(("size", "number", "factor"), [(96, 2, 2), (32, 2, 5), (64, 9, 1), (32, 17, 2)])
def test_pictures_stand_in_rows_unless_that_makes_them_much_smaller(tmp_path, size, number, factor):
    pictures = [noise(size, size, seed) for seed in range(number)]
    pixels, html = drawn(tmp_path, card(pictures=pictures))
    assert all(holds(pixels, np.kron(picture, np.ones((factor, factor, 1), np.uint8))) for picture in pictures)
    assert html.count(f'width="{size * factor}" height="{size * factor}"') == number


def test_a_large_picture_is_shrunk_into_its_card_and_whole_in_the_page(tmp_path):
    picture = noise(900, 1200)
    pixels, html = drawn(tmp_path, card(pictures=[picture]))
    assert pixels.shape[0] < 500
    (attributes,) = [attributes for tag, attributes, _ in Page(html).elements if tag == "img"]
    assert (attributes["width"], attributes["height"], attributes.get("class")) == ("352", "264", None)
    body = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(body))), picture)


def test_marked_text_stands_on_colour_and_in_mark_tags(tmp_path):
    pixels, html = drawn(tmp_path, card())
    plain, _ = drawn(tmp_path, card([("What is it?\na cat", False)]))
    assert (pixels == MARK).all(-1).sum() > 300
    assert not (plain == MARK).all(-1).any()
    assert Page(html).text("mark") == ["a cat"]
    assert Page(html).text("p")[-1] == "What is it?\n"


def test_a_marked_line_end_can_be_seen(tmp_path):
    _, html = drawn(tmp_path, card([("yes\n", True)]))
    assert '<mark>yes<span class="end">\n</span></mark>' in html


def test_texts_are_escaped_and_the_page_is_whole(tmp_path):
    wild = "<b>&amp;\"'</mark><script>alert(1)</script>"
    _, html = drawn(tmp_path, card([(wild, True)], title=wild, notes={wild: wild}), legend=wild, details=[(wild, wild)])
    tree = Page(html)
    assert "script" not in {tag for tag, _, _ in tree.elements}
    assert all("".join(tree.text(tag)).count(wild) >= 1 for tag in ("mark", "h2", "dt", "dd", "p"))
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    (policy,) = [attributes["content"] for tag, attributes, _ in tree.elements if attributes.get("http-equiv")]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_a_text_is_no_template_and_ends_no_element_of_the_page(tmp_path):
    hostile = "{{ 7 * 7 }}{% raw %}</style></title></main>\x1b[31m<!--"
    _, html = drawn(tmp_path, card([(hostile, True), (hostile, False)], [], title=hostile), legend=hostile, details=[(hostile, hostile)])
    assert "49" not in html and "\x1b" not in html
    shown = Page(html).text("mark")
    assert shown == [hostile.replace("\x1b", "\ufffd")]


def test_a_name_that_the_template_needs_and_nobody_gives_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="'policy' is undefined"):
        page.TEMPLATES.get_template("samples.html.j2").render()


def test_a_long_text_is_cut_in_the_picture_and_whole_in_the_page(tmp_path):
    prompt, answer = "word " * 4000, "the answer"
    pixels, html = drawn(tmp_path, card([(prompt, False), (answer, True)]))
    assert pixels.shape[0] < 900
    assert (pixels == MARK).all(-1).any(), "the answer must survive a long prompt"
    assert prompt in Page(html).text("p")


def test_abbreviated_text_keeps_the_ends_of_what_is_given_and_the_start_of_what_is_marked():
    short = sheet.abbreviate([("a" * 500 + "z", False), ("b" * 500, True), ("", False), ("tail", False)], 200)
    assert [marked for _, marked in short] == [False, True, False]
    assert short[0][0].startswith("aaa") and short[0][0].endswith("aaz") and " … " in short[0][0]
    assert short[1][0].startswith("bbb") and short[1][0].endswith("…")
    assert sum(len(piece) for piece, _ in short) < 260


def test_lines_too_many_lose_the_middle_of_what_is_given():
    given, said = [[(str(number), False)] for number in range(10)], [("said", True)]
    kept = ["".join(run for run, _ in line) for line in sheet.drop_middle_lines([*given, said], 6)]
    assert kept == ["0", "1", "…", "8", "9", "said"]
    assert sheet.drop_middle_lines([said] * 9, 3) == [said, said, [*said, ("…", False)]]
    assert sheet.drop_middle_lines([*given], 10) == given


def test_lines_are_broken_at_spaces_and_only_long_words_inside():
    text = [("ab cd\n", False), ("x" * 12 + " y", True)]
    lines = sheet.break_lines(text, len, 5)
    assert ["".join(run for run, _ in line).rstrip() for line in lines] == ["ab cd", "xxxxx", "xxxxx", "xx y"]
    assert all(marked for line in lines[1:] for _, marked in line)


@pytest.mark.parametrize("text", ["schön 世界 🙂 مرحبا", "\x00\x07\x9b", "\ud800 alone", "a\tb\r\nc\rd", "", " ", "\n\n\n", "W" * 3000])
def test_no_text_breaks_the_sheet_or_the_page(tmp_path, text):
    _, html = drawn(tmp_path, card([(text, True), (text, False)], title=text, notes={text: text}), legend=text)
    Page(html)
    if text.startswith("schön"):
        assert text in Page(html).text("mark")


def test_a_sheet_says_when_its_font_lacks_letters(tmp_path):
    one = drawn(tmp_path, card([("plain", False)]))[0]
    other = drawn(tmp_path, card([("schon", False)]))[0]
    boxed = drawn(tmp_path, card([("schön", False)]))[0]
    assert one.shape == other.shape
    assert boxed.shape[0] == other.shape[0] + 20


def test_a_sheet_marks_right_and_wrong_answers_by_shape_and_colour(tmp_path):
    pixels, _ = drawn(tmp_path, card(verdict=True), card(verdict=False))
    assert all((pixels == colour).all(-1).sum() > 100 for colour in [(26, 127, 67), (198, 47, 47), (201, 236, 213), (248, 211, 208)])
    assert not (pixels == MARK).all(-1).any(), "yellow is what is supervised"


def test_every_picture_has_its_label_on_the_page_and_among_the_sheets_notes(tmp_path):
    labels = ["SigLIP, 8 px", "world encoder, 8 px"]
    one, html = drawn(tmp_path, card(pictures=[noise(8, 8), noise(8, 8, 1)], labels=labels))
    tree = Page(html)
    assert tree.text("figcaption") == labels
    assert [attributes["alt"] for tag, attributes, _ in tree.elements if tag == "img"] == [f"{label}, 8x8 px" for label in labels]
    other, _ = drawn(tmp_path, card(pictures=[noise(8, 8), noise(8, 8, 1)]))
    assert not np.array_equal(one, other)


def test_a_name_of_several_facts_stands_once(tmp_path):
    _, html = drawn(tmp_path, card(pictures=[]), details=[("coco ", "32 looked at"), ("tokens", "9"), ("coco", "6 of 40 samples")])
    tree = Page(html)
    assert tree.text("dt") == ["coco", "tokens"]
    assert tree.text("dd") == ["32 looked at", "6 of 40 samples", "9"]


def test_the_same_cards_give_the_same_bytes(tmp_path):
    cards = [card(title=str(i), verdict=i % 2 == 0, notes={"tokens": "12"}) for i in range(6)]
    first, second = (gallery.write(tmp_path / name, "sheet", cards) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["page.html", "sheet.png"]


def test_a_gallery_without_cards_is_refused(tmp_path):
    with pytest.raises(PlaitError, match="'answers' has no sample to show: ask for at least one"):
        gallery.write(tmp_path, "answers", [])
    assert not list(tmp_path.iterdir())


def test_pictures_that_are_not_uint8_hwc_are_a_defect(tmp_path):
    with pytest.raises(AssertionError, match="is not HWC"):
        drawn(tmp_path, card(pictures=[np.zeros((3, 8, 8), np.float32)]))


def test_a_table_of_baselines_keeps_apart_from_what_is_above_and_below_it():
    html = table.render_table("baselines", [("measured", "run")], [["", "accuracy"], ["base", "0.5"]], "loss: level with base")
    tags = [(tag, attributes.get("class")) for tag, attributes, text in Page(html).elements if not text]
    assert tags[tags.index(("div", "scroll")) - 1] == ("main", None)
    top, bottom = re.search(r"main > \.scroll { margin: ([\d.]+)rem 0 ([\d.]+)rem }", html).groups()
    assert float(top) > float(bottom) > 0.5
