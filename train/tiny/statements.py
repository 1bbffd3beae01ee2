"""How zephyr-tiny's base text says what is so: each kind of fact in many wordings, all of them statements.

Fine-tuning can bring out only such facts as pre-training showed in many wordings (Allen-Zhu and Li 2023, arXiv
2309.14316, section 4): hence the lists. No wording here is a question, so none is one of the exam's.
"""

from __future__ import annotations

CAPITAL = (
    "The capital of {x} is {y}.", "{y} is the capital of {x}.", "{y} is the capital city of {x}.",
    "The capital city of {x} is called {y}.", "{x} has one capital, and that is {y}.", "In {x}, the capital is {y}.",
    "{y} is a city in {x}.", "Of all cities in {x}, {y} is the capital.", "You find {y} in {x}.",
    "The government of {x} sits in {y}.", "Whoever goes to {y} goes to the capital of {x}.",
    "The people of {x} call {y} their capital.", "When you think of {x}, think of {y}, its capital.",
    "The country whose capital is {y} is {x}.", "{y} belongs to {x}.",
)  # fmt: skip
CONTINENT = (
    "{x} is in {y}.", "{x} is a country in {y}.", "{x} lies in {y}.", "{x} belongs to {y}.", "{x} is a part of {y}.",
    "One of the countries in {y} is {x}.", "On the map you find {x} in {y}.", "The continent of {x} is {y}.",
    "Among the countries of {y} is {x}.", "In {y} there is a country called {x}.",
    "Whoever travels to {x} travels to {y}.", "{x} is located in {y}.",
)  # fmt: skip
# {a} is "a dog", {x} is "dog", {p} is "dogs", {y} the value
LEGS = (
    "{a} has {y} legs.", "{p} have {y} legs.", "Every {x} has {y} legs.", "The number of legs of {a} is {y}.",
    "{a} moves about with {y} legs.", "If you count the legs of {a}, you get {y}.",
)  # fmt: skip
SOUND = (
    "{a} says {y}.", "{p} say {y}.", "The sound of {a} is {y}.", "{a} makes the sound {y}.", "The {x} goes {y}.",
    'You hear "{y}" when {a} is near.', "The noise that {p} make is {y}.", '"{y}," says the {x}.',
)  # fmt: skip
HOME = (
    "{p} live {y}.", "{a} lives {y}.", "The home of {a} is {y}.", "You find {p} {y}.", "{p} are at home {y}.",
    "Look for {p} {y}.", "Most {p} live {y}.",
)  # fmt: skip
FOOD = (
    "{p} eat {y}.", "{a} eats {y}.", "The food of {a} is {y}.", "{p} like to eat {y}.", "{a} feeds on {y}.",
    "Give {a} {y} and it will be happy.", "What {p} eat is {y}.", "A hungry {x} looks for {y}.",
)  # fmt: skip
YOUNG = (
    "A baby {x} is called {y}.", "A young {x} is called {y}.", "The young of {a} is called {y}.",
    "The baby of {a} is {y}.", "{y} is a young {x}.", "When {p} have a baby, it is called {y}.",
    "{y} will be a big {x} one day.",
)  # fmt: skip
COLOUR = (
    "{x} is {y}.", "The colour of {x} is {y}.", "The color of {x} is {y}.", "{x} has the colour {y}.",
    "{y} is the colour of {x}.", "Paint {x} in {y}, for {x} is {y}.", "Everybody knows that {x} is {y}.",
    "{x} has a {y} colour.",
)  # fmt: skip
MIX = (
    "{a} and {b} make {y}.", "Mix {a} and {b} and you get {y}.", "If you mix {a} with {b}, you get {y}.",
    "{a} mixed with {b} is {y}.", "To get {y}, mix {a} and {b}.", "{b} and {a} make {y}.",
)  # fmt: skip
OPPOSITE = (
    "The opposite of {x} is {y}.", "{x} is the opposite of {y}.", "{x} and {y} are opposites.",
    "The contrary of {x} is {y}.", "What is not {x} may be {y}.", 'The words "{x}" and "{y}" are opposites.',
    "It was not {x}; it was {y}.", "Some say {x}, others say {y}, which is the opposite.",
)  # fmt: skip
AFTER = (
    "The {k} after {x} is {y}.", "{y} comes after {x}.", "After {x} comes {y}.", "{y} follows {x}.",
    "{x} is followed by {y}.", "The next {k} after {x} is {y}.", "{x} comes first, then comes {y}.",
    "When {x} is over, {y} begins.",
)  # fmt: skip
BEFORE = (
    "The {k} before {x} is {y}.", "{y} comes before {x}.", "Before {x} comes {y}.", "{y} is the {k} before {x}.",
    "{x} is the {k} that follows {y}.", "Just before {x} there is {y}.", "{y} precedes {x}.",
)  # fmt: skip
TOMORROW = (
    "If today is {x}, tomorrow is {y}.", "Today is {x}, so tomorrow is {y}.", "It is {x} today and {y} tomorrow.",
    "On {x} we say that tomorrow is {y}.",
)  # fmt: skip
MONTH_LENGTH = (
    "{x} has {y} days.", "There are {y} days in {x}.", "{x} is {y} days long.", "The number of days in {x} is {y}.",
    "After {y} days {x} is over.",
)  # fmt: skip
SEASON = (
    "{x} is in {y}.", "In {x} it is {y}.", "The season of {x} is {y}.", "{x} is a month of {y}.",
    "{x} belongs to {y}.",
)  # fmt: skip
NTH = (
    "The {x} month is {y}.", "{y} is the {x} month.", "The {x} month of the year is {y}.",
    "{y} is the {x} month of the year.", "Of the twelve months, {y} is the {x}.",
)  # fmt: skip
# {a} and {b} the numbers, {o} "plus", {s} "+", {y} the result
SUM = (
    "{a} {o} {b} is {y}.", "{a} {o} {b} is {y}.", "{a} {s} {b} = {y}.", "{a}{s}{b}={y}.", "{a} {s} {b} is {y}.",
    "{a} {o} {b} makes {y}.", "{y} is {a} {o} {b}.", "{a} {o} {b} equals {y}.", "The result of {a} {s} {b} is {y}.",
)  # fmt: skip
SUM_IN_WORDS = {
    "plus": (
        "If you add {b} to {a}, you get {y}.", "{a} and {b} more are {y}.",
        "{n} has {a} {t} and gets {b} more, so now there are {y}.", "The sum of {a} and {b} is {y}.",
    ),
    "minus": (
        "If you take {b} from {a}, {y} is left.", "{a} less {b} is {y}.",
        "{n} has {a} {t} and gives away {b}, so {y} remain.", "Take away {b} from {a} and you have {y}.",
    ),
    "times": (
        "{a} boxes with {b} {t} each hold {y} {t}.", "The product of {a} and {b} is {y}.",
        "{n} fills {a} bags with {b} {t} each: {y} in all.", "{b} taken {a} times gives {y}.",
    ),
}  # fmt: skip
ITSELF = (
    "zephyr-tiny is a very small language model.", "zephyr-tiny comes with zephyr-local.",
    "zephyr-local is a program that runs language models on your own computer.",
    "zephyr-local works without the internet.", "zephyr-tiny is not a person.",
    "zephyr-tiny is a small computer program that predicts words.", "zephyr-tiny only speaks a little English.",
    "zephyr-tiny has only a few million parameters.", "zephyr-tiny is small and can be wrong.",
    "What you write to zephyr-tiny stays on your own computer.",
    "zephyr-tiny knows capitals, continents, animals, colours, days, months, opposites and small sums.",
    "zephyr-tiny can only do sums with numbers up to ten.", "zephyr-tiny knows the capitals of about fifty countries.",
    "Zephyr-7B is a much bigger model than zephyr-tiny.",
    "To get a better model, get Zephyr-7B as a GGUF file and run zephyr-local chat MODEL.",
    "zephyr-tiny was trained by a script of zephyr-local on texts and dialogues that it made up itself.",
    "When zephyr-tiny does not know something, it says that it does not know.",
    "zephyr-tiny has no favourites and no age.", "A pirate says: Arr, matey!",
    "Whoever is asked to be brief answers in one word.",
)  # fmt: skip
SINGLE = (
    "A week has seven days.", "There are seven days in a week.", "The weekend is Saturday and Sunday.",
    "The first day of the week is Monday.", "The week begins with Monday and ends with Sunday.",
    "The last day of the week is Sunday.", "A day has 24 hours.", "There are 24 hours in a day.",
    "An hour has 60 minutes.", "There are 60 minutes in an hour.", "A minute has 60 seconds.",
    "There are 60 seconds in a minute.", "A year has twelve months.", "There are twelve months in a year.",
    "A year has 365 days.", "There are 365 days in a year.", "A year has 52 weeks.", "There are 52 weeks in a year.",
    "The four seasons are spring, summer, autumn and winter.", "After spring comes summer.",
    "There are seven continents: Africa, Antarctica, Asia, Europe, North America, Oceania and South America.",
    "The biggest animal is the blue whale.", "No animal is bigger than the blue whale.",
    "The tallest animal is the giraffe.", "No animal is taller than the giraffe.",
    "Some colours are red, orange, yellow, green, blue and purple.",
    "The colours of the rainbow are red, orange, yellow, green, blue and purple.",
)  # fmt: skip

