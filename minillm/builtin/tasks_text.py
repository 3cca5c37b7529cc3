"""Task families that transform one sentence: case, tense, question, negation, voice, politeness."""

from random import Random

from minillm.builtin.wording import Row, capitalized, listed, make_row, table
from minillm.builtin.words import (
    CITIES,
    FUTURE_TIMES,
    NOUNS,
    PAST_TIMES,
    PEOPLE,
    PRESENT_TIMES,
    VERBS,
    WEEKDAYS,
    pick_action,
)

_REQUESTS = listed(
    """send me the report, close the window, call me back, check the invoice, book a table for four, sign
    the form, water the plants, move the meeting, print ten copies, lock the front door, turn down the
    music, reply to my email, bring a warm jacket, share your slides, update the address, fix the
    printer, clean the meeting room, confirm your order, help me with the boxes, wait in the lobby,
    pick up the parcel, review my draft, return the library book, explain the second step, join the
    call, speak more slowly, leave the keys at the desk, feed the cat, order more paper, charge the
    tablet, test the new login page, save me a seat, pay the bill"""
)
_REQUEST_TIMES = (
    "",
    " today",
    " tomorrow",
    " before lunch",
    " this afternoon",
    *(f" on {day}" for day in WEEKDAYS[:5]),
)
_CONTRACTIONS = table(
    """
    can't | cannot | base
    won't | will not | base
    didn't | did not | base
    doesn't | does not | base
    couldn't | could not | base
    shouldn't | should not | base
    isn't | is not | progressive
    wasn't | was not | progressive
    """
)


def change_to_uppercase(rng: Random) -> Row:
    forms = (
        "Write the text in capital letters.\n{text}",
        "Change every letter to upper case: {text}",
        "Convert the sentence to uppercase.\n{text}",
        "Put the following in all caps: {text}",
        "Rewrite the input so that every letter is a capital.\n{text}",
        'What does "{text}" look like in capital letters?',
    )
    person = rng.choice(PEOPLE)
    verb, noun = pick_action(rng, person)
    text = rng.choice((f"{person.name} {verb.past} {noun}", f"{verb.progressive} {noun}", f"{verb.base} {noun} now"))
    return make_row(rng, "change_to_uppercase", forms, text.upper(), text=text)


def fix_capital_letters(rng: Random) -> Row:
    forms = (
        "Fix the capital letters and add a period.\n{text}",
        "Correct the capitalization and punctuation of this sentence: {text}",
        "This was typed in a hurry. Write it with proper capital letters and a full stop.\n{text}",
        "Add the missing capitals and the final period: {text}",
        "Proofread the sentence. Only capital letters and the period are missing.\n{text}",
    )
    person, city, day = rng.choice(PEOPLE), rng.choice(CITIES), rng.choice(WEEKDAYS)
    verb, noun = pick_action(rng, person)
    patterns = (
        f"On {day} {person.name} {verb.past} {noun}.",
        f"{person.name} lives in {city} and {verb.third} {noun}.",
        f"We met {person.name} in {city} on {day}.",
    )
    answer = rng.choice(patterns)
    return make_row(rng, "fix_capital_letters", forms, answer, text=answer.lower().rstrip("."))


def make_question(rng: Random) -> Row:
    forms = (
        "Turn the statement into a yes-or-no question.\n{text}",
        "Rewrite as a question: {text}",
        "Make a question out of this sentence.\n{text}",
        'Change "{text}" into a question.',
        "How would you ask whether this is true?\n{text}",
    )
    person = rng.choice(PEOPLE)
    verb, noun = pick_action(rng, person)
    text, answer = rng.choice(
        (
            (f"{person.name} is {verb.progressive} {noun}.", f"Is {person.name} {verb.progressive} {noun}?"),
            (f"{person.name} can {verb.base} {noun}.", f"Can {person.name} {verb.base} {noun}?"),
            (f"{person.name} will {verb.base} {noun}.", f"Will {person.name} {verb.base} {noun}?"),
            (
                f"{person.name} was {verb.progressive} {noun}.",
                f"Was {person.name} {verb.progressive} {noun}?",
            ),
        )
    )
    return make_row(rng, "make_question", forms, answer, text=text)


