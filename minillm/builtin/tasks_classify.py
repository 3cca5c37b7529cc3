"""Task families that sort a short text into a class: sentiment, topic, support request, sentence type."""

from random import Random

from minillm.builtin.wording import Row, capitalized, listed, make_row, table
from minillm.builtin.words import CITIES, PEOPLE, WEEKDAYS, pick_action

_REVIEWED = listed(
    """hotel, restaurant, film, phone, concert, book, train ride, museum, cafe, laptop, play, tour,
    hairdresser, bakery, bicycle, coat, headset, vacuum cleaner, language course, campsite, ferry,
    sushi bar, game, washing machine"""
)
_PRAISE = table(
    """
    was wonderful | I would choose it again
    was excellent | it was worth every cent
    was really great | everyone was so friendly
    made me very happy | I told all my friends about it
    was better than expected | everything worked perfectly
    was a lovely surprise | I smiled all day
    was perfect | I have nothing to complain about
    was fantastic | I can only recommend it
    was a great choice | the quality is high
    was a pleasure | the staff helped me at once
    """
)
_BLAME = table(
    """
    was terrible | I want my money back
    was awful | nothing worked as promised
    was a big disappointment | I will never come back
    made me angry | nobody wanted to help
    was far too expensive | the quality was poor
    was boring | I wanted to leave after ten minutes
    was the worst ever | I regret paying for it
    was dirty and loud | I could not relax at all
    was a waste of time | I cannot recommend it
    was broken | customer service did not answer
    """
)
_HEADLINES = {
    "sports": listed(
        """{city} wins the final in extra time, {name} breaks the swimming record in {city}, Local tennis
        star {name} reaches the semifinal, {city} football team gets a new coach, Marathon in {city}
        draws ten thousand runners"""
    ),
    "weather": listed(
        """Heavy snow expected in {city} on {day}, Heat wave in {city} to last until {day}, Strong winds
        close the bridge in {city}, Rain and thunder on the way to {city}, Fog slows traffic in {city}
        on {day}"""
    ),
    "business": listed(
        """{city} bank reports higher profits, Car maker opens a factory near {city}, Prices for flats in
        {city} keep rising, Shop owner {name} sells the company for millions, Airline from {city} cuts
        two hundred jobs"""
    ),
    "health": listed(
        """Doctors in {city} warn of a flu wave, New hospital opens in {city} on {day}, Study from {city}
        links sleep to a healthy heart, Free vaccination day in {city} on {day}, Nurse {name} explains
        how to treat a cold"""
    ),
    "music": listed(
        """Singer {name} releases a new album, Jazz festival in {city} sells out, Young pianist {name}
        gives a concert in {city}, Rock band from {city} goes on tour, {city} orchestra plays for free
        on {day}"""
    ),
    "food": listed(
        """Best pizza in {city} found in a tiny kitchen, Chef {name} opens a noodle bar in {city}, {name}
        shares a recipe for onion soup, Bakery in {city} invents a new kind of bread, Chocolate fair in
        {city} opens on {day}"""
    ),
    "science": listed(
        """Astronomers in {city} discover a new planet, Physicist {name} measures the smallest particle,
        Researchers in {city} map the ocean floor, Robot from {city} lab learns to fold paper,
        Biologist {name} finds a rare frog"""
    ),
}
_SUPPORT = {
    "billing": listed(
        """I was charged twice for my order on {day}., My invoice shows the wrong amount., Why did the
        price on my bill go up on {day}?, I have not received my refund yet and it was promised for
        {day}., My credit card was billed after I canceled on {day}."""
    ),
    "delivery": listed(
        """My parcel was supposed to arrive on {day} but it is not here., The driver left my package at
        the wrong house in {city}., Where is my order to {city}?, The box arrived on {day} and it was
        badly damaged., I want to change the shipping address to {city}."""
    ),
    "login": listed(
        """I forgot my password on {day} and cannot sign in., My account has been locked since {day}., The
        site says that my user name does not exist., I never receive the code that I need to sign in.,
        I moved to {city} and my password no longer works."""
    ),
    "product": listed(
        """The lamp I bought on {day} does not turn on., One leg of the chair from your {city} shop is
        broken., The zipper of the jacket broke on {day}., The kettle leaks and makes a strange noise.,
        The screen of my tablet has been black since {day}."""
    ),
}


def judge_sentiment(rng: Random) -> Row:
    forms = (
        "Is the review positive or negative?\n{review}",
        "Classify the sentiment as positive or negative: {review}",
        "Does the customer sound happy? Say whether the review is positive or negative.\n{review}",
        'Tell me if this is a positive or a negative opinion: "{review}"',
        "What is the sentiment of this text, positive or negative?\n{review}",
    )
    label, _, review = _review(rng)
    return make_row(rng, "judge_sentiment", forms, f"The review is {label}.", review=review)


