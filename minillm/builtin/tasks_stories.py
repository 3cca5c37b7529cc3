"""Task families answered from a supplied text: reading comprehension, extraction and summaries."""

import json
from random import Random

from minillm.builtin.stories import tell_event, tell_story
from minillm.builtin.wording import Row, capitalized, listed, make_row, with_article
from minillm.builtin.words import CITIES, COLORS, GROUPS, HOBBIES, MONTHS, PEOPLE, SIZES, WEEKDAYS

_EVENT_NAMES = listed(
    """book fair, jazz concert, cooking class, flower show, science talk, chess tournament, film night,
    job fair, charity run, art exhibition, street market, dance lesson, poetry reading, bicycle race,
    wine tasting, theater play"""
)
_MAIL_HOSTS = listed("example.com, example.org, mail.example, office.example, school.example")
_PRODUCTS = listed(
    """lamp, chair, kettle, jacket, backpack, blanket, clock, mirror, vase, umbrella, desk, teapot,
    wallet, suitcase"""
)


def answer_who(rng: Random) -> Row:
    forms = (
        "Read the text and answer: who {deed}?\n{text}",
        "Who {deed}?\n{text}",
        "{text} Who {deed}?",
        "Use the passage to say who {deed}.\n{text}",
        "Answer the question about the text.\nText: {text} Question: Who {deed}?",
    )
    story = tell_story(rng)
    event = rng.choice((story.main, story.other))
    answer = f"{event.person.name} {event.past}."
    return make_row(rng, "answer_who", forms, answer, text=story.text, deed=event.past)


def answer_where(rng: Random) -> Row:
    forms = (
        "Where did {name} {deed}? Use the text.\n{text}",
        "{text} Where did {name} {deed}?",
        "Answer the question from the passage. Where did {name} {deed}?\n{text}",
        "According to the text, where did {name} {deed}?\n{text}",
        "Here is a short story: {text} Where did {name} {deed}?",
    )
    story = tell_story(rng)
    event = rng.choice((story.main, story.other))
    answer = f"{event.person.name} {event.past} {event.place}."
    return make_row(rng, "answer_where", forms, answer, text=story.text, name=event.person.name, deed=event.base)


def answer_when(rng: Random) -> Row:
    forms = (
        "When did {name} {deed}?\n{text}",
        "{text} When did {name} {deed}?",
        "Find in the text when {name} {deed_past}.\n{text}",
        "According to the story, when did {name} {deed}?\n{text}",
        "Read this: {text} When did {name} {deed}?",
    )
    story = tell_story(rng)
    event = story.main
    answer = f"{event.person.name} {event.past} {story.time}."
    return make_row(
        rng,
        "answer_when",
        forms,
        answer,
        text=story.text,
        name=event.person.name,
        deed=event.base,
        deed_past=event.past,
    )


def answer_why(rng: Random) -> Row:
    forms = (
        "Why did {name} {deed}?\n{text}",
        "{text} Why did {name} {deed}?",
        "Give the reason why {name} {deed_past}.\n{text}",
        "According to the text, why did {name} {deed}?\n{text}",
        "Explain from the passage why {name} {deed_past}.\n{text}",
    )
    story = tell_story(rng)
    event = story.main
    answer = f"{event.person.name} {event.past} because {event.reason}."
    return make_row(
        rng,
        "answer_why",
        forms,
        answer,
        text=story.text,
        name=event.person.name,
        deed=event.base,
        deed_past=event.past,
    )


def summarize_story(rng: Random) -> Row:
    forms = (
        "Summarize the text in one short sentence.\n{text}",
        "What happened? Give a one-sentence summary: {text}",
        "Shorten this story to a single sentence that says who did what.\n{text}",
        "Write a very short summary.\n{text}",
        "TL;DR, in one sentence, please.\n{text}",
    )
    story = tell_story(rng)
    answer = f"{story.main.person.name} {story.main.past} and {story.other.person.name} {story.other.past}."
    return make_row(rng, "summarize_story", forms, answer, text=story.text)


def join_with_because(rng: Random) -> Row:
    forms = (
        "Join the sentences with because.\n{first} {second}",
        "Connect the two sentences using the word because: {first} {second}",
        "Write one sentence that gives the reason, using because.\n{first} {second}",
        "Combine the action and its reason. Action: {first} Reason: {second}",
        "Make a single sentence with because.\nAction: {first} Reason: {second}",
    )
    event = tell_event(rng)
    first, second = f"{event.person.name} {event.past}.", f"{capitalized(event.reason)}."
    answer = f"{event.person.name} {event.past} because {event.reason}."
    return make_row(rng, "join_with_because", forms, answer, first=first, second=second)


