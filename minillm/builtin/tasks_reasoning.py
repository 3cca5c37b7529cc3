"""Task families with a small step of reasoning: sums, units, calendar, clock, comparison, code."""

from random import Random

from minillm.builtin.wording import Row, capitalized, listed, make_row
from minillm.builtin.words import GROUPS, HOBBIES, MONTHS, NUMBER_WORDS, PEOPLE, SHOPPING, WEEKDAYS

_COUNTABLE = listed("apples, books, coins, pencils, stamps, cookies, flowers, balloons, tickets, eggs")
# Larger unit, smaller unit, how many of the smaller make one of the larger.
_UNITS = (
    ("meters", "centimeters", 100),
    ("kilometers", "meters", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("years", "months", 12),
    ("kilograms", "grams", 1000),
    ("liters", "milliliters", 1000),
    ("centimeters", "millimeters", 10),
    ("dollars", "cents", 100),
)
# Comparative, its opposite, superlative.
_TRAITS = (
    ("taller", "shorter", "tallest"),
    ("older", "younger", "oldest"),
    ("faster", "slower", "fastest"),
    ("stronger", "weaker", "strongest"),
    ("happier", "sadder", "happiest"),
    ("richer", "poorer", "richest"),
    ("louder", "quieter", "loudest"),
)
_DURATIONS = (
    ("film", "lasts"),
    ("meeting", "lasts"),
    ("lesson", "lasts"),
    ("train ride", "takes"),
    ("match", "lasts"),
)


def solve_sum(rng: Random) -> Row:
    forms = (
        "{name} has {first} {things} and {event}. How many {things} does {name} have now?",
        "Solve the problem.\n{name} has {first} {things} and {event}. How many {things} are there now?",
        "How many {things} does {name} have in the end?\n{name} starts with {first} {things} and {event}.",
        "Work it out: {name} starts with {first} {things} and {event}. How many does {name} have now?",
        "Answer in a sentence. {name} has {first} {things} and {event}. How many are there?",
    )
    name, things = rng.choice(PEOPLE).name, rng.choice(_COUNTABLE)
    first, change = 4 + rng.randrange(4), 1 + rng.randrange(2)
    event, result = rng.choice(
        (
            (f"gets {NUMBER_WORDS[change]} more", first + change),
            (f"gives {NUMBER_WORDS[change]} away", first - change),
        )
    )
    answer = f"{name} has {NUMBER_WORDS[result]} {things} now."
    return make_row(rng, "solve_sum", forms, answer, name=name, things=things, first=NUMBER_WORDS[first], event=event)


def convert_unit(rng: Random) -> Row:
    forms = (
        "How many {small} are in {count} {large}?",
        "Convert {count} {large} to {small}.",
        "Convert the amount to {small}.\n{count} {large}",
        "Express {count} {large} in {small}.",
        "{count} {large} is the same as how many {small}?",
    )
    large, small, factor = rng.choice(_UNITS)
    count = 2 + rng.randrange(9)
    answer = f"{count} {large} are {count * factor} {small}."
    return make_row(rng, "convert_unit", forms, answer, large=large, small=small, count=str(count))


def name_neighbor_day(rng: Random) -> Row:
    forms = (
        "Which {kind} comes right {relation} {start}?",
        "Name the {kind} directly {relation} {start}.",
        "Tell me the {kind} that comes {relation} this one.\n{start}",
        "What is the {kind} {relation} {start}?",
        "Fill in: the {kind} {relation} {start} is ...",
    )
    kind, cycle = rng.choice((("day", WEEKDAYS), ("month", MONTHS)))
    index, (relation, step) = rng.randrange(len(cycle)), rng.choice((("after", 1), ("before", -1)))
    answer = f"The {kind} {relation} {cycle[index]} is {cycle[(index + step) % len(cycle)]}."
    return make_row(rng, "name_neighbor_day", forms, answer, kind=kind, relation=relation, start=cycle[index])


def find_end_time(rng: Random) -> Row:
    forms = (
        "The {thing} starts at {start} o'clock and {verb} {hours}. When does it end?",
        "When does the {thing} end?\nStart: {start} o'clock. Length: {hours}.",
        "A {thing} begins at {start} o'clock and {verb} {hours}. At what time is it over?",
        "Find the end time. The {thing} starts at {start} o'clock and {verb} {hours}.",
        "At what time is the {thing} over?\nIt starts at {start} o'clock and {verb} {hours}.",
    )
    (thing, verb), start, num_hours = rng.choice(_DURATIONS), 1 + rng.randrange(9), 1 + rng.randrange(3)
    hours = "one hour" if num_hours == 1 else f"{NUMBER_WORDS[num_hours]} hours"
    answer = f"The {thing} ends at {NUMBER_WORDS[start + num_hours]} o'clock."
    slots = {"thing": thing, "verb": verb, "hours": hours, "start": NUMBER_WORDS[start]}
    return make_row(rng, "find_end_time", forms, answer, **slots)


def turn_comparison(rng: Random) -> Row:
    forms = (
        "{first} is {more} than {second}. Who is {less}?",
        "Say the same thing with the word {less}.\n{first} is {more} than {second}.",
        "If {first} is {more} than {second}, which of the two is {less}?",
        "Rewrite the sentence so that it starts with {second}.\n{first} is {more} than {second}.",
        "Who is {less}, {first} or {second}?\n{first} is {more} than {second}.",
    )
    first, second = (person.name for person in rng.sample(PEOPLE, 2))
    more, less = rng.sample(rng.choice(_TRAITS)[:2], 2)
    answer = f"{second} is {less} than {first}."
    return make_row(rng, "turn_comparison", forms, answer, first=first, second=second, more=more, less=less)


def find_extreme(rng: Random) -> Row:
    forms = (
        "{facts} Who is the {most}?",
        "Who is the {most} of the three?\n{facts}",
        "Read the facts and name the {most} person.\n{facts}",
        "{facts} Which of them is the {most}?",
        "Decide who is the {most}: {facts}",
    )
    first, second, third = (person.name for person in rng.sample(PEOPLE, 3))
    more, _, most = rng.choice(_TRAITS)
    facts = [f"{first} is {more} than {second}.", f"{second} is {more} than {third}."]
    rng.shuffle(facts)
    answer = f"{first} is the {most} of the three."
    return make_row(rng, "find_extreme", forms, answer, facts=" ".join(facts), most=most)


def pick_number(rng: Random) -> Row:
    forms = (
        "Which is the {most} number?\n{numbers}",
        "Find the {most} number: {numbers}",
        "Out of {numbers}, which number is the {most}?",
        "Name the {most} of these numbers.\n{numbers}",
        "Look at the numbers {numbers} and tell me the {most} one.",
    )
    numbers = rng.sample(range(1, 100), 3)
    most, result = rng.choice((("largest", max(numbers)), ("smallest", min(numbers))))
    text = ", ".join(str(number) for number in numbers)
    return make_row(rng, "pick_number", forms, f"The {most} number is {result}.", numbers=text, most=most)


def continue_sequence(rng: Random) -> Row:
    forms = (
        "What comes next? {shown}, ...",
        "Continue the sequence by one step.\n{shown}",
        "Which number follows in this pattern: {shown}?",
        "Give the next number.\n{shown}, ?",
        "The numbers go up in equal steps: {shown}. Name the next one.",
    )
    start, step = rng.randrange(1, 21), rng.choice((1, 2, 5, 10))
    shown = ", ".join(str(start + index * step) for index in range(4))
    return make_row(rng, "continue_sequence", forms, f"The next number is {start + 4 * step}.", shown=shown)


def plan_order(rng: Random) -> Row:
    forms = (
        "What does {name} do {position}?\n{plan}",
        "{plan} What does {name} do {position}?",
        "Read the plan. Which activity comes {position} for {name}?\n{plan}",
        "According to the plan, what is {name} doing {position}? {plan}",
        "Name the activity that comes {position}.\n{plan}",
    )
    person, hobbies = rng.choice(PEOPLE), rng.sample(HOBBIES, 3)
    index = rng.randrange(3)
    position = ("first", "second", "last")[index]
    morning, noon, evening = hobbies
    plan = f"{person.name} starts the day with {morning}, goes on with {noon} and ends with {evening}."
    answer = f"{capitalized(hobbies[index])} comes {position} for {person.name}."
    return make_row(rng, "plan_order", forms, answer, plan=plan, position=position, name=person.name)


def answer_yes_or_no(rng: Random) -> Row:
    forms = (
        "{fact} Did {name} buy {item}? Answer yes or no with a full sentence.",
        "Did {name} buy {item}?\n{fact}",
        "Check the text: did {name} buy {item}?\n{fact}",
        "{fact} Is it true that {name} bought {item}?",
        "True or not: {name} bought {item}. Answer yes or no with a sentence.\n{fact}",
    )
    person, items = rng.choice(PEOPLE), rng.sample(SHOPPING, 3)
    fact = f"{person.name} went to the shop and bought {items[0]} and {items[1]}."
    item = rng.choice((items[0], items[1], items[2], items[2]))
    yes = f"Yes, {person.name} bought {item}."
    answer = yes if item in items[:2] else f"No, {person.name} did not buy {item}."
    return make_row(rng, "answer_yes_or_no", forms, answer, fact=fact, name=person.name, item=item)


def print_text(rng: Random) -> Row:
    forms = (
        'Write a Python line that prints "{text}".',
        "Print this text with Python.\n{text}",
        "How do I show the words {text} on the screen in Python?",
        "Give the Python print statement for: {text}",
        "Write one line of Python code that prints the text.\n{text}",
    )
    person, item = rng.choice(PEOPLE), rng.choice(GROUPS["animals"])
    texts = (
        f"Hello, {person.name}!",
        f"I like {person.name}",
        f"The {item} is here",
        f"Good night, {item}",
        "Done",
    )
    text = rng.choice(texts)
    return make_row(rng, "print_text", forms, f'print("{text}")', text=text)


def assign_variable(rng: Random) -> Row:
    forms = (
        "Write Python code that stores {value} in a variable called {variable}.",
        "Assign {value} to {variable} in Python.",
        "Create the Python variable.\nname: {variable}, value: {value}",
        "In Python, set {variable} to {value}.",
        "Give one line of Python that sets the variable.\n{variable} should be {value}",
    )
    names = listed("age, price, count, total, score, width, height, speed, length, level, weight")
    variable, value = rng.choice(names), str(rng.randrange(100))
    return make_row(rng, "assign_variable", forms, f"{variable} = {value}", variable=variable, value=value)


def explain_expression(rng: Random) -> Row:
    forms = (
        "What is the result of this Python expression?\n{code}",
        "What does {code} return in Python?",
        "Evaluate the Python expression: {code}",
        "I typed {code} into Python. What did I get?",
        "Give the value of the Python code.\n{code}",
    )
    word, other = rng.sample(GROUPS["animals"] + GROUPS["fruits"] + GROUPS["clothes"], 2)
    code, result = rng.choice(
        (
            (f'"{word}".upper()', f'"{word.upper()}"'),
            (f'"{word}" + "{other}"', f'"{word}{other}"'),
            (f'["{word}", "{other}"][0]', f'"{word}"'),
            (f'["{word}", "{other}"][1]', f'"{other}"'),
            (f'"{word}" == "{other}"', "False"),
        )
    )
    return make_row(rng, "explain_expression", forms, f"The result is {result}.", code=code)


FAMILIES = (
    solve_sum,
    convert_unit,
    name_neighbor_day,
    find_end_time,
    turn_comparison,
    find_extreme,
    pick_number,
    continue_sequence,
    plan_order,
    answer_yes_or_no,
    print_text,
    assign_variable,
    explain_expression,
)