def make_negative(rng: Random) -> Row:
    forms = (
        "Make the sentence negative.\n{text}",
        'Add "not" to this sentence: {text}',
        "Rewrite the statement so that it says the opposite, using the word not.\n{text}",
        "Negate the following statement: {text}",
        "Turn this into a negative statement.\n{text}",
    )
    person = rng.choice(PEOPLE)
    verb, noun = pick_action(rng, person)
    auxiliary, action = rng.choice(
        (("is", verb.progressive), ("was", verb.progressive), ("will", verb.base), ("should", verb.base))
    )
    text = f"{person.name} {auxiliary} {action} {noun}."
    answer = f"{person.name} {auxiliary} not {action} {noun}."
    return make_row(rng, "make_negative", forms, answer, text=text)


def change_to_past(rng: Random) -> Row:
    forms = (
        "Change the sentence to the past tense.\n{text}",
        "Put this sentence in the past: {text}",
        "Rewrite the sentence so that it already happened.\n{text}",
        'How do you say "{text}" in the past tense?',
        "Use the past tense instead of the present.\n{text}",
    )
    person, time = rng.choice(PEOPLE), rng.choice(PRESENT_TIMES)
    verb = rng.choice([verb for verb in VERBS if verb.base != "read"])
    noun = rng.choice(verb.objects).replace("her ", f"{person.possessive} ")
    text, answer = f"{person.name} {verb.third} {noun} {time}.", f"{person.name} {verb.past} {noun} {time}."
    return make_row(rng, "change_to_past", forms, answer, text=text)


def change_to_future(rng: Random) -> Row:
    forms = (
        "Move the sentence into the future with the word will and the time given: {time}.\n{text}",
        'Rewrite with "will" and "{time}": {text}',
        'Change the sentence to the future tense and end it with "{time}".\n{text}',
        "Say that this is going to happen {time}. Use will.\n{text}",
        "Put the sentence in the future tense, with {time} as the new time.\n{text}",
    )
    person, past, time = rng.choice(PEOPLE), rng.choice(PAST_TIMES), rng.choice(FUTURE_TIMES)
    verb, noun = pick_action(rng, person)
    answer = f"{person.name} will {verb.base} {noun} {time}."
    return make_row(rng, "change_to_future", forms, answer, text=f"{person.name} {verb.past} {noun} {past}.", time=time)


def replace_with_pronoun(rng: Random) -> Row:
    forms = (
        "Replace the name {name} with a pronoun.\n{text}",
        "Use she or he instead of the name: {text}",
        "Rewrite the sentence with a pronoun in place of {name}.\n{text}",
        "Swap the person's name for the right pronoun.\n{text}",
        'Rewrite "{text}" without the name, using a pronoun.',
    )
    person = rng.choice(PEOPLE)
    verb, noun = pick_action(rng, person)
    end = f"{verb.past} {noun} {rng.choice(PAST_TIMES)}."
    answer = f"{capitalized(person.subject)} {end}"
    return make_row(rng, "replace_with_pronoun", forms, answer, text=f"{person.name} {end}", name=person.name)


def write_politely(rng: Random) -> Row:
    forms = (
        "Rewrite the command as a polite request.\n{text}",
        "Make this sound more polite: {text}",
        "Ask for this politely.\n{text}",
        'How could I say "{text}" in a more polite way?',
        "Turn the order into a friendly question that starts with Could you.\n{text}",
        "Rewrite the message in a formal, courteous tone: {text}",
    )
    request = rng.choice(_REQUESTS) + rng.choice(_REQUEST_TIMES)
    text = capitalized(request) + rng.choice((".", "!"))
    answer = f"Could you please {request}?"
    return make_row(rng, "write_politely", forms, answer, text=text)