def explain_sentiment(rng: Random) -> Row:
    forms = (
        "Is the review positive or negative, and why?\n{review}",
        "Classify the review and quote the words that show it: {review}",
        "Decide between positive and negative and give the reason from the text.\n{review}",
        "Explain the sentiment of the review in one sentence: {review}",
        "How does the writer feel, and which words tell you?\n{review}",
    )
    label, opinion, review = _review(rng)
    answer = f'The review is {label} because it says "{opinion}".'
    return make_row(rng, "explain_sentiment", forms, answer, review=review)


def _review(rng: Random) -> tuple[str, str, str]:
    """A label, the opinion that shows it, and the whole review."""
    label, opinions = rng.choice((("positive", _PRAISE), ("negative", _BLAME)))
    opinion, (_, remark) = rng.choice(opinions)[0], rng.choice(opinions)
    thing, city = rng.choice(_REVIEWED), rng.choice(CITIES)
    opinion = f"The {thing} {opinion}"
    opening = rng.choice((f"I was in {city} last week. ", ""))
    return label, opinion, f"{opening}{opinion}. {capitalized(remark)}."


def name_topic(rng: Random) -> Row:
    forms = (
        "What is the topic of the headline?\n{headline}",
        "Classify the headline as sports, weather, business, health, music, food or science: {headline}",
        "In which section of the newspaper does this belong?\n{headline}",
        'Name the topic of "{headline}" in one sentence.',
        "Choose the topic: sports, weather, business, health, music, food or science.\n{headline}",
    )
    topic = rng.choice(tuple(_HEADLINES))
    headline = _fill(rng, rng.choice(_HEADLINES[topic]))
    return make_row(rng, "name_topic", forms, f"The topic of the headline is {topic}.", headline=headline)


def route_request(rng: Random) -> Row:
    forms = (
        "Is this a billing, delivery, login or product problem?\n{message}",
        "Classify the customer message as billing, delivery, login or product: {message}",
        "Which team should handle the message: billing, delivery, login or product?\n{message}",
        'A customer writes: "{message}" What kind of problem is it (billing, delivery, login, product)?',
        "Sort the request into billing, delivery, login or product.\n{message}",
    )
    kind = rng.choice(tuple(_SUPPORT))
    message = _fill(rng, rng.choice(_SUPPORT[kind]))
    name = rng.choice(PEOPLE).name
    greeting = rng.choice((f"Hello, this is {name}. ", f"My name is {name}. ", ""))
    return make_row(rng, "route_request", forms, f"This is a {kind} problem.", message=f"{greeting}{message}")


def _fill(rng: Random, text: str) -> str:
    """The text with its placeholders replaced by random words."""
    return text.format(city=rng.choice(CITIES), name=rng.choice(PEOPLE).name, day=rng.choice(WEEKDAYS))


def name_sentence_type(rng: Random) -> Row:
    forms = (
        "Is this a statement, a question or a command?\n{text}",
        "Classify the sentence as statement, question or command: {text}",
        "What type of sentence is it: statement, question or command?\n{text}",
        'Say whether "{text}" is a statement, a question or a command.',
        "Name the sentence type. Choose from statement, question and command.\n{text}",
    )
    person = rng.choice(PEOPLE)
    verb, noun = pick_action(rng, person)
    kind, text = rng.choice(
        (
            ("statement", f"{person.name} {verb.past} {noun}"),
            ("question", f"did {person.name} {verb.base} {noun}"),
            ("command", f"{verb.base} {noun} with {person.name}"),
        )
    )
    text = f"{capitalized(text)}{'?' if kind == 'question' else '.'}"
    return make_row(rng, "name_sentence_type", forms, f"The sentence is a {kind}.", text=text)


def find_time_words(rng: Random) -> Row:
    forms = (
        "Which part of the sentence tells when it happened?\n{text}",
        "Find the time expression: {text}",
        "Quote the words that say when.\n{text}",
        'Which words in "{text}" answer the question when?',
        "Pick out the expression of time.\n{text}",
    )
    person, day = rng.choice(PEOPLE), rng.choice(WEEKDAYS)
    verb, noun = pick_action(rng, person)
    time = rng.choice((f"on {day}", f"last {day}", "yesterday", "two days ago", f"every {day}"))
    deed = f"{person.name} {verb.past} {noun}"
    text = rng.choice((f"{capitalized(time)}, {deed}.", f"{deed} {time}."))
    return make_row(rng, "find_time_words", forms, f'The time expression is "{time}".', text=text)


FAMILIES = (
    judge_sentiment,
    explain_sentiment,
    name_topic,
    route_request,
    name_sentence_type,
    find_time_words,
)