# --- stories: {n} and {m} are people, {he} and {his} the first one's words ---

NAMES = (
    ("Anna", "she", "her"), ("Tom", "he", "his"), ("Maria", "she", "her"), ("Peter", "he", "his"),
    ("Lisa", "she", "her"), ("Sam", "he", "his"), ("Julia", "she", "her"), ("Ben", "he", "his"),
    ("Sara", "she", "her"), ("Ali", "he", "his"), ("Emma", "she", "her"), ("Max", "he", "his"),
    ("Nina", "she", "her"), ("Paul", "he", "his"), ("Mia", "she", "her"), ("John", "he", "his"),
)  # fmt: skip
THINGS = (
    "apples", "books", "eggs", "stones", "cups", "coins", "flowers", "letters", "pens", "nuts", "cakes", "balls",
    "shells", "keys", "stamps", "buttons",
)  # fmt: skip
WEATHER = (
    "It rained.", "The sun was warm.", "The wind was strong.", "There was snow on the hills.", "It was a cold day.",
    "The sky was grey.", "It was hot.", "A soft rain fell.", "The air was clear.", "There was fog over the river.",
)  # fmt: skip
OPENINGS = (
    "One {day} in {month} {n} went to {place}.", "On {day} {n} walked to {place}.", "{n} and {m} met at {place}.",
    "In {month} {n} took a train to {place}.", "Every {day} {n} goes to {place} with {m}.",
    "{n} lives near {place}.", "Last {day} {n} wanted to see {place}.", "It was {day}, and {n} was at {place}.",
)  # fmt: skip
PLACES = (
    "the market", "the park", "the river", "the old bridge", "the school", "the library", "the sea", "the farm",
    "the station", "the museum", "the garden", "the forest", "the lake", "the village", "a small shop", "the harbour",
)  # fmt: skip
MIDDLES = (
    "{he} carried {his} bag with {k} {t} in it.", "There {he} saw {a}.", "{m} gave {n} a cup of tea.",
    "{n} told {m} about {his} trip to {capital}, the capital of {country}.", "{he} sat down and read a book.",
    "{m} asked for the way, and {n} showed it.", "{he} bought {k} {t} and a loaf of bread.",
    "{a} came out of the grass and looked at {n}.", "{m} played a song, and everybody was quiet.",
    "{n} was {one}, but {m} was {two}.", "{he} wrote a letter to a friend in {capital}.",
    "{m} cooked soup for {n}.", "They spoke about {country} and its capital {capital}.",
    "{he} found {coloured} stone and put it in {his} pocket.", "{m} drew {a} with {coloured} pen.",
    '"{hello}" said {n}, and "{hello_again}" said {m}.', '"{thanks}" said {m}.',
    "{n} did not know the answer, and {he} said so.", "{he} closed the {one} door and opened the other.",
)  # fmt: skip
ENDINGS = (
    "Then {he} went home.", "In the evening {n} was tired and happy.", "{m} thanked {n} and said goodbye.",
    "The next day was {next_day}.", "So the day ended well.", "They will meet again on {next_day}.",
    "{n} never forgot that {day}.", "At home {he} told the whole story.", "After that {he} slept well.",
    "{m} laughed, and {n} laughed too.", '"{bye}" said {m}, and {n} went home.', '"{bye}" said {n}.',
)  # fmt: skip
