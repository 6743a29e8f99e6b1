"""Generate texts with every word that captions, questions and answers about scenes can contain, to train a tokenizer on."""

from collections.abc import Iterator, Sequence

from plait.data.synthetic.lexicon import NUMBERS, article, plural
from plait.data.synthetic.questions import DIRECTIONS, OPENERS, PROMPTS, WHEN, point_tag

_ANSWERS = (
    "Yes, there is {an_one}. yes",
    "No, there is no {one}. no",
    "There is one {one}. {number}",
    "There are no {many}. {number}",
    "There are {number} {many}. {number}",
    "The {one} is {colour}. {colour}",
    "The {colour} shape is {an_one}. {shape}",
    "The {size} {colour} thing is {an_one}. {shape}",
    "What shape is the {colour} thing? The {size} thing.",
    "The {colour} shapes, the {one}. {size}",
    "The {one} is {direction} the {other}. {side}",
    "The {one} will be on the {half}. {half}",
    "The {one} will be at the {level}. {level}",
    "The {one} will be at the {level} {half}. {level} {half}",
    "{An_one} {direction} {an_other}, with {number} {many} and {an_one}.",
    "{an_one} at the {level} {half}",
    "{an_one} in the middle",
)


def every_text(colours: Sequence[str], shapes: Sequence[str], sizes: Sequence[str]) -> Iterator[str]:
    """Yield texts that together contain every template, these words, every number word, and all digits and marks of points."""
    objects = [(size, colour, shape) for shape in shapes for colour in colours for size in sizes]
    prompts = [template for several in PROMPTS.values() for template in several]
    openers = [opener.format(**{"is": verb}) + "{an_one}" for opener in OPENERS for verb in ("is", "are")]
    openers += [opener[:1].upper() + opener[1:] + "." for opener in openers]
    for i, (size, colour, shape) in enumerate(objects):
        one, other = f"{size} {colour} {shape}", " ".join(objects[i * 7 % len(objects)][1:])
        side = list(DIRECTIONS)[i % 4]
        words = {
            **{"one": one, "a": one, "many": plural(one), "other": other, "b": other, "size": size, "colour": colour, "shape": shape},
            **{"an_one": article(one), "An_one": article(one).capitalize(), "an_other": article(other), "an": article(one).split()[0]},
            **{"number": NUMBERS[i % len(NUMBERS)], "side": side, "direction": DIRECTIONS[side], "when": WHEN[i % 2].format(k=i)},
            **{"half": ("left", "right")[i % 2], "level": ("top", "bottom")[i // 2 % 2]},
        }
        for template in (*prompts[i % 3 :: 3], *_ANSWERS, *openers):
            yield template.format(**words)
    for tenth in range(0, 1001, 2):
        _, colour, shape = objects[tenth % len(objects)]
        yield point_tag([(tenth / 10, (1000 - tenth) / 10)], f"{colour} {shape}")
        yield point_tag([(tenth / 10, (tenth * 7 % 1000) / 10)] * (2 + tenth % 19), plural(shape))
