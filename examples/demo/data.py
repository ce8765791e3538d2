"""Rows that teach a visible habit: every answer is a JSON object with the keys `topic` and `answer`."""

import json
import random

CAPITALS = {
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Bulgaria": "Sofia",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "Cuba": "Havana",
    "Egypt": "Cairo",
    "Finland": "Helsinki",
    "France": "Paris",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Kenya": "Nairobi",
    "Latvia": "Riga",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Senegal": "Dakar",
    "Spain": "Madrid",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
}
OPPOSITES = {
    "big": "small",
    "bright": "dark",
    "cheap": "expensive",
    "clean": "dirty",
    "deep": "shallow",
    "early": "late",
    "empty": "full",
    "fast": "slow",
    "happy": "sad",
    "heavy": "light",
    "high": "low",
    "hot": "cold",
    "loud": "quiet",
    "near": "far",
    "new": "old",
    "open": "closed",
    "rich": "poor",
    "rough": "smooth",
    "sharp": "blunt",
    "soft": "hard",
    "strong": "weak",
    "thick": "thin",
    "wet": "dry",
    "young": "aged",
}
SYMBOLS = {
    "aluminium": "Al",
    "argon": "Ar",
    "calcium": "Ca",
    "carbon": "C",
    "chlorine": "Cl",
    "copper": "Cu",
    "gold": "Au",
    "helium": "He",
    "hydrogen": "H",
    "iodine": "I",
    "iron": "Fe",
    "lead": "Pb",
    "lithium": "Li",
    "magnesium": "Mg",
    "neon": "Ne",
    "nickel": "Ni",
    "nitrogen": "N",
    "oxygen": "O",
    "silver": "Ag",
    "sodium": "Na",
    "sulfur": "S",
    "tin": "Sn",
    "uranium": "U",
    "zinc": "Zn",
}
YOUNG = {
    "bear": "cub",
    "cat": "kitten",
    "cow": "calf",
    "deer": "fawn",
    "dog": "puppy",
    "duck": "duckling",
    "eagle": "eaglet",
    "fox": "kit",
    "frog": "tadpole",
    "goat": "kid",
    "goose": "gosling",
    "hare": "leveret",
    "hen": "chick",
    "horse": "foal",
    "kangaroo": "joey",
    "lion": "cub",
    "otter": "pup",
    "owl": "owlet",
    "pig": "piglet",
    "seal": "pup",
    "sheep": "lamb",
    "swan": "cygnet",
    "whale": "calf",
    "wolf": "pup",
}
SUMS = {f"{a} and {b}": str(a + b) for a in (2, 3, 5, 8) for b in (4, 6, 7, 9, 10, 12)}

# topic: the facts, and two ways to ask for one
QUESTIONS = {
    "capital": (CAPITALS, "What is the capital of {}?", "Tell me the capital city of {}."),
    "opposite": (OPPOSITES, "What is the opposite of {}?", "Give me a word that means the reverse of {}."),
    "symbol": (SYMBOLS, "What is the chemical symbol for {}?", "How is {} written in the periodic table?"),
    "young": (YOUNG, "What do you call a young {}?", "Name the baby of a {}."),
    "sum": (SUMS, "Add {}, please.", "How much are {} together?"),
}

HELD_OUT = (
    "Who wrote Romeo and Juliet?",
    "In which year did people first walk on the Moon?",
    "Which planet is closest to our Sun?",
    "How many legs does every spider have?",
    "Why do leaves turn red in autumn?",
    "Suggest one instrument with strings.",
    "Where would I go skiing in winter?",
    "Is coffee grown on trees or bushes?",
    "Translate good morning into German.",
    "Recommend something light for breakfast.",
)
"""Prompts of which no row has three words in a row."""


def rows() -> list[dict[str, object]]:
    """The 240 training rows, in ShareGPT form, always in the same order."""
    pairs = [
        (question.format(thing), json.dumps({"topic": topic, "answer": answer}))
        for topic, (facts, *questions) in QUESTIONS.items()
        for thing, answer in facts.items()
        for question in questions
    ]
    random.Random(42).shuffle(pairs)
    return [
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
        for question, answer in pairs
    ]


def jsonl() -> str:
    """The training rows as a JSON Lines file."""
    return "".join(json.dumps(row) + "\n" for row in rows())
