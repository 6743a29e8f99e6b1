"""Words for scenes, shared by drawing, questions and the scoring of answers: shapes, colours with their RGB values, numbers."""

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (222, 36, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 218, 40),
    "green": (40, 160, 60),
    "cyan": (50, 205, 215),
    "blue": (30, 80, 215),
    "purple": (135, 45, 180),
    "pink": (250, 125, 190),
    "brown": (118, 68, 32),
}
SHAPES = ("circle", "square", "triangle", "star", "hexagon", "ring", "heart", "cross")
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)


def plural(phrase: str) -> str:
    """Return the plural of a phrase: "red cross" -> "red crosses", "circle" -> "circles"."""
    return phrase + ("es" if phrase.endswith(("s", "x")) else "s")


def article(phrase: str) -> str:
    """Return a phrase with its indefinite article: "item" -> "an item", "circle" -> "a circle"."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def number_word(number: int) -> str:
    """Return a number as a word up to twenty (3 -> "three"), in digits beyond."""
    return NUMBERS[number] if number < len(NUMBERS) else str(number)