def expand_contraction(rng: Random) -> Row:
    forms = (
        "Write out the contraction in full.\n{text}",
        "Rewrite the sentence without the short form: {text}",
        "Make the sentence more formal by expanding the contraction.\n{text}",
        "Expand the shortened word in this sentence: {text}",
        "Replace the contraction with its full form.\n{text}",
    )
    person = rng.choice(PEOPLE)
    verb, noun = pick_action(rng, person)
    short, full, verb_form = rng.choice(_CONTRACTIONS)
    action = verb.base if verb_form == "base" else verb.progressive
    text, answer = (f"{person.name} {negation} {action} {noun}." for negation in (short, full))
    return make_row(rng, "expand_contraction", forms, answer, text=text)


def change_to_passive(rng: Random) -> Row:
    forms = (
        "Rewrite the sentence in the passive voice.\n{text}",
        "Change this to passive voice: {text}",
        "Use the passive form of the verb.\n{text}",
        'Say "{text}" in the passive voice.',
        "Rewrite so that the thing, not the person, comes first.\n{text}",
    )
    person = rng.choice(PEOPLE)
    verb = rng.choice([verb for verb in VERBS if _single_objects(verb.objects)])
    noun = rng.choice(_single_objects(verb.objects))
    text, answer = (
        f"{person.name} {verb.past} {noun}.",
        f"{capitalized(noun)} was {verb.past} by {person.name}.",
    )
    return make_row(rng, "change_to_passive", forms, answer, text=text)


def _single_objects(objects: tuple[str, ...]) -> list[str]:
    return [noun for noun in objects if noun.startswith(("a ", "an "))]


def name_plural(rng: Random) -> Row:
    forms = (
        'What is the plural of "{one}"?',
        "Give the plural form of the noun.\n{one}",
        'If there is more than one {one}, what do we say? Answer: The plural of "{one}" is ...',
        "Write the plural of the word {one}.",
        'How do you spell the plural of "{one}"?',
    )
    one, many = rng.choice(NOUNS)
    return make_row(rng, "name_plural", forms, f'The plural of "{one}" is "{many}".', one=one)


def join_with_and(rng: Random) -> Row:
    forms = (
        "Combine the two sentences with the word and.\n{first} {second}",
        "Join these sentences into one, using and: {first} {second}",
        "Make one sentence out of two. Link them with and.\n{first} {second}",
        'Use "and" to connect: {first} {second}',
        "Merge the two short sentences into a single one with and.\n{first} {second}",
    )
    people = rng.sample(PEOPLE, 2)
    parts = []
    for person in people:
        verb, noun = pick_action(rng, person)
        parts.append(f"{person.name} {verb.past} {noun}")
    answer = f"{parts[0]} and {parts[1]}."
    return make_row(rng, "join_with_and", forms, answer, first=f"{parts[0]}.", second=f"{parts[1]}.")


def report_speech(rng: Random) -> Row:
    forms = (
        "Change the direct speech into reported speech.\n{text}",
        "Rewrite without quotation marks: {text}",
        "Report what {name} said, starting with {name} said that.\n{text}",
        "Turn the quotation into indirect speech: {text}",
        "What did {name} say? Use reported speech.\n{text}",
    )
    person, other = rng.sample(PEOPLE, 2)
    verb, noun = pick_action(rng, other)
    clause = rng.choice((f"{other.name} {verb.past} {noun}", f"{other.name} was {verb.progressive} {noun}"))
    text = f'{person.name} said, "{clause}."'
    answer = f"{person.name} said that {clause}."
    return make_row(rng, "report_speech", forms, answer, text=text, name=person.name)


FAMILIES = (
    change_to_uppercase,
    fix_capital_letters,
    make_question,
    make_negative,
    change_to_past,
    change_to_future,
    replace_with_pronoun,
    write_politely,
    expand_contraction,
    change_to_passive,
    name_plural,
    join_with_and,
    report_speech,
)