def extract_email(rng: Random) -> Row:
    forms = (
        "Find the email address in the text.\n{text}",
        "Extract the email address: {text}",
        "Which email address is mentioned here?\n{text}",
        "{text} What is the email address?",
        "Copy only the email address from the message.\n{text}",
    )
    person, city = rng.choice(PEOPLE), rng.choice(CITIES)
    address = f"{person.name.lower()}.{city.lower().replace(' ', '')}@{rng.choice(_MAIL_HOSTS)}"
    text = rng.choice(
        (
            f"Please write to {person.name} at {address} before {rng.choice(WEEKDAYS)}.",
            f"{person.name} has moved to {city} and now uses {address} for work.",
            f"For questions about the {rng.choice(_EVENT_NAMES)}, contact {address} or call the office.",
        )
    )
    return make_row(rng, "extract_email", forms, f"The email address is {address}.", text=text)


def extract_date(rng: Random) -> Row:
    forms = (
        "On which date does the event take place?\n{text}",
        "Extract the date: {text}",
        "When is the {event}?\n{text}",
        "{text} What is the date of the {event}?",
        "Find the date in this announcement.\n{text}",
    )
    event, text, date, _ = _announcement(rng)
    return make_row(rng, "extract_date", forms, f"The {event} is on {date}.", text=text, event=event)


def extract_place(rng: Random) -> Row:
    forms = (
        "In which city does the event take place?\n{text}",
        "Extract the city: {text}",
        "Where is the {event}?\n{text}",
        "{text} In which city is the {event}?",
        "Find the city in this announcement.\n{text}",
    )
    event, text, _, city = _announcement(rng)
    return make_row(rng, "extract_place", forms, f"The {event} is in {city}.", text=text, event=event)


def _announcement(rng: Random) -> tuple[str, str, str, str]:
    """An event's name, a text announcing it, its date and its city."""
    event, city, person = rng.choice(_EVENT_NAMES), rng.choice(CITIES), rng.choice(PEOPLE)
    hour = 2 + rng.randrange(7)
    date = f"{rng.choice(MONTHS)} {1 + rng.randrange(28)}"
    texts = (
        f"The {event} in {city} opens on {date}. Tickets cost {5 + rng.randrange(20)} dollars.",
        f"Join us for {with_article(event)} on {date}. We meet in {city}. {person.name} will be there.",
        f"{person.name} is planning {with_article(event)} in {city}. It starts on {date} at {hour} p.m.",
    )
    return event, rng.choice(texts), date, city


def look_up_product(rng: Random) -> Row:
    forms = (
        "Use the product card to answer: {question}\n{card}",
        "{question}\n{card}",
        "Product card: {card}. {question}",
        "Answer in a full sentence. {question}\n{card}",
        "Here are the details of an item: {card}. {question}",
    )
    product, price = rng.choice(_PRODUCTS), f"{5 + rng.randrange(95)} dollars"
    color, size = rng.choice(COLORS), rng.choice(SIZES)
    question, answer = rng.choice(
        (
            (f"How much does the {product} cost?", f"The {product} costs {price}."),
            (f"What color is the {product}?", f"The {product} is {color}."),
            (f"What is the price of the {product}?", f"The price of the {product} is {price}."),
            (f"Which size does the {product} have?", f"The size of the {product} is {size}."),
        )
    )
    card = f"item: {product}; color: {color}; size: {size}; price: {price}"
    return make_row(rng, "look_up_product", forms, answer, question=question, card=card)


def write_json(rng: Random) -> Row:
    forms = (
        "Write the data as a JSON object with the keys name, job and city.\n{text}",
        "Convert to JSON (name, job, city): {text}",
        "Extract name, job and city as JSON.\n{text}",
        "Put the name, job and city from this sentence into JSON: {text}",
        "Represent this person as a JSON object with name, job and city.\n{text}",
    )
    name, job, city = rng.choice(PEOPLE).name, rng.choice(GROUPS["jobs"]), rng.choice(CITIES)
    texts = (
        f"{name} works as a {job} in {city}.",
        f"In {city}, {name} is a {job}.",
        f"My friend {name} from {city} is a {job}.",
    )
    answer = json.dumps({"name": name, "job": job, "city": city})
    return make_row(rng, "write_json", forms, answer, text=rng.choice(texts))


def read_json(rng: Random) -> Row:
    forms = (
        "Describe the record in one sentence.\n{record}",
        "Turn this JSON into a plain English sentence: {record}",
        "Write a sentence with the information from the JSON object.\n{record}",
        "What does this record say? {record}",
        "Explain this data as a full sentence.\n{record}",
    )
    person, city, hobby = rng.choice(PEOPLE), rng.choice(CITIES), rng.choice(HOBBIES)
    age = 18 + rng.randrange(60)
    record = json.dumps({"name": person.name, "age": age, "city": city, "hobby": hobby})
    answer = f"{person.name} is {age} years old, lives in {city} and enjoys {hobby}."
    return make_row(rng, "read_json", forms, answer, record=record)


FAMILIES = (
    answer_who,
    answer_where,
    answer_when,
    answer_why,
    summarize_story,
    join_with_because,
    extract_email,
    extract_date,
    extract_place,
    look_up_product,
    write_json,
    read_json,
)
